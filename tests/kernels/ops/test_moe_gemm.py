"""Grouped products, each expert's rows by its own weight: in float32, BF16 and FP8."""

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.moe_gemm import moe_gemm

OFFSETS = torch.tensor([0, 0, 5, 5, 8, 9, 9], dtype=torch.int32)  # experts 0, 2 and 5 have no rows


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def stack(experts: int, rows: int, depth: int) -> Quantized:
    codes = normal(experts, rows, depth).to(torch.float8_e4m3fn)
    blocks = -(-rows // 128), -(-depth // 128)
    return Quantized(codes, normal(experts, *blocks).abs() + 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [576, 192, 40])
def test_rows_are_multiplied_by_their_experts_weight(columns: int, dtype: torch.dtype) -> None:
    x, w = normal(9, 96).to(dtype), normal(6, columns, 96).to(dtype)
    y = moe_gemm(x, w, OFFSETS)
    assert (y.dtype, y.shape) == (dtype, (9, columns))
    experts = [1] * 5 + [3] * 3 + [4]
    exact = torch.stack([x[row].double() @ w[e].double().T for row, e in enumerate(experts)])
    if dtype == torch.float32:  # 96 products, sums below 64: each addition rounds 2^-24 of it
        assert (y - exact).abs().max() <= 96 * 2**-24 * 64
    else:
        assert (y == exact.bfloat16()).double().mean() >= 0.99


def test_half_of_a_stacked_weight_is_multiplied_where_it_lies() -> None:
    x, both = normal(9, 96), normal(6, 80, 96)
    for half in both.chunk(2, 1):
        assert not half.is_contiguous()
        assert torch.equal(moe_gemm(x, half, OFFSETS), moe_gemm(x, half.contiguous(), OFFSETS))


@pytest.mark.parametrize("columns", [576, 192])
def test_fp8_equals_a_product_for_each_expert(columns: int) -> None:
    x, w = act_quant(normal(9, 192)), stack(6, columns, 192)
    y = moe_gemm(x, w, OFFSETS)
    assert y.dtype == torch.bfloat16
    for expert, rows in ((1, slice(0, 5)), (3, slice(5, 8)), (4, slice(8, 9))):
        part = Quantized(x.codes[rows], x.scales[rows])
        wanted = fp8_gemm(part, Quantized(w.codes[expert], w.scales[expert]))
        assert torch.equal(y[rows], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("columns", "depth"), [(9, 16), (8, 7), (3, 1)])
def test_any_size_and_layout_will_do(columns: int, depth: int, dtype: torch.dtype) -> None:
    """torch's grouped product asks for rows 16 bytes apart; others are multiplied one by one."""
    x, w = normal(9, depth + 1)[:, :depth].to(dtype), normal(6, columns, depth).to(dtype)
    assert x.shape == (9, depth)
    y = moe_gemm(x, w, OFFSETS)
    for expert, rows in ((1, slice(0, 5)), (3, slice(5, 8)), (4, slice(8, 9))):
        wanted = x[rows].double() @ w[expert].double().T
        # two roundings of at most 16 products, whose sums stay below 16
        assert (y[rows] - wanted).abs().max() <= 16 * 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rows", [0, 4])
def test_experts_without_rows_give_none(rows: int) -> None:
    y = moe_gemm(normal(rows, 96), normal(2, 40, 96), torch.zeros(3, dtype=torch.int32))
    assert y.shape == (rows, 40)


def test_without_experts_no_row_is_computed() -> None:
    no_expert = torch.zeros(1, dtype=torch.int32)
    assert moe_gemm(normal(3, 96).bfloat16(), normal(0, 40, 96).bfloat16(), no_expert).shape == (
        3,
        40,
    )


def test_misuse_is_refused() -> None:
    x, w, offsets = normal(4, 128), normal(2, 40, 128), torch.zeros(3, dtype=torch.int32)
    quantized = stack(2, 40, 128)
    for other in (quantized, w.bfloat16()):
        with pytest.raises(ValueError, match="must be of one dtype"):
            moe_gemm(x, other, offsets)
    for arguments in ((x[:, :96], w, offsets), (x, w, offsets[:2])):
        with pytest.raises(ValueError, match="do not match"):
            moe_gemm(*arguments)
    with pytest.raises(ValueError, match="do not match"):
        moe_gemm(act_quant(x), quantized._replace(scales=quantized.scales[:, :0]), offsets)
