"""Duplicate and near-duplicate prompts: which ones to drop, and which ones they repeat.

Near duplicates are found by MinHash: the minimum of each of 128 hash functions over a set of word
5-grams; two sets agree in one minimum with the probability of their Jaccard similarity (Broder
1997). Candidates are pairs that share a band of these values; their similarity is then computed
exactly. Source of the banding: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dstools_distill.data.ngrams import hashes, jaccard, shingles

SHINGLE_WORDS = 5
FUNCTIONS = 128
MISSED = 1e-3  # share of the pairs at the threshold that banding may miss
NEAREST = 16  # earlier prompts in a bucket that each one is compared with
CACHED_SETS = 1 << 14  # sets of 5-grams kept in memory
_draw = np.random.Generator(np.random.PCG64(20260131))
FACTORS = _draw.integers(0, 1 << 64, FUNCTIONS, np.uint64) | np.uint64(1)
OFFSETS = _draw.integers(0, 1 << 64, FUNCTIONS, np.uint64)


class Fates(NamedTuple):
    """The decision on each prompt, by its number."""

    reasons: list[str]  # why it is dropped, "" if it is kept
    others: list[int]  # number of the prompt that it repeats, or -1


def exact(
    digests: list[bytes], golds: NDArray[np.uint64], differ: Callable[[int, int], bool]
) -> Fates:
    """Return which of the prompts with equal digests to drop.

    golds: digests of the gold answers, [n], 0 for none. The first prompt with a gold answer is
    kept, else the first. If gold answers differ none can be trusted: all are dropped,
    "conflicting-gold". `differ(number, other)`, called for two prompts whose golds have different
    digests, returns whether their values differ, not only their spelling.
    """
    kept: dict[bytes, int] = {}
    conflicting: set[bytes] = set()
    answers = golds.tolist()
    for number, digest in enumerate(digests):
        other = kept.setdefault(digest, number)
        if answers[number] and not answers[other]:
            kept[digest] = number
        elif (
            answers[number]
            and answers[number] != answers[other]
            and digest not in conflicting
            and differ(number, other)
        ):
            conflicting.add(digest)
    reasons, others = [], []
    for number, digest in enumerate(digests):
        other = -1 if kept[digest] == number else kept[digest]
        reasons.append("conflicting-gold" * (digest in conflicting) or "duplicate" * (other >= 0))
        others.append(other)
    return Fates(reasons, others)


def signature(text: str) -> NDArray[np.uint32]:
    """Return the MinHash values of a text's 5-grams, [128] uint32; zeros if it has no words."""
    values = _five_grams(text)
    if not len(values):
        return np.zeros(FUNCTIONS, np.uint32)
    minima = np.full(FUNCTIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(values), 1024):
        mixed = values[start : start + 1024, None] * FACTORS + OFFSETS
        np.minimum(minima, mixed.min(axis=0), out=minima)
    return (minima >> np.uint64(32)).astype(np.uint32)


def near(
    signatures: NDArray[np.uint32],
    golds: NDArray[np.uint64],
    alive: NDArray[np.bool_],
    text: Callable[[int], str],
    threshold: float,
) -> Fates:
    """Return which prompts to drop because a kept earlier one has at least `threshold` similarity.

    signatures [n, 128]; golds as in `exact`; alive [n], False for prompts to ignore. `text(number)`
    returns the text of a signature, for the exact similarity. Prompts with different gold answers
    are different problems, however similar. Many prompts in one bucket of a band share a template;
    each is compared with the 16 before it and the first, so that the work stays linear.
    """
    reasons, others = [""] * len(golds), [-1] * len(golds)
    grams = lru_cache(CACHED_SETS)(lambda number: _five_grams(text(number)))
    for later, earlier in _pairs(signatures, golds, alive, threshold):
        if reasons[later] or reasons[earlier]:
            continue
        if jaccard(grams(later), grams(earlier)) >= threshold:
            reasons[later], others[later] = "near-duplicate", earlier
    return Fates(reasons, others)


def _five_grams(text: str) -> NDArray[np.uint64]:
    return shingles(hashes(text), SHINGLE_WORDS)


def rows_of_band(threshold: float) -> int:
    """Return the largest size r of a band that misses few pairs: (1 - t^r)^(128/r) <= MISSED."""
    rows = 1
    while rows < 32 and (1 - threshold ** (rows + 1)) ** (FUNCTIONS // (rows + 1)) <= MISSED:
        rows += 1
    return rows


def _pairs(
    signatures: NDArray[np.uint32],
    golds: NDArray[np.uint64],
    alive: NDArray[np.bool_],
    threshold: float,
) -> Iterator[tuple[int, int]]:
    """Yield candidate pairs (later, earlier) of prompts, in order."""
    rows = rows_of_band(threshold)
    numbers = np.flatnonzero(alive)
    pairs = np.zeros(0, np.int64)  # later * 2^32 + earlier
    for start in range(0, FUNCTIONS - rows + 1, rows):
        bucket = np.zeros(len(numbers), np.uint64)
        for column in range(start, start + rows):
            bucket = (bucket + signatures[numbers, column]) * FACTORS[column]
        order = np.argsort(bucket, kind="stable")
        members, bucket = numbers[order], bucket[order]
        is_first = np.ones(len(members), bool)
        is_first[1:] = bucket[1:] != bucket[:-1]
        places = np.arange(len(members))
        first = np.maximum.accumulate(np.where(is_first, places, 0))
        for back in range(1, NEAREST + 2):
            later = np.flatnonzero(places - first >= back)
            earlier = later - back if back <= NEAREST else first[later]
            new = _likely(signatures, golds, members[later], members[earlier], threshold)
            pairs = np.union1d(pairs, new)
    for pair in pairs.tolist():
        yield pair >> 32, pair & 0xFFFFFFFF


def _likely(
    signatures: NDArray[np.uint32],
    golds: NDArray[np.uint64],
    later: NDArray[np.int64],
    earlier: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.int64]:
    """Return the pairs whose golds do not differ and whose signatures agree in enough values.

    Enough is the threshold less four standard deviations of the share that agrees.
    """
    is_other = (golds[later] != golds[earlier]) & (golds[later] != 0) & (golds[earlier] != 0)
    later, earlier = later[~is_other], earlier[~is_other]
    enough = threshold - 4 * math.sqrt(threshold * (1 - threshold) / FUNCTIONS)
    pairs = [np.zeros(0, np.int64)]
    for start in range(0, len(later), 1 << 16):
        one, other = later[start : start + (1 << 16)], earlier[start : start + (1 << 16)]
        agree = (signatures[one] == signatures[other]).mean(axis=1) >= enough
        pairs.append(one[agree] << 32 | other[agree])
    return np.concatenate(pairs)
