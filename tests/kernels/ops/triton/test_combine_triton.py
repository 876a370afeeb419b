"""Steps L2 and L3 for the sum over experts: float64, dropped slots, the order of slots."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.triton import combine_triton
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, reported

pytestmark = pytest.mark.usefixtures("watched")


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 10 tokens of 8 slots, of more columns than one program has."""
    generator = torch.Generator().manual_seed(0)
    y, shared = (torch.randn(rows, 1100, generator=generator) for rows in (80, 10))
    destination = torch.randperm(80, generator=generator).int().view(10, 8)
    destination[1], destination[2, 3] = -1, -1
    weights = torch.rand(10, 8, generator=generator)
    return y.to(dtype), destination, weights, shared.to(dtype)


@pytest.mark.parametrize("has_shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_float64_rounded_once(dtype: torch.dtype, has_shared: bool) -> None:
    y, destination, weights, shared = case(dtype)
    parts = y.double()[destination.clamp(min=0).long()] * weights.double()[..., None]
    wanted = parts.where((destination >= 0)[..., None], 0).sum(1)
    wanted += shared.double() if has_shared else 0
    out = combine(y, destination, weights, shared if has_shared else None)
    assert out.dtype == dtype
    error = 18 * 2**-24 * 16  # 9 products and sums, each rounding at most 2^-24 of one below 16
    low, high = ((wanted + sign * error).to(dtype) for sign in (-1, 1))
    assert ((low <= out) & (out <= high)).all()


def test_slots_are_added_in_order() -> None:
    """1 + 2^24 - 2^24 is 0 in float32, where 1 + 2^24 is a tie: only this order gives it."""
    y = torch.tensor([[1.0], [2.0**24], [-(2.0**24)]])
    destination = torch.tensor([[0, 1, 2], [1, 2, 0]], dtype=torch.int32)
    assert combine(y, destination, torch.ones(2, 3), None).tolist() == [[0.0], [1.0]]


def test_a_dropped_slot_does_not_matter_nan_or_not() -> None:
    y = torch.full((1, 2), math.nan)
    destination = torch.tensor([[-1, -1], [0, -1]], dtype=torch.int32)
    weights = torch.tensor([[math.nan, 1.0], [1.0, math.nan]])
    out = combine(y, destination, weights, torch.ones(2, 2))
    assert out[0].tolist() == [1.0, 1.0]
    assert out[1].isnan().all(), "a row of NaN that was chosen reaches the output"


def test_no_token_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(combine_triton, "CONFIGS")
    y, destination, weights, _ = case(torch.bfloat16)
    assert combine(y, destination[:0], weights[:0], None).shape == (0, 1100)


def test_f16_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(combine_triton, "combine")
    assert combine(*case(torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("old", "new"),
    [("tl.where(row >= 0, D, 0)", "D"), ("+ slot).to(tl.int64)", "+ slot).to(tl.int64) + 1")],
    ids=["a dropped slot is read", "the next row"],
)
def test_the_sanitizer_catches_a_mutant(old: str, new: str, tmp_path: Path) -> None:
    y, destination, weights, _ = case(torch.bfloat16)
    destination[0], destination[3, 0] = -1, 79
    mutant = mutate(combine_triton, old, new, tmp_path)
    with pytest.raises(OutOfBounds), reported():
        mutant.combine(y, destination, weights, None)


def test_a_dropped_slot_that_is_weighed_is_caught(tmp_path: Path) -> None:
    old = "tl.where(row >= 0, tl.load(weights_ptr + token * SLOTS + slot), 0.0)"
    mutant = mutate(combine_triton, old, "tl.load(weights_ptr + token * SLOTS + slot)", tmp_path)
    destination, weights = torch.tensor([[0, -1]]).int(), torch.tensor([[1.0, math.nan]])
    y = torch.ones(1, 2)
    assert combine(y, destination, weights, None).tolist() == [[1.0, 1.0]]
    assert mutant.combine(y, destination, weights, None).isnan().all()
