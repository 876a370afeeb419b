"""Offsets past 2^31 elements, on virtual memory: what is not touched costs nothing.

A mutant with 32-bit offsets would read or write anywhere, so that it runs under the sanitizer.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.latent_pages import pack_fp8, write_latents
from dstools_kernels.ops.mla_prefill import mla_prefill
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.triton import (
    combine_triton,
    gemm_triton,
    latent_pages_triton,
    mla_prefill_triton,
    moe_gemm_triton,
    weight_quant_triton,
)
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized


def test_the_rows_of_a_far_expert_are_multiplied_by_its_weight() -> None:
    """The last of 8193 experts begins 2^31 elements from the first."""
    experts, columns, depth = 8193, 512, 512
    codes = torch.empty(experts * columns * depth, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes.view(experts, columns, depth)
    generator = torch.Generator().manual_seed(0)
    codes[-1] = torch.randn(columns, depth, generator=generator).to(torch.float8_e4m3fn)
    x = torch.randn(2, depth, generator=generator).to(torch.float8_e4m3fn)
    offsets = torch.zeros(experts + 1, dtype=torch.int32)
    offsets[-1] = 2
    scales = torch.ones(2, 4), torch.ones(experts, 4, 4)
    y = moe_gemm(Quantized(x, scales[0]), Quantized(codes, scales[1]), offsets)
    wanted = (x.double() @ codes[-1].double().T).bfloat16()
    assert (y != wanted).sum() <= 1


def far_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Return operands of a result of more than 2^31 elements, whose last 3 rows have an expert."""
    rows, columns = 2**31 // 512 + 5, 512
    x = torch.empty(rows, 16, dtype=torch.bfloat16)
    x[-3:] = torch.arange(3)[:, None]
    w = torch.ones(1, columns, 16, dtype=torch.bfloat16)
    return x, w, torch.tensor([rows - 3, rows], dtype=torch.int32)


def test_far_rows_of_experts_are_written() -> None:
    x, w, offsets = far_rows()
    assert torch.equal(moe_gemm(x, w, offsets)[-3:], x[-3:, :1].expand(3, 512) * 16)


def test_a_32_bit_offset_of_a_row_of_an_expert_is_caught(tmp_path: Path) -> None:
    mutant = mutate(
        moe_gemm_triton, "rows[:, None].to(tl.int64) * N", "rows[:, None] * N", tmp_path
    )
    with pytest.raises(OutOfBounds), sanitized():
        mutant.moe_gemm(*far_rows())


def far_row() -> tuple[Tensor, Tensor, Tensor]:
    rows = 2**31 // 512 + 5
    y = torch.empty(rows, 512, dtype=torch.bfloat16)
    y[-1] = torch.arange(512)
    return y, torch.tensor([[rows - 1]], dtype=torch.int32), torch.full((1, 1), 2.0)


def test_a_far_row_is_combined() -> None:
    y, destination, weights = far_row()
    assert torch.equal(combine(y, destination, weights, None)[0], y[-1] * 2)


