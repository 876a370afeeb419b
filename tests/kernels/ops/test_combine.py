"""Weighted sums of experts' rows: by hand, against float64, and without what was dropped."""

import math

import pytest
import torch

from dstools_kernels.ops.combine import combine


def test_two_tokens_by_hand() -> None:
    """Token 0: 10 + 0.5 x 2 + 0.25 x 4 = 12. Token 1: 20 + 3 x 1 = 23, its other slot dropped."""
    y = torch.tensor([[2.0], [1.0], [4.0]])
    destination = torch.tensor([[0, 2], [1, -1]], dtype=torch.int32)
    weights = torch.tensor([[0.5, 0.25], [3.0, 9.0]])
    shared = torch.tensor([[10.0], [20.0]])
    assert combine(y, destination, weights, shared).tolist() == [[12.0], [23.0]]
    assert combine(y, destination, weights, None).tolist() == [[2.0], [3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_float64_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(40, 33, generator=generator).to(dtype)
    shared = torch.randn(10, 33, generator=generator).to(dtype)
    destination = torch.randperm(40, generator=generator).int().view(10, 4)
    weights = torch.rand(10, 4, generator=generator)
    wanted = (y.double()[destination.long()] * weights.double()[..., None]).sum(1) + shared.double()
    total = combine(y, destination, weights, shared)
    assert total.dtype == dtype
    if dtype == torch.float32:  # five terms, each rounding at most 2^-24 of a sum below 16
        assert (total - wanted).abs().max() <= 10 * 2**-24 * 16
    else:
        assert (total == wanted.to(dtype)).double().mean() >= 0.99


def test_a_dropped_slot_does_not_matter_nan_or_not() -> None:
    y = torch.full((1, 2), math.nan)
    destination = torch.tensor([[-1, -1], [0, -1]], dtype=torch.int32)
    weights = torch.tensor([[math.nan, 1.0], [1.0, math.nan]])
    out = combine(y, destination, weights, torch.ones(2, 2))
    assert out[0].tolist() == [1.0, 1.0]
    assert out[1].isnan().all(), "a row of NaN that was chosen reaches the output"


def test_a_rank_without_rows_gives_the_shared_output_or_zeros() -> None:
    y, destination = torch.empty(0, 2), torch.full((3, 2), -1, dtype=torch.int32)
    weights = torch.ones(3, 2)
    assert combine(y, destination, weights, None).tolist() == [[0.0, 0.0]] * 3
    assert combine(y, destination, weights, torch.ones(3, 2)).tolist() == [[1.0, 1.0]] * 3
    assert combine(y, destination[:0], weights[:0], None).shape == (0, 2)


def test_misuse_is_refused() -> None:
    destination, weights = torch.zeros(2, 2, dtype=torch.int32), torch.ones(2, 2)
    for arguments in ((destination, weights[:1], None), (destination, weights, torch.ones(2, 4))):
        with pytest.raises(ValueError, match="do not match y"):
            combine(torch.ones(1, 3), *arguments)
