"""Products are those of nn.Linear, or of codes and scales; experts get their own rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.runtime.products import Product, Stack, Weight, swiglu, use_ops
from dstools_kernels.fp8 import ScaleFormat
from dstools_kernels.ops.act_quant import rounded
from dstools_kernels.ops.weight_dequant import weight_dequant
from dstools_kernels.ops.weight_quant import weight_quant


def in_fp8(module: Weight) -> Tensor:
    """Quantize a weight [N, K] or [E, N, K] in place; return what its codes stand for."""
    weight = module.weight.data
    parts = [weight_quant(part) for part in weight.view(-1, *weight.shape[-2:])]
    codes, scales = (
        torch.stack(side).view(*weight.shape[:-2], *side[0].shape)
        for side in zip(*parts, strict=True)
    )
    module.weight, module.scales = nn.Parameter(codes, requires_grad=False), scales
    assert module.quantized is not None
    return torch.stack([weight_dequant(*part, torch.float32) for part in parts]).view(weight.shape)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_linear_map_it_replaces(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 136, bias=bias), nn.Tanh(), nn.Linear(136, 8, bias=bias))
    x = torch.randn(2, 3, 200)
    wanted = model(x)
    use_ops(model)
    assert isinstance(model[0], Product)
    assert isinstance(model[2], Product)
    assert torch.allclose(model(x), wanted, rtol=0, atol=1e-6)  # sums of 200 in another order


def test_an_fp8_product_is_of_rounded_inputs_and_code_times_scale() -> None:
    torch.manual_seed(0)
    product = Product(nn.Linear(200, 136))
    weight, x = in_fp8(product), torch.randn(5, 200)
    wanted = F.linear(rounded(x), weight, product.bias)
    assert (product(x) - wanted).abs().max() < 1e-5  # sums of 200 in another order
    assert (product(x) - F.linear(x, weight, product.bias)).abs().max() > 1e-3


@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
def test_experts_round_their_inputs_and_what_is_between_their_products(
    scale_format: ScaleFormat,
) -> None:
    """Sums in another order move few BF16 numbers by 2^-8, and few codes by a step.

    Both are far below 2^-8 of the norm; scales of the other format are 2^-6 off.
    """
    torch.manual_seed(0)
    gate, up, down = (
        Stack(torch.randn(shape) / 8) for shape in [(1, 40, 200)] * 2 + [(1, 200, 40)]
    )
    weights = [in_fp8(stack)[0] for stack in (gate, up, down)]
    for stack in (gate, up, down):
        stack.scale_format = scale_format
    x, rows = torch.randn(6, 200), torch.tensor([5, 0, 0, 3]).int()
    found = swiglu(x, rows, torch.tensor([0, 4]).int(), gate, up, down)
    g, u = ((rounded(x[rows], scale_format) @ w.T).bfloat16().float() for w in weights[:2])
    inner = rounded((F.silu(g) * u).bfloat16(), scale_format)
    wanted = (inner @ weights[2].T).bfloat16()
    assert found.dtype == torch.float32
    assert (found - wanted).norm() <= 2**-8 * wanted.norm()


@pytest.mark.parametrize("is_fp8", [False, True])
def test_each_expert_multiplies_its_own_rows(is_fp8: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if is_fp8 else torch.float32
    shapes = [(3, 40, 64), (3, 40, 64), (3, 64, 40)]
    gate, up, down = (Stack(torch.randn(shape) / 8) for shape in shapes)
    weights = [in_fp8(s) if is_fp8 else s.weight for s in (gate, up, down)]
    x = torch.randn(4, 64).to(dtype)
    rows, offsets = torch.tensor([3, 0, 1, 2, 0]).int(), torch.tensor([0, 2, 2, 5]).int()
    found = swiglu(x, rows, offsets, gate, up, down)
    assert found.dtype == dtype
    for at, (row, expert) in enumerate(zip(rows.tolist(), [0, 0, 2, 2, 2], strict=True)):
        g, u = (x[row].float() @ w[expert].T for w in weights[:2])
        wanted = (F.silu(g) * u) @ weights[2][expert].T
        # FP8 rounds inputs by 2^-4 at most, most by less, and errors of 64 terms cancel in part
        bound = 2**-4 * float(wanted.norm()) if is_fp8 else 1e-5
        assert (found[at] - wanted).norm() < bound