def test_a_32_bit_offset_of_a_row_to_combine_is_caught(tmp_path: Path) -> None:
    mutant = mutate(combine_triton, "slot).to(tl.int64)", "slot)", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.combine(*far_row(), None)


def far_slot(is_fp8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, a pool of more than 2^31 elements and the pool's last slot."""
    width = 656 if is_fp8 else 576
    pages = 2**31 // (64 * width) + 2
    cache = torch.empty(pages, 64, width, dtype=torch.uint8 if is_fp8 else torch.bfloat16)
    latent = torch.randn(1, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    return latent, cache, torch.tensor([pages * 64 - 1])


@pytest.mark.parametrize("is_fp8", [False, True])
def test_a_far_latent_is_written(is_fp8: bool) -> None:
    latent, cache, slot = far_slot(is_fp8)
    write_latents(latent, cache, slot)
    assert torch.equal(cache[-1, -1:], pack_fp8(latent) if is_fp8 else latent)


@pytest.mark.parametrize("is_fp8", [False, True])
def test_a_32_bit_offset_of_a_latent_is_caught(is_fp8: bool, tmp_path: Path) -> None:
    load = "slot = tl.load(slots_ptr + token)"
    mutant = mutate(latent_pages_triton, load, f"{load}.to(tl.int32)", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.write_latents(*far_slot(is_fp8))


def far_block() -> Tensor:
    """Return a weight whose row 127 begins past element 2^31; its first 128 columns are normal."""
    weight = torch.empty(128, 2**31 // 127 + 1, dtype=torch.bfloat16)
    weight[:, :128] = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    return weight


def quantize_first_block(module: ModuleType, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Run one program alone: all of them would take hours."""
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(1, 1)
    config = module.CONFIGS["weight_quant/bf16"]
    config.launch((1, 1), weight, codes, scales, *weight.shape)
    return codes[:, :128], scales


def test_a_far_row_of_a_weight_is_quantized(by_definition: Callable[..., Any]) -> None:
    weight = far_block()
    codes, scales = quantize_first_block(weight_quant_triton, weight)
    wanted = by_definition(weight_quant, weight[:, :128])
    assert torch.equal(codes.view(torch.uint8), wanted.codes.view(torch.uint8))
    assert torch.equal(scales, wanted.scales)


def test_a_32_bit_offset_of_a_row_of_a_weight_is_caught(tmp_path: Path) -> None:
    old = "row = tl.program_id(0).to(tl.int64)"
    mutant = mutate(weight_quant_triton, old, "row = tl.program_id(0)", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        quantize_first_block(mutant, far_block())


def attend_far(module: ModuleType) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the output of the last 3 of more than 2^31 / 192 new tokens, by one program alone.

    Also returns the arguments of `mla_prefill` for these alone.
    """
    tokens, keys = 2**31 // 192 + 4, 5
    draw = torch.Generator().manual_seed(0)
    q = torch.empty(tokens, 1, 192, dtype=torch.bfloat16)
    q[-3:] = torch.randn(3, 1, 192, generator=draw)
    shapes = ((keys, 1, 128), (keys, 64), (keys, 1, 128))
    latents = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
    bounds = torch.tensor([tokens - 3, tokens]).int(), torch.tensor([0, keys]).int()
    out = torch.empty(tokens, 1, 128, dtype=torch.bfloat16)
    config = module.CONFIGS["mla_prefill/128x64"]
    config.launch((1, 1), q, *latents, *bounds, out, 0.1, tokens, keys, 1, 1)
    return out[-3:], (q[-3:], *latents, torch.tensor([0, 3]).int(), bounds[1], 0.1)


def test_far_tokens_attend(by_definition: Callable[..., Any]) -> None:
    out, arguments = attend_far(mla_prefill_triton)
    wanted = by_definition(mla_prefill, *arguments).double()
    assert (out - wanted).norm() < 2**-8 * wanted.norm()


def test_a_32_bit_offset_of_a_token_is_caught(tmp_path: Path) -> None:
    old = "(begin + m)[:, None].to(tl.int64)"
    mutant = mutate(mla_prefill_triton, old, "(begin + m)[:, None]", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        attend_far(mutant)


def far_head() -> tuple[Tensor, Tensor]:
    """Return operands whose second head has its weight 2^31 elements after the first's."""
    step = 2**31 + 64
    w = torch.empty(step + 64, dtype=torch.bfloat16).as_strided((2, 8, 8), (step, 8, 1))
    w[:] = torch.arange(8)
    return torch.ones(2, 3, 8, dtype=torch.bfloat16), w


def test_a_far_head_is_multiplied() -> None:
    assert (gemm(*far_head()) == sum(range(8))).all()


def test_a_32_bit_offset_of_a_head_is_caught(tmp_path: Path) -> None:
    """Offsets are those of descriptors, by strides of 64 bits; L5 keeps the type of the stride."""
    old, new = "[B, N, K], [w_batch, w_row, 1]", "[B, N, K], [w_batch.to(tl.int32), w_row, 1]"
    mutant = mutate(gemm_triton, old, new, tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.gemm(*far_head(), torch.bfloat16)
