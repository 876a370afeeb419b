"""Offsets past 2^31 elements, on virtual memory: what is not touched costs nothing.

A mutant with 32-bit offsets would read or write anywhere, so that it runs under the sanitizer.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.triton import combine_triton, moe_gemm_triton
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


def far_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


def far_row() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
