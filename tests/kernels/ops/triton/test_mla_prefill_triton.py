"""The twin of `mla_prefill`, interpreted: float64, neighbours of NaN, mutants."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.mla_prefill import mla_prefill
from dstools_kernels.ops.triton import mla_prefill_triton as twin
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized

Make = Callable[..., Any]

BOUND = 2**-8  # shares and output are rounded to BF16, by 2^-9 of each at most


@pytest.mark.parametrize(
    ("queries", "keys", "heads"),
    [
        ([1, 70, 0, 33], [9, 70, 0, 161], 2),
        ([128, 129], [128, 200], 1),  # a tile, and one token more
        ([3], [65], 5),
        ([0, 0, 2], [5, 0, 2], 2),
        ([1, *[0] * 64, 2], [2] * 66, 1),  # more rows than are looked up at a time
    ],
)
def test_ragged_rows_over_a_prefix_equal_float64_without_stray_accesses(
    prefill_case: Make, queries: list[int], keys: list[int], heads: int
) -> None:
    case = prefill_case(queries, keys, heads=heads)
    with sanitized():
        out = mla_prefill(*case[:-1])
    assert case.error(out) < BOUND


def test_tokens_before_the_first_key_give_0(prefill_case: Make) -> None:
    case = prefill_case([4, 2, 1], [2, 0, 1])
    out = mla_prefill(*case[:-1])
    assert not out[:2].any()
    assert not out[4:6].any()
    assert case.error(out) < BOUND


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
def test_what_a_row_holds_does_not_reach_another(prefill_case: Make) -> None:
    case = prefill_case([5, 6, 7], [9, 8, 7])
    out = mla_prefill(*case[:-1])
    for x in (case.k_nope, case.k_rope, case.v):
        x[9:17] = math.nan
    again = mla_prefill(*case[:-1])
    assert torch.equal(again[:5], out[:5])
    assert torch.equal(again[11:], out[11:])
    assert again[5:11].isnan().all()


def test_a_row_has_the_same_bits_alone(prefill_case: Make) -> None:
    case = prefill_case([5, 150, 7], [9, 200, 7])
    out = mla_prefill(*case[:-1])[5:155]
    alone = mla_prefill(
        case.q[5:155], case.k_nope[9:209], case.k_rope[9:209], case.v[9:209],
        torch.tensor([0, 150], dtype=torch.int32), torch.tensor([0, 200], dtype=torch.int32),
        case.scale,
    )  # fmt: skip
    assert torch.equal(alone, out)


@pytest.mark.parametrize("name", ["cumulative_q", "cumulative_k"])
@pytest.mark.parametrize("garbage", [-5, 10_000, 2**31 - 1])
def test_bounds_out_of_range_read_nothing_foreign(
    prefill_case: Make, name: str, garbage: int
) -> None:
    case = prefill_case([5, 6], [9, 8])
    getattr(case, name)[1:] = garbage
    with sanitized():
        mla_prefill(*case[:-1])


def test_no_tokens_or_keys_launch_nothing(prefill_case: Make) -> None:
    case = prefill_case([0], [0])
    assert mla_prefill(*case[:-1]).shape == (0, 2, 128)
    case = prefill_case([2], [0])
    assert not mla_prefill(*case[:-1]).any()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k_end - k_begin - (end - begin) + m", "k_end - k_begin - (end - begin) + m - 1"),
        ("<= last[:, None]", "<= last[:, None] + 1"),
        ("v_ptr, [k_end, width]", "v_ptr, [keys, width]"),
        ("q_row + 128", "q_row + 120"),
        ("k_rope.load([k_begin + n, 0])", "k_rope.load([n, 0])"),
    ],
)
def test_a_mutant_is_away_from_float64(
    prefill_case: Make, old: str, new: str, tmp_path: Path
) -> None:
    mutant = mutate(twin, old, new, tmp_path)
    case = prefill_case([1, 20], [9, 180])
    for x in (case.k_nope, case.k_rope, case.v):  # a row after these, that no query is of
        x.resize_(200, *x.shape[1:])[189:] = math.nan
    assert case.error(twin.mla_prefill(*case[:-1])) < BOUND
    assert not case.error(mutant.mla_prefill(*case[:-1])) < BOUND


def test_the_sanitizer_catches_a_missing_mask(prefill_case: Make, tmp_path: Path) -> None:
    mutant = mutate(
        twin, "(begin + m < end)[:, None]", "(begin + m < end + 128)[:, None]", tmp_path
    )
    case = prefill_case([5, 6], [9, 8])
    with pytest.raises(OutOfBounds), sanitized():
        mutant.mla_prefill(*case[:-1])
