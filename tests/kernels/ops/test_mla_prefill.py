"""Causal attention over a cached prefix: against float64, row by row."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dstools_kernels.ops import mla_prefill as module
from dstools_kernels.ops.mla_prefill import mla_prefill

Make = Callable[..., Any]


@pytest.mark.parametrize("sizes", [(128, 64, 128), (32, 64, 16)])
def test_ragged_rows_over_a_prefix_equal_float64(
    prefill_case: Make, sizes: tuple[int, int, int]
) -> None:
    """New rows, rows with a prefix, none, and one token: float32 throughout."""
    case = prefill_case(
        *([5, 30, 0, 7, 1], [5, 90, 8, 7, 40]), dtype=torch.float32, heads=3,
        **dict(zip(("nope", "rope", "value"), sizes, strict=True)),
    )  # fmt: skip
    assert case.error(mla_prefill(*case[:-1])) < 2e-6


def test_queries_are_taken_in_slices_so_that_scores_stay_small(
    prefill_case: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 heads and 90 keys 1,000 scores are those of 3 queries; 30 queries are ten slices."""
    case = prefill_case([5, 30, 0], [5, 90, 8], dtype=torch.float32, heads=3)
    whole = mla_prefill(*case[:-1])
    monkeypatch.setattr(module, "MAX_SCORES", 1000)
    sizes: list[int] = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda x, d: [sizes.append(x.numel()), softmax(x, d)][1]
    )
    sliced = mla_prefill(*case[:-1])
    # sums of 192 products and of 90 shares that are 1 together, in another order
    assert torch.allclose(sliced, whole, rtol=0, atol=1e-5)
    assert case.error(sliced) < 2e-6
    assert (len(sizes), max(sizes)) == (1 + 10 + 1, 3 * 90 * 3)
    monkeypatch.setattr(module, "MAX_SCORES", 1)  # of one query, there are more
    assert torch.allclose(mla_prefill(*case[:-1]), whole, rtol=0, atol=1e-5)


def test_bfloat16_is_rounded_once(prefill_case: Make) -> None:
    case = prefill_case([5, 30], [5, 90])
    assert case.error(mla_prefill(*case[:-1])) < 2**-9


def test_tokens_before_the_first_key_give_0(prefill_case: Make) -> None:
    case = prefill_case([4, 2], [2, 0])
    out = mla_prefill(*case[:-1])
    assert not out[:2].any()
    assert not out[4:].any()
    assert case.error(out) < 2**-9


def test_what_a_row_holds_does_not_reach_another(prefill_case: Make) -> None:
    case = prefill_case([5, 6, 7], [9, 8, 7])
    out = mla_prefill(*case[:-1])
    for x in (case.k_nope, case.k_rope, case.v, case.q):
        keep = x.clone()
        x[9:17] = math.nan if x is not case.q else x[9:17]
        again = mla_prefill(*case[:-1])
        assert torch.equal(again[:5], out[:5])
        assert torch.equal(again[11:], out[11:])
        assert torch.equal(again[5:11].isnan().any(), torch.tensor(x is not case.q))
        x.copy_(keep)


def test_no_tokens(prefill_case: Make) -> None:
    case = prefill_case([0], [0])
    assert mla_prefill(*case[:-1]).shape == (0, 2, 128)


def test_shapes_that_do_not_fit_are_refused(prefill_case: Make) -> None:
    case = prefill_case([3], [3])
    with pytest.raises(ValueError, match=r"got \[3, 2, 192\], \[3, 2, 128\], \[3, 60\]"):
        mla_prefill(case.q, case.k_nope, case.k_rope[:, :60], *case[3:-1])
