"""What an evaluation says, and how sure it is: pass@1, pass@k, maj@k, differences, seeds.

All intervals are two-sided at 95 %. The unit is the problem: several answers to one problem are no several
problems, so more of them narrow an interval only as far as they differ.

Sources: pass@k: arXiv 2107.03374, eq. 1. Errors by problem: arXiv 2411.00640. Wilson's interval at the
effective sample size: Franco, Little, Louis, Slud, J. Survey Statistics and Methodology 7 (2019) 334.
Paired differences: Agresti, Min, Statistics in Medicine 24 (2005) 729. Student's t: Abramowitz, Stegun,
26.7.3 and 26.7.4.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


class Interval(NamedTuple):
    """A figure, and between what its true value lies."""

    value: float
    low: float
    high: float


def share(means: Sequence[float], samples: int) -> Interval:
    """Return the mean of the problems' means, each between 0 and 1, with Wilson's interval.

    samples: how many answers stand behind all means together. Wilson's formula wants the number n of
    independent trials. Between the means of N problems there is the variance s^2, so the mean's is s^2 / N,
    and p (1 - p) / (s^2 / N) independent trials would give the same: that is n, kept between N (the answers
    to a problem are all alike) and `samples` (they are independent). With one answer a problem it is N.
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
    """Return a share of n independent trials with Wilson's score interval."""
    middle = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    below, above = (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)
    return Interval(p, 0.0 if p == 0 else below, 1.0 if p == 1 else above)  # no -1e-17


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return how likely one of k answers, drawn from the samples of a problem, is right: unbiased."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples with {right} right ones")
    return float(1 - Fraction(math.comb(samples - right, k), math.comb(samples, k)))


def maj_at_k(right: int, wrong: Sequence[int], silent: int, k: int) -> float:
    """Return how likely the majority of k answers, drawn from the samples of a problem, is right.

    right: samples with the right answer; wrong: samples with each other answer; silent: samples without an
    answer, which vote for none. It is the mean over all draws, to the bit, not that of the first k samples:
    that would hang on their order. Of t answers with the most votes each wins with 1 / t.
    """
    samples = right + sum(wrong) + silent
    if not 1 <= k <= samples:
        raise ValueError(f"maj@{k} of {samples} samples")
    won = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        # ways[ties][drawn]: to draw so many of the others, none with more votes, so many with as many
        ways: list[list[int]] = [[math.comb(silent, n) for n in range(k - votes + 1)]]
        for rival in wrong:
            ways = _draw(ways, rival, votes)
        draws = sum(Fraction(row[k - votes], ties + 1) for ties, row in enumerate(ways))
        won += math.comb(right, votes) * draws
    return float(won / math.comb(samples, k))


def _draw(ways: list[list[int]], rival: int, votes: int) -> list[list[int]]:
    """Return the ways with up to `votes` of a rival's samples drawn, too."""
    more = [[0] * len(ways[0]) for _ in range(len(ways) + (rival >= votes))]
    for ties, row in enumerate(ways):
        for drawn in range(min(rival, votes) + 1):
            times, into = math.comb(rival, drawn), more[ties + (drawn == votes)]
            for n in range(len(row) - drawn):
                into[n + drawn] += times * row[n]
    return more


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the mean of second - first over the same problems, each mean between 0 and 1.

    The interval is Agresti and Min's: that of Wald after two problems are added, half a one each of +1 and
    -1, and one without a difference. So it is not [0, 0] where no problem of a few differs.
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
    """Return the mean of one figure over runs that differ by their seed, with Student's interval.

    It may reach past 0 and 1: with three runs that differ much it says that little is known.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} run has no spread")
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), fmean(values) - half, fmean(values) + half)


def t_quantile(degrees: int) -> float:
    """Return what Student's t, of so many degrees of freedom, stays within with 95 % probability."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    low, high = 0.0, 16.0  # one degree, the widest, has 12.7
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """Return the probability that |Student's t| <= t; a finite sum for whole degrees."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for n in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * n / (n + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
