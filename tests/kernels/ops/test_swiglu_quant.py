"""SwiGLU with quantization: its definition, by hand and against float64."""

import math

import pytest
import torch

from dstools_kernels.ops.act_quant import act_quant
from dstools_kernels.ops.swiglu_quant import swiglu, swiglu_quant


def test_codes_by_hand() -> None:
    """silu(0) = 0; silu(large) x 1 = large: amax 448 gives the scale 1, and codes as they are."""
    gate, up = torch.tensor([[0.0, 448.0, 100.0]]), torch.tensor([[5.0, 1.0, -1.0]])
    codes, scales = swiglu_quant(gate, up)
    assert scales.tolist() == [[1.0]]
    assert codes.float().tolist() == [[0.0, 448.0, -96.0]]  # 100 is between 96 and 104, 96 is even


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_product_is_rounded_once_to_the_dtype(dtype: torch.dtype) -> None:
    """float32 is off by some 2^-23, and a middle between two BF16 is that near once in 10,000."""
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 40, 300, generator=generator).to(dtype)
    exact = gate.double() * torch.sigmoid(gate.double()) * up.double()
    ours, wanted = swiglu_quant(gate, up), act_quant(exact.to(dtype))
    assert ours.scales.shape == (40, 3)
    assert (ours.codes.view(torch.uint8) == wanted.codes.view(torch.uint8)).double().mean() > 0.999
    assert torch.allclose(ours.scales, wanted.scales, rtol=2**-7, atol=0)


def test_what_is_not_finite_fills_its_group_and_large_gates_do_not() -> None:
    gate, up = torch.ones(2, 256), torch.ones(2, 256)
    gate[0, 0], up[1, 200] = math.nan, math.inf
    gate[0, 200], gate[1, 0] = -1e4, 1e4
    codes, scales = swiglu_quant(gate, up)
    assert torch.equal(scales.isfinite(), torch.tensor([[False, True], [True, False]]))
    assert codes[0, :128].isnan().all()
    assert codes[0, 200].float() == 0
    assert scales[1, 0] == 1e4 / 448


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_quantized_is_the_plain_product(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain, ours = act_quant(swiglu(gate, up)), swiglu_quant(gate, up)
    assert swiglu(gate, up).dtype == dtype
    assert torch.equal(plain.codes.view(torch.uint8), ours.codes.view(torch.uint8))
    assert torch.equal(plain.scales, ours.scales)


def test_no_rows_give_no_rows() -> None:
    codes, scales = swiglu_quant(torch.zeros(0, 256), torch.zeros(0, 256))
    assert (codes.shape, scales.shape) == ((0, 256), (0, 2))


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape and dtype, got torch\.float32 \[2, 4\] and"):
        swiglu_quant(torch.zeros(2, 4), torch.zeros(2, 5))
    for op in (swiglu_quant, swiglu):
        with pytest.raises(ValueError, match=r"and torch\.bfloat16 \[2, 4\]"):
            op(torch.zeros(2, 4), torch.zeros(2, 4).bfloat16())
