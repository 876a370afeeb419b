"""Triton twins of `row_lengths`, `token_slots`, and `write_latents` of 512 + 64 in BF16.

Statically verified for sm_90a, never run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.latent_pages import SCALE_FLOOR
from dstools_kernels.ops.triton.config import Config

BLOCK = 64  # rows or tokens of a program


@triton.jit
def lengths_kernel(
    past_ptr,  # [B] int32
    cumulative_ptr,  # [B + 1] int32
    lengths_ptr,  # [B] int32
    rows,
    BLOCK: tl.constexpr,
):
    """Write the tokens of BLOCK rows with the new ones. Grid (ceil(B / BLOCK),)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    past = tl.load(past_ptr + row, mask=mask)
    start = tl.load(cumulative_ptr + row, mask=mask)
    end = tl.load(cumulative_ptr + 1 + row, mask=mask)
    tl.store(lengths_ptr + row, past + end - start, mask=mask)


@triton.jit
def slots_kernel(
    table_ptr,  # [B, width] int32
    lengths_ptr,  # [B] int32
    cumulative_ptr,  # [B + 1] int32
    slots_ptr,  # [T] int64
    rows,
    tokens,
    width,
    pages,
    page_size,
    BLOCK: tl.constexpr,
):
    """Write the row of the flat pool of BLOCK new tokens, or -1. Grid (ceil(T / BLOCK),)."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.zeros((BLOCK,), tl.int32)  # the rows that end before this token
    for other in range(0, rows, BLOCK):
        at = other + tl.arange(0, BLOCK)
        end = tl.load(cumulative_ptr + 1 + at, mask=at < rows, other=2147483647)
        row += tl.sum((end[None, :] <= token[:, None]).to(tl.int32), 1)
    is_token = (token < tokens) & (row < rows)
    end = tl.load(cumulative_ptr + 1 + row, mask=is_token, other=0)
    place = tl.load(lengths_ptr + row, mask=is_token, other=0) - (end - token)
    is_inside = is_token & (place >= 0) & (place // page_size < width)
    at = row.to(tl.int64) * width + place // page_size
    page = tl.load(table_ptr + at, mask=is_inside, other=-1).to(tl.int64)
    is_inside = is_inside & (page >= 0) & (page < pages)
    slot = tl.where(is_inside, page * page_size + place % page_size, -1)
    tl.store(slots_ptr + token, slot, mask=token < tokens)


@triton.jit
def write_kernel(
    latents_ptr,  # [T, 576] BF16
    cache_ptr,  # [slots, 576] BF16 or [slots, 656] bytes
    slots_ptr,  # [T] int64
    slots,
    FLOOR: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """Write the latent of one token to its slot, if it has one. Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if (slot >= 0) & (slot < slots):
        group, column, d = tl.arange(0, 4), tl.arange(0, 128), tl.arange(0, 64)
        at = group[:, None] * 128 + column[None, :]
        latent = tl.load(latents_ptr + token * 576 + at)
        rope = tl.load(latents_ptr + token * 576 + 512 + d)
        if IS_FP8:
            row_ptr = cache_ptr + slot * 656
            x = latent.to(tl.float32)
            scale = tl.maximum(tl.div_rn(tl.max(tl.abs(x), 1), 448.0), FLOOR)
            has_nan = tl.max((x != x).to(tl.int32), 1) > 0  # a maximum ignores NaN
            scale = tl.where(has_nan, float("nan"), scale)
            codes = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)).to(tl.float8e4nv)
            tl.store(row_ptr + at, codes.to(tl.uint8, bitcast=True))
            tl.store((row_ptr + 512).to(tl.pointer_type(tl.float32), bitcast=True) + group, scale)
            tl.store((row_ptr + 528).to(tl.pointer_type(tl.bfloat16), bitcast=True) + d, rope)
        else:
            tl.store(cache_ptr + slot * 576 + at, latent)
            tl.store(cache_ptr + slot * 576 + 512 + d, rope)


def _config(pointer: str, num_warps: int, *needs: str) -> Config:
    return Config(
        write_kernel,
        {"latents_ptr": "*bf16", "cache_ptr": pointer, "slots_ptr": "*i64", "slots": "i32"},
        {"FLOOR": SCALE_FLOOR, "IS_FP8": pointer == "*u8"},
        num_warps=num_warps,  # so that each thread stores 16 bytes
        unaligned=("slots",),
        needs=("LDG.128", "STG.128", *needs),
        lacks=("div.full", "div.approx"),
    )


CONFIGS = {
    "latent_pages/bf16": _config("*bf16", 2),
    "latent_pages/fp8": _config("*u8", 1, "div.rn.f32", "cvt.rn.satfinite.e4m3x2.f32"),
    "latent_pages/lengths": Config(
        lengths_kernel,
        {"past_ptr": "*i32", "cumulative_ptr": "*i32", "lengths_ptr": "*i32", "rows": "i32"},
        {"BLOCK": BLOCK},
        num_warps=2,
        unaligned=("rows",),
    ),
    "latent_pages/slots": Config(
        slots_kernel,
        {
            **dict.fromkeys(("table_ptr", "lengths_ptr", "cumulative_ptr"), "*i32"),
            "slots_ptr": "*i64",
            **dict.fromkeys(("rows", "tokens", "width", "pages", "page_size"), "i32"),
        },
        {"BLOCK": BLOCK},
        num_warps=4,
        unaligned=("rows", "tokens", "width", "pages", "page_size"),
    ),
}


def row_lengths(past: Tensor, cumulative: Tensor) -> Tensor:
    """Return what the definition does, for int32."""
    lengths = torch.empty_like(past, memory_format=torch.contiguous_format)
    if len(past):
        tensors = (past.contiguous(), cumulative.contiguous(), lengths)
        CONFIGS["latent_pages/lengths"].launch((-(-len(past) // BLOCK),), *tensors, len(past))
    return lengths


def token_slots(
    table: Tensor, lengths: Tensor, cumulative: Tensor, pages: int, page_size: int
) -> Tensor:
    """Return what the definition does, for int32."""
    (rows, width), tokens = table.shape, int(cumulative[-1])
    slots = table.new_empty(tokens, dtype=torch.int64)
    if tokens:
        tensors = (table.contiguous(), lengths.contiguous(), cumulative.contiguous(), slots)
        sizes = (rows, tokens, width, pages, page_size)
        CONFIGS["latent_pages/slots"].launch((-(-tokens // BLOCK),), *tensors, *sizes)
    return slots


def write_latents(latents: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Do what the definition does, for BF16 `latents` [T, 576]."""
    if len(latents):
        dtype = "fp8" if cache.dtype == torch.uint8 else "bf16"
        count = cache.shape[0] * cache.shape[1]
        CONFIGS[f"latent_pages/{dtype}"].launch(
            (len(latents),), latents.contiguous(), cache, slots.long(), count
        )
