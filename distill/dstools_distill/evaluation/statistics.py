"""Figures of an evaluation and their intervals: pass@1, pass@k, maj@k, differences, seeds.

All intervals are two-sided at 95 %. The unit is the problem: several answers to one problem are not
several problems, so more of them narrow an interval only as far as they differ.

Sources: pass@k: arXiv 2107.03374, eq. 1. Errors by problem: arXiv 2411.00640. Wilson's interval at
the effective sample size: Franco, Little, Louis, Slud, J. Survey Statistics and Methodology 7
(2019) 334. Paired differences: Agresti, Min, Statistics in Medicine 24 (2005) 729.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


class Interval(NamedTuple):
    """A figure and the bounds of its true value."""

    value: float
    low: float
    high: float


def share(means: Sequence[float], samples: int) -> Interval:
    """Return the mean of the problems' means, each between 0 and 1, with Wilson's interval.

    samples: the number of answers in all means together. Wilson's formula wants the number n of
    independent trials. The means of N problems have a variance s^2, so their mean has s^2 / N, and
    so would p (1 - p) / (s^2 / N) independent trials: that is n, kept between N (the answers to a
    problem are all alike) and `samples` (they are independent). With one answer per problem it is
    N.
    """
    if not means:
        raise ValueError("no problems")
    count, p = len(means), fmean(means)
    n = float(count)
    variance = stdev(means) ** 2 / count if count > 1 else 0.0
    if variance > 0:
        n = min(max(n, p * (1 - p) / variance), float(samples))
    return wilson(p, n)


def wilson(p: float, n: float) -> Interval:
    """Return a share of n independent trials with Wilson's score interval.

    scipy's takes counts only; here n may be a fraction.
    """
    middle = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    below, above = (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)
    return Interval(p, 0.0 if p == 0 else below, 1.0 if p == 1 else above)  # no -1e-17


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the probability that one of k answers, drawn from a problem's samples, is right."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples with {right} right ones")
    return float(1 - Fraction(math.comb(samples - right, k), math.comb(samples, k)))


def maj_at_k(right: int, wrong: Sequence[int], silent: int, k: int) -> float:
    """Return the probability that the majority of k answers, drawn from the samples, is right.

    right: samples with the right answer; wrong: samples of each other answer; silent: samples
    without an answer, which do not vote. It is the exact mean over all draws; that of the first k
    samples would depend on their order. Each of t answers with the most votes wins with probability
    1 / t.
    """
    samples = right + sum(wrong) + silent
    if not 1 <= k <= samples:
        raise ValueError(f"maj@{k} of {samples} samples")
    won = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        # ways[ties][drawn]: to draw `drawn` others, none with more votes and `ties` with as many
        ways: list[list[int]] = [[math.comb(silent, n) for n in range(k - votes + 1)]]
        for rival in wrong:
            ways = _draw(ways, rival, votes)
        draws = sum(Fraction(row[k - votes], ties + 1) for ties, row in enumerate(ways))
        won += math.comb(right, votes) * draws
    return float(won / math.comb(samples, k))


def _draw(ways: list[list[int]], rival: int, votes: int) -> list[list[int]]:
    """Return the ways when up to `votes` of a rival's samples are drawn as well."""
    more = [[0] * len(ways[0]) for _ in range(len(ways) + (rival >= votes))]
    for ties, row in enumerate(ways):
        for drawn in range(min(rival, votes) + 1):
            times, into = math.comb(rival, drawn), more[ties + (drawn == votes)]
            for n in range(len(row) - drawn):
                into[n + drawn] += times * row[n]
    return more


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the mean of second - first over the same problems, each mean between 0 and 1.

    The interval is Agresti and Min's: Wald's after adding two problems, one without a difference
    and half of one each with +1 and -1. So it is not [0, 0] if none of a few problems differs.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} problems")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences) + 2
    middle = sum(differences) / n
    variance = (sum(d * d for d in differences) + 1) / n - middle**2
    half = Z * math.sqrt(variance / n)
    return Interval(fmean(differences), max(middle - half, -1.0), min(middle + half, 1.0))


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean of a figure over runs that differ in their seed, with Student's interval.

    It may reach past 0 and 1: for three runs that differ much it shows that little is known.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} run has no spread")
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), fmean(values) - half, fmean(values) + half)
