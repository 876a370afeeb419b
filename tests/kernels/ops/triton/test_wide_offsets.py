"""Offsets past 2^31 elements, on virtual memory: what is not touched costs nothing."""

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.moe_gemm import moe_gemm


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


def test_far_rows_of_experts_are_written() -> None:
    """The result has more than 2^31 elements, of which only the last rows belong to an expert."""
    rows, columns = 2**31 // 512 + 5, 512
    x = torch.empty(rows, 16, dtype=torch.bfloat16)
    x[-3:] = torch.arange(3)[:, None]
    w = torch.ones(1, columns, 16, dtype=torch.bfloat16)
    y = moe_gemm(x, w, torch.tensor([rows - 3, rows], dtype=torch.int32))
    assert torch.equal(y[-3:], x[-3:, :1].expand(3, columns) * 16)


def test_a_far_row_is_combined() -> None:
    rows = 2**31 // 512 + 5
    y = torch.empty(rows, 512, dtype=torch.bfloat16)
    y[-1] = torch.arange(512)
    destination = torch.tensor([[rows - 1]], dtype=torch.int32)
    assert torch.equal(combine(y, destination, torch.full((1, 1), 2.0), None)[0], y[-1] * 2)
