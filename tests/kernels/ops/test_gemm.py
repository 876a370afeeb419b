"""Products in BF16 and float32 against float64, with and without a batch of heads."""

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.gemm import gemm


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_two_rows_by_hand() -> None:
    x, w = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 4.0]])
    assert gemm(x, w).tolist() == [[11.0], [-4.0]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_bf16_is_float64_rounded_once(shape: tuple[int, ...]) -> None:
    x, w = normal(*shape, 5, 96).bfloat16(), normal(*shape, 40, 96).bfloat16()
    exact = x.double() @ w.double().mT
    y = gemm(x, w)
    assert y.dtype == torch.bfloat16
    assert y.shape == (*shape, 5, 40)
    assert (y == exact.bfloat16()).double().mean() >= 0.99
    wide = gemm(x, w, torch.float32)  # 96 products, sums below 64: each addition rounds 2^-24 of it
    assert wide.dtype == torch.float32
    assert (wide - exact).abs().max() <= 96 * 2**-24 * 64


def test_a_weight_may_be_a_view_of_its_transpose() -> None:
    x, w = normal(3, 5, 16), normal(3, 16, 24)
    assert torch.allclose(gemm(x, w.mT), x @ w, rtol=0, atol=1e-5)


def test_misuse_is_refused() -> None:
    x = torch.zeros(2, 8)
    for w in (torch.zeros(3, 9), torch.zeros(1, 3, 8), torch.zeros(3, 8, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="do not match"):
            gemm(x, w)
