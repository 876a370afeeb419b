"""Products of block FP8 against float64 on code x scale, on sizes that blocks do not divide."""

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.fp8_gemm import fp8_gemm


def activations(rows: int, depth: int) -> Quantized:
    return act_quant(torch.randn(rows, depth, generator=torch.Generator().manual_seed(rows)))


def weight(rows: int, depth: int) -> Quantized:
    """Return codes and scales that no two blocks share."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randn(rows, depth, generator=generator).to(torch.float8_e4m3fn)
    blocks = -(-rows // 128), -(-depth // 128)
    return Quantized(codes, torch.rand(blocks, generator=generator) + 0.5)


def exact(x: Quantized, w: Quantized) -> Tensor:
    """Return x w' in float64, the scale of each code looked up by its place."""
    rows, depth = torch.arange(len(w.codes)), torch.arange(x.codes.shape[-1])
    scaled = x.codes.double() * x.scales.double()[:, depth // 128]
    grid = w.scales.double()[rows[:, None] // 128, depth[None] // 128]
    return scaled @ (w.codes.double() * grid).T


def test_a_product_by_hand() -> None:
    """Codes 1 and 2 of scale 4, codes 3 and 0.5 of scale 0.25: (3 + 1) x 4 x 0.25 = 4."""
    x = Quantized(torch.tensor([[1.0, 2.0]]).to(torch.float8_e4m3fn), torch.tensor([[4.0]]))
    w = Quantized(torch.tensor([[3.0, 0.5]]).to(torch.float8_e4m3fn), torch.tensor([[0.25]]))
    assert fp8_gemm(x, w, torch.float32).tolist() == [[4.0]]


@pytest.mark.parametrize("columns", [576, 192, 40])
@pytest.mark.parametrize(("rows", "depth"), [(5, 256), (1, 192)])
def test_bf16_is_float64_rounded_once(rows: int, columns: int, depth: int) -> None:
    x, w = activations(rows, depth), weight(columns, depth)
    assert len(w.scales) == -(-columns // 128)
    y = fp8_gemm(x, w)
    assert (y.dtype, y.shape) == (torch.bfloat16, (rows, columns))
    assert (y == exact(x, w).bfloat16()).double().mean() >= 0.99


def test_scales_may_have_any_strides() -> None:
    x, w = activations(5, 256), weight(40, 256)
    transposed = Quantized(x.codes, x.scales.T.contiguous().T)
    assert torch.equal(fp8_gemm(transposed, w), fp8_gemm(x, w))


def test_scales_that_do_not_fit_are_refused() -> None:
    x, w = activations(5, 256), weight(576, 256)
    for bad in (w._replace(scales=w.scales[:4]), weight(576, 128), w._replace(scales=w.scales.T)):
        with pytest.raises(ValueError, match="do not match"):
            fp8_gemm(x, bad)
    with pytest.raises(ValueError, match="do not match"):
        fp8_gemm(x._replace(scales=x.scales[:, :1]), w)
