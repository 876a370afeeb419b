"""Tests of figures and intervals: golden values, enumeration, and coverage by simulation."""

import math
import random
from collections import Counter
from fractions import Fraction
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstools_distill.evaluation.statistics import (
    maj_at_k,
    over_seeds,
    paired_difference,
    pass_at_k,
    share,
    wilson,
)

# -------------------------------------------------------------------------------------- shares


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 and 0 of 20
    assert wilson(81 / 263, 263) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)
    assert wilson(1, 20) == pytest.approx((1, 1 - 0.1611, 1), abs=5e-5)


def test_one_answer_a_problem_is_wilson_on_the_problems() -> None:
    assert share([1.0] * 81 + [0.0] * 182, 263) == wilson(81 / 263, 263)


def test_answers_that_are_all_alike_count_once() -> None:
    assert share([1.0, 0.0, 1.0, 1.0] * 10, 40 * 64) == wilson(0.75, 40)


def test_answers_that_differ_as_if_by_chance_narrow_the_interval() -> None:
    # means 1/4, 1/2, 3/4: p = 1/2, s^2 = 1/16, s^2 / 3 = 1/48, so n = (1/4) / (1/48) = 12: all 3 x
    # 4
    assert share([0.25, 0.5, 0.75], 12) == pytest.approx(wilson(0.5, 12), abs=1e-12)
    # all equal: less than chance; no more trials than answers
    assert share([0.5, 0.5, 0.49], 12) == pytest.approx(wilson(1.49 / 3, 12), abs=1e-12)


def test_all_right_is_not_a_certainty() -> None:
    assert share([1.0] * 10, 40) == wilson(1.0, 10)


def test_no_problems_have_no_share() -> None:
    with pytest.raises(ValueError, match="no problems"):
        share([], 0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.4, 0.6), (0.9, 1.0)])
def test_share_covers_the_truth_as_often_as_it_says(low: float, high: float) -> None:
    """Problems of different difficulty, drawn anew each time, 4 answers each.

    2000 experiments at 95 % have a standard error of 0.5 points; Wilson's own coverage moves by
    about 2 points around 95 at n = 60. Without the grouping by problem the first case has 84 %.
    """
    rng, covered = random.Random(1), 0
    for _ in range(2000):
        means = []
        for _ in range(60):
            p = rng.uniform(low, high)
            means.append(sum(rng.random() < p for _ in range(4)) / 4)
        interval = share(means, 240)
        covered += interval.low <= (low + high) / 2 <= interval.high
    assert 0.925 <= covered / 2000 <= 0.98


# ------------------------------------------------------------------------------ pass@k, maj@k


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the right one
    assert pass_at_k(5, 2, 3) == 0.9  # 1 of the 10 triples holds none
    assert pass_at_k(3, 0, 3) == 0.0
    assert pass_at_k(3, 1, 3) == 1.0


@pytest.mark.parametrize(("samples", "right", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0)])
def test_pass_at_k_refuses_a_draw_that_is_impossible(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, right, k)


def test_maj_at_k_by_hand() -> None:
    assert maj_at_k(3, [2], 0, 5) == 1.0
    assert maj_at_k(2, [3], 0, 5) == 0.0
    assert maj_at_k(2, [2, 1], 0, 5) == 0.5  # a tie of two
    # RRA RRB RAB RAB: two won, two ties of three
    assert maj_at_k(2, [1, 1], 0, 3) == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert maj_at_k(1, [], 3, 4) == 1.0  # the only vote
    assert maj_at_k(0, [], 3, 3) == 0.0  # nobody votes
    assert maj_at_k(7, [5, 1], 3, 1) == 7 / 16  # of one answer the majority is that answer


@given(
    st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.integers(1, 8)
)
def test_maj_at_k_is_the_mean_over_all_draws(
    right: int, wrong: list[int], silent: int, k: int
) -> None:
    votes = ["right"] * right + [None] * silent
    votes += [str(n) for n, size in enumerate(wrong) for _ in range(size)]
    if k > len(votes):
        with pytest.raises(ValueError, match="maj@"):
            maj_at_k(right, wrong, silent, k)
        return
    won = []
    for draw in combinations(votes, k):
        counts = Counter(vote for vote in draw if vote is not None)
        most = [vote for vote, count in counts.items() if count == max(counts.values())]
        won.append(Fraction("right" in most, max(len(most), 1)))
    assert maj_at_k(right, wrong, silent, k) == float(sum(won) / len(won))


# ----------------------------------------------------------------------------- two models, seeds


def test_a_paired_difference_by_hand() -> None:
    # 10 problems, 4 gained, 1 lost. n = 12, middle 3/12, variance (5 + 1) / 12 - 1/16 = 7/16
    half = 1.959964 * math.sqrt(7 / 16 / 12)
    first, second = [0] * 4 + [1] + [1] * 5, [1] * 4 + [0] + [1] * 5
    assert paired_difference(first, second) == pytest.approx((0.3, 0.25 - half, 0.25 + half), 1e-6)
    assert paired_difference(second, first).value == pytest.approx(-0.3)


def test_a_few_problems_without_a_difference_do_not_prove_that_there_is_none() -> None:
    interval = paired_difference([1, 0, 1], [1, 0, 1])
    assert interval.value == 0
    assert interval.low < -0.3
    assert interval.high > 0.3


def test_a_difference_stays_between_minus_one_and_one() -> None:
    assert paired_difference([0], [1]).high == 1.0


@pytest.mark.parametrize("sizes", [(0, 0), (2, 3)])
def test_a_difference_needs_the_same_problems(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="problems"):
        paired_difference([0.0] * sizes[0], [0.0] * sizes[1])


def test_a_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    """80 problems that a first model solves with p, a second one with p + 0.1, with the same luck.

    Pairs that go together: an interval for independent ones would cover nearly always.
    """
    rng, covered = random.Random(2), 0
    for _ in range(2000):
        luck = [rng.random() for _ in range(80)]
        first = [float(x < 0.5) for x in luck]
        second = [float(x < 0.55) if rng.random() < 0.9 else 1.0 for x in luck]
        truth = 0.9 * 0.55 + 0.1 - 0.5
        interval = paired_difference(first, second)
        covered += interval.low <= truth <= interval.high
    assert 0.925 <= covered / 2000 <= 0.98


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423)]
)
def test_the_interval_over_seeds_is_the_tables_of_students_t(degrees: int, quantile: float) -> None:
    values = [0.0, 1.0] + [0.5] * (degrees - 1)  # standard deviation sqrt(1 / 2 / degrees)
    half = quantile * math.sqrt(0.5 / degrees / (degrees + 1))
    assert over_seeds(values) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=5e-5)


def test_three_seeds_by_hand() -> None:
    # mean 0.7, deviations -0.1, 0, 0.1: s = 0.1, half = 4.3027 x 0.1 / sqrt(3) = 0.24841
    assert over_seeds([0.6, 0.7, 0.8]) == pytest.approx(
        (0.7, 0.7 - 0.24841, 0.7 + 0.24841), abs=1e-5
    )


def test_one_run_has_no_spread() -> None:
    with pytest.raises(ValueError, match="spread"):
        over_seeds([0.5])


def test_three_seeds_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = random.Random(3), 0
    for _ in range(4000):
        interval = over_seeds([rng.gauss(0.7, 0.1) for _ in range(3)])
        covered += interval.low <= 0.7 <= interval.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.011)  # 3 standard errors


def test_shares_are_means_of_means() -> None:
    assert share([0.25, 1.0], 8).value == fmean([0.25, 1.0])
