"""Offsets past 2^31 elements, on virtual memory: what is not touched costs nothing.

A mutant with 32-bit offsets would read or write anywhere, so that it runs under the sanitizer.

Offsets that stay in 32 bits, or cannot pass 2^31 on a card, have no test: `permute`'s, whose counts
are int32 themselves; those of a weight's scales, 2^31 of which belong to 2^45 codes; the group's
part of the offset of an activation's scales, 2^31 of which belong to 2^38 codes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

import triton.language as tl
from triton.runtime import interpreter

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.latent_pages import pack_fp8
from dstools_kernels.ops.mla_prefill import mla_prefill
from dstools_kernels.ops.router import router
from dstools_kernels.ops.swiglu_quant import swiglu, swiglu_quant
from dstools_kernels.ops.triton import (
    act_quant_triton,
    combine_triton,
    fp8_gemm_triton,
    gemm_triton,
    latent_pages_triton,
    mla_decode_triton,
    mla_merge_triton,
    mla_prefill_triton,
    moe_gemm_triton,
    permute_triton,
    router_triton,
    swiglu_quant_triton,
    weight_dequant_triton,
    weight_quant_triton,
)
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.proof.cases import V3_RULE
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized

ROWS = 2**31 // 512 + 5  # of 512 columns; the last one begins past element 2^31


@contextmanager
def from_program(first: int) -> Iterator[None]:
    """Run a grid as if that many programs were before it."""

    def create_get_program_id(self: Any, axis: int) -> Any:
        handle = original(self, axis)
        return handle if axis else interpreter.TensorHandle(handle.data + np.int32(first), tl.int32)

    builder = interpreter.InterpreterBuilder
    original = builder.create_get_program_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_get_program_id", create_get_program_id)
        yield


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def defined(op: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTOOLS_KERNELS", "reference")
        return op(*arguments)


def far(last: Tensor, rows: int = ROWS) -> Tensor:
    """Return `rows` rows that end in `last`; what is before it is not touched."""
    x = torch.empty(rows, *last.shape[1:], dtype=last.dtype)
    x[-len(last) :] = last
    return x


def codes_equal(codes: Tensor, wanted: Tensor) -> bool:
    return torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))


def multiply_far_rows(module: ModuleType) -> bool:
    """Multiply rows of an expert that are the last of a result of more than 2^31 elements."""
    x, w = far(torch.arange(3).bfloat16()[:, None].expand(3, 16)), torch.ones(1, 512, 16)
    y = module.moe_gemm(x, w.bfloat16(), torch.tensor([ROWS - 3, ROWS], dtype=torch.int32))
    return torch.equal(y[-3:], x[-3:, :1].expand(3, 512) * 16)


def combine_far_row(module: ModuleType) -> bool:
    y, destination = far(normal(1, 512)), torch.tensor([[ROWS - 1]], dtype=torch.int32)
    return torch.equal(module.combine(y, destination, torch.full((1, 1), 2.0), None), y[-1:] * 2)


def write_far_slot(width: int) -> Callable[[ModuleType], bool]:
    """Return a run that writes to the last slot of a pool of rows of 576 numbers or 656 bytes."""

    def write(module: ModuleType) -> bool:
        pages = 2**31 // (64 * width) + 2
        dtype = torch.uint8 if width == 656 else torch.bfloat16
        cache, latent = torch.empty(pages, 64, width, dtype=dtype), normal(1, 576)
        module.write_latents(latent, cache, torch.tensor([pages * 64 - 1]))
        return torch.equal(cache[-1, -1:], pack_fp8(latent) if width == 656 else latent)

    return write


def quantize_far_weight(module: ModuleType) -> bool:
    """Quantize the first block of a weight whose row 127 begins past element 2^31."""
    weight = torch.empty(128, 2**31 // 127 + 1, dtype=torch.bfloat16)
    weight[:, :128] = normal(128, 128)
    codes, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(1, 1)
    module.CONFIGS["weight_quant/bf16"].launch((1, 1), weight, codes, scales, *weight.shape)
    wanted = defined(weight_quant, weight[:, :128])
    return codes_equal(codes[:, :128], wanted.codes) and torch.equal(scales, wanted.scales)


def prefill_far(module: ModuleType) -> bool:
    """Attend from the last 3 of more than 2^31 / 192 new tokens, by one program."""
    tokens, keys = 2**31 // 192 + 4, 5
    q, out = far(normal(3, 1, 192), tokens), far(normal(3, 1, 128), tokens)
    latents = normal(keys, 1, 128), normal(keys, 64), normal(keys, 1, 128) * 2
    bounds = torch.tensor([tokens - 3, tokens]).int(), torch.tensor([0, keys]).int()
    config = module.CONFIGS["mla_prefill/128x64"]
    config.launch((1, 1), q, *latents, *bounds, out, 0.1, tokens, keys, 1, 1)
    new = torch.tensor([0, 3]).int()
    wanted = defined(mla_prefill, q[-3:], *latents, new, bounds[1], 0.1).double()
    return bool((out[-3:] - wanted).norm() < 2**-8 * wanted.norm())


def multiply_far_head(module: ModuleType) -> bool:
    """Multiply two heads whose weights are 2^31 elements apart: a stride, of 64 bits by L5."""
    step = 2**31 + 64
    w = torch.empty(step + 64, dtype=torch.bfloat16).as_strided((2, 8, 8), (step, 8, 1))
    w[:] = torch.arange(8)
    y = module.gemm(torch.ones(2, 3, 8, dtype=torch.bfloat16), w, torch.bfloat16)
    return bool((y == sum(range(8))).all())


def gather_far(module: ModuleType) -> bool:
    """Quantize one far row by a list of rows."""
    x, rows = far(normal(1, 512)), torch.tensor([ROWS - 1], dtype=torch.int32)
    codes, _ = module.act_quant(x, "float32", rows, False)
    return codes_equal(codes, defined(act_quant, x[-1:]).codes)


def quantize_far(module: ModuleType) -> bool:
    """Quantize the first group of the last rows."""
    x, codes = far(normal(5, 512)), torch.empty(ROWS, 512, dtype=torch.float8_e4m3fn)
    with from_program(ROWS // 16):
        sizes = ROWS, ROWS, 512, 4, 1
        config = module.CONFIGS["act_quant/bf16.float32"]
        config.launch((1, 1), x, codes, torch.empty(ROWS, 4), *sizes)
    return codes_equal(codes[-5:, :128], defined(act_quant, x[-5:, :128]).codes)


def swiglu_far(module: ModuleType) -> bool:
    gate, up = far(normal(5, 512)), far(normal(5, 512) * 2)
    codes = torch.empty(ROWS, 512, dtype=torch.float8_e4m3fn)
    with from_program(ROWS // 16):
        tensors = gate, up, codes, torch.empty(4, ROWS)
        module.CONFIGS["swiglu_quant/bf16"].launch((1, 1), *tensors, ROWS, 512)
    wanted = defined(swiglu_quant, gate[-5:, :128], up[-5:, :128])
    return codes_equal(codes[-5:, :128], wanted.codes)


def swiglu_far_row(module: ModuleType) -> bool:
    gate, up, out = far(normal(5, 512)), far(normal(5, 512) * 2), far(normal(5, 512))
    with from_program(ROWS - 1):
        module.CONFIGS["swiglu_quant/plain"].launch((1, 1), gate, up, out, 512)
    return torch.equal(out[-1:], defined(swiglu, gate[-1:], up[-1:]))


def pick_far(module: ModuleType) -> bool:
    x, tokens = far(normal(1, 512)), torch.tensor([ROWS - 1], dtype=torch.int32)
    return torch.equal(module.gather(x, tokens), x[-1:])


def pick_for_far_row(module: ModuleType) -> bool:
    x, out = normal(1, 512), far(normal(1, 512))
    with from_program(ROWS - 1):
        tokens = torch.zeros(ROWS, dtype=torch.int32)
        module.CONFIGS["permute/gather"].launch((1, 1), x, tokens, out, 1, 512)
    return torch.equal(out[-1:], x)


def dequantize_far(module: ModuleType) -> bool:
    codes = far(normal(5, 512).to(torch.float8_e4m3fn))
    scales, out = torch.full((-(-ROWS // 128), 4), 2.0), far(normal(5, 512))
    with from_program(ROWS // 128):
        module.CONFIGS["weight_dequant/bf16"].launch((1, 4), codes, scales, out, ROWS, 512)
    return torch.equal(out[-5:], codes[-5:].bfloat16() * 2)


def route_far(module: ModuleType) -> bool:
    (experts, rule), tokens = V3_RULE, 2**31 // 256 + 1
    logits, bias = far(normal(1, experts).float(), tokens), torch.zeros(experts)
    ids, weights = torch.empty(tokens, 8, dtype=torch.int32), torch.empty(tokens, 8)
    with from_program(tokens - 1):
        config = module.CONFIGS["router/v3"]
        config.launch((1,), logits, ids, weights, tokens, rule.scale, bias)
    wanted = defined(router, logits[-1:], bias, rule).ids
    return torch.equal(ids[-1].sort()[0], wanted[0].sort()[0])


def combine_far(module: ModuleType) -> bool:
    y, out = normal(1, 512), torch.empty(ROWS, 512, dtype=torch.bfloat16)
    tensors = y, far(torch.zeros(1, 1, dtype=torch.int32)), far(torch.full((1, 1), 2.0)), out
    with from_program(ROWS - 1):
        module.CONFIGS["combine/bf16"].launch((1, 1), *tensors, 512, SLOTS=1)
    return torch.equal(out[-1], y[0] * 2)


def write_far(module: ModuleType) -> bool:
    tokens = 2**31 // 576 + 2
    latents, pool = far(normal(1, 576), tokens), torch.zeros(1, 64, 576, dtype=torch.bfloat16)
    with from_program(tokens - 1):
        slots = far(torch.tensor([3]), tokens)
        module.CONFIGS["latent_pages/bf16"].launch((1,), latents, pool, slots, 64)
    return torch.equal(pool[0, 3], latents[-1])


def merge_far(module: ModuleType) -> bool:
    partial, lse, out = torch.full((1, 1, 512), 3.0), torch.zeros(1, 1), far(normal(1, 1, 512))
    offsets = far(torch.tensor([0, 1], dtype=torch.int32), ROWS + 1)
    with from_program(ROWS - 1):
        module.CONFIGS["mla_merge/512"].launch((1,), partial, lse, offsets, out, 1, 1)
    return bool((out[-1] == 3).all())


def decode_far(where: str) -> Callable[[ModuleType], bool]:
    """Return a run of one token, of 128 heads, that is far in one tensor: "q", "table", "partial".

    `mla_decode` itself keeps queries and partial outputs below 2^30 bytes; other launchers may not.
    """

    def decode(module: ModuleType) -> bool:
        q, pool = normal(1, 128, 576), normal(1, 64, 576)
        tokens = 2**31 // (128 * 576) + 2 if where == "q" else 1
        width = 2**20 if where == "table" else 1
        capacity = 2**31 // (128 * 512) + 2 if where == "partial" else 1
        # narrower types than in the signature take less memory
        table = torch.empty(2**31 // width + 1 if width > 1 else 1, width, dtype=torch.int16)
        table[-1, 0] = 0
        plan = (
            far(torch.tensor([n], dtype=torch.int32), tokens)
            for n in (len(table) - 1, 60, capacity - 1)
        )
        partial = torch.empty(capacity, 128, 512, dtype=torch.bfloat16)
        lse = torch.empty(capacity, 128)
        tensors = far(q, tokens), pool, table, *plan, partial, lse
        with from_program(2 * (tokens - 1)):
            config = module.CONFIGS["mla_decode/bf16.128x32"]
            config.launch((2, 1), *tensors, 0.1, 128, 1, width, 64, capacity)
        seen = pool[0, :60].double()
        wanted = torch.softmax(q[0].double() @ seen.T * 0.1, -1) @ seen[:, :512]
        return bool((partial[-1] - wanted).norm() < 2**-7 * wanted.norm())

    return decode


def far_scales() -> tuple[Quantized, Quantized]:
    """Return operands whose fifth row has its scales 2^31 elements after the first's.

    They are in BF16, which takes less memory.
    """
    step = 2**29 + 16
    scales = torch.empty(4 * step + 1, dtype=torch.bfloat16).as_strided((5, 1), (step, 1))
    scales[:] = 2.0 ** torch.arange(5)[:, None]
    codes = (normal(n, 128).to(torch.float8_e4m3fn) for n in (5, 16))
    return Quantized(next(codes), scales), Quantized(next(codes), torch.ones(1, 1))


def multiply_far_scales(module: ModuleType) -> bool:
    x, w = far_scales()
    y = torch.empty(5, 16)
    config = module.CONFIGS["fp8_gemm/64x128x128.w4.s5.fp32"]
    config.launch((1,), *x, *w, y, 5, 16, 128, 1, row_step=x.scales.stride(0))
    return torch.allclose(y, x.codes.float() @ w.codes.float().T * x.scales)


def multiply_far_scales_of_experts(module: ModuleType) -> bool:
    x, w = far_scales()
    stack = Quantized(w.codes[None], w.scales[None])
    y = module.moe_gemm(x, stack, torch.tensor([0, 5], dtype=torch.int32))
    wanted = (x.codes.double() @ w.codes.double().T * x.scales).bfloat16()
    return int((y != wanted).sum()) <= 1


def multiply_far_expert(dtype: torch.dtype) -> Callable[[ModuleType], bool]:
    """Return a run of rows of the last of 8193 experts, 2^31 elements from the first."""

    def multiply(module: ModuleType) -> bool:
        experts, size = 8193, 512
        w = torch.empty(experts, size, size, dtype=dtype)
        w[-1] = normal(size, size).to(dtype)
        x, offsets = normal(2, size).to(dtype), torch.zeros(experts + 1, dtype=torch.int32)
        offsets[-1] = 2
        if dtype == torch.bfloat16:
            y = module.moe_gemm(x, w, offsets)
        else:
            scales = torch.ones(2, 4), torch.ones(experts, 4, 4)
            y = module.moe_gemm(Quantized(x, scales[0]), Quantized(w, scales[1]), offsets)
        return int((y != (x.double() @ w[-1].double().T).bfloat16()).sum()) <= 1

    return multiply


def by_hand(after: str) -> tuple[str, str]:
    """Return a mutation of an expert's tile, `after` it in the source: its offset in 32 bits.

    That of the kernel is the descriptor's, in 64 bits.
    """
    whole = f"w.load([expert, n, k]).reshape(BLOCK_N, BLOCK_K)\n            {after}"
    base = "w_ptr + expert * w_expert.to(tl.int32)"
    part = f"tl.make_tensor_descriptor({base}, [N, K], [K, 1], [BLOCK_N, BLOCK_K]).load([n, k])"
    return whole, f"{part}\n            {after}"


PROGRAM = "tl.program_id(0).to(tl.int64)"
SLOT = "slot = tl.load(slots_ptr + token)"
W_BATCH = "[B, N, K], [w_batch, w_row, 1]"
FAR: list[tuple[ModuleType, Callable[[ModuleType], bool], str, str]] = [
    (moe_gemm_triton, multiply_far_rows, "rows[:, None].to(tl.int64) * N", "rows[:, None] * N"),
    (combine_triton, combine_far_row, "slot).to(tl.int64)", "slot)"),
    (latent_pages_triton, write_far_slot(576), SLOT, f"{SLOT}.to(tl.int32)"),
    (latent_pages_triton, write_far_slot(656), SLOT, f"{SLOT}.to(tl.int32)"),
    (weight_quant_triton, quantize_far_weight, f"row = {PROGRAM}", "row = tl.program_id(0)"),
    (mla_prefill_triton, prefill_far, "(begin + m)[:, None].to(tl.int64)", "(begin + m)[:, None]"),
    (gemm_triton, multiply_far_head, W_BATCH, W_BATCH.replace("h,", "h.to(tl.int32),")),
    (act_quant_triton, gather_far, "other=-1).to(tl.int64)", "other=-1)"),
    (act_quant_triton, quantize_far, PROGRAM, "tl.program_id(0)"),
    (swiglu_quant_triton, swiglu_far, f"row = {PROGRAM}", "row = tl.program_id(0)"),
    (swiglu_quant_triton, swiglu_far_row, f"at = {PROGRAM}", "at = tl.program_id(0)"),
    (permute_triton, pick_far, "tokens_ptr + row).to(tl.int64)", "tokens_ptr + row)"),
    (permute_triton, pick_for_far_row, PROGRAM, "tl.program_id(0)"),
    (weight_dequant_triton, dequantize_far, f"row = {PROGRAM}", "row = tl.program_id(0)"),
    (router_triton, route_far, "None, None].to(tl.int64)", "None, None]"),
    (combine_triton, combine_far, PROGRAM, "tl.program_id(0)"),
    (latent_pages_triton, write_far, PROGRAM, "tl.program_id(0)"),
    (mla_merge_triton, merge_far, PROGRAM, "tl.program_id(0)"),
    (mla_decode_triton, decode_far("q"), "token.to(tl.int64)", "token"),
    (mla_decode_triton, decode_far("table"), "+ token).to(tl.int64)", "+ token)"),
    (mla_decode_triton, decode_far("partial"), "slot.to(tl.int64)", "slot"),
    (fp8_gemm_triton, multiply_far_scales, "rows.to(tl.int64)", "rows"),
    (moe_gemm_triton, multiply_far_scales_of_experts, "rows.to(tl.int64)", "rows"),
    (moe_gemm_triton, multiply_far_expert(torch.float8_e4m3fn), *by_hand("total += ")),
    (moe_gemm_triton, multiply_far_expert(torch.bfloat16), *by_hand("total = ")),
]


@pytest.mark.parametrize(
    ("module", "run", "old", "new"), FAR, ids=[run.__name__ for _, run, *_ in FAR]
)
def test_what_is_far_is_found_and_a_32_bit_offset_is_caught(
    module: ModuleType, run: Callable[[ModuleType], bool], old: str, new: str, tmp_path: Path
) -> None:
    assert run(module)
    mutant = mutate(module, old, new, tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        run(mutant)
