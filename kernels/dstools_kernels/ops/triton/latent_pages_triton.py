"""Triton twin of `write_latents`, for latents of 512 + 64 in BF16. Never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.latent_pages import SCALE_FLOOR
from dstools_kernels.ops.triton.config import Config


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
}


def write_latents(latents: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Do what the definition does, for BF16 `latents` [T, 576]."""
    if len(latents):
        dtype = "fp8" if cache.dtype == torch.uint8 else "bf16"
        count = cache.shape[0] * cache.shape[1]
        CONFIGS[f"latent_pages/{dtype}"].launch(
            (len(latents),), latents.contiguous(), cache, slots.long(), count
        )
