"""Prompts that say the same, to the word or nearly: which ones to drop, and for which others.

Near ones are found by MinHash: of a set of word 5-grams the least value of each of 128 hash functions; two
sets agree in one with the probability of their Jaccard similarity (Broder 1997). Bands of these are looked
up, and what they find is measured exactly. Source of the banding: Leskovec, Rajaraman, Ullman, Mining of
Massive Datasets, 3.4.
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
MISSED = 1e-3  # at most so many of the pairs that are as similar as asked
NEAREST = 16  # of the prompts in a bucket, those before one that it is compared with
REMEMBERED = 1 << 14  # sets of 5-grams
_draw = np.random.Generator(np.random.PCG64(20260131))
FACTORS = _draw.integers(0, 1 << 64, FUNCTIONS, np.uint64) | np.uint64(1)
OFFSETS = _draw.integers(0, 1 << 64, FUNCTIONS, np.uint64)


class Fates(NamedTuple):
    """What becomes of prompts, each by its number: "" stays, anything else is why it goes."""

    reasons: list[str]
    others: list[int]  # the prompt that it repeats, -1 where there is none


def exact(
    digests: list[bytes], golds: NDArray[np.uint64], differ: Callable[[int, int], bool]
) -> Fates:
    """Return which of the prompts with equal digests go; `golds` are digests too, 0 for none.

    The first with a gold answer stays, or the first. Where gold answers differ none of them can be trusted:
    all go, "conflicting-gold". `differ` tells of two prompts whose golds' digests are not equal whether the
    golds are more than two spellings of one.
    """
    stays: dict[bytes, int] = {}
    conflicting: set[bytes] = set()
    answers = golds.tolist()
    for number, digest in enumerate(digests):
        other = stays.setdefault(digest, number)
        if answers[number] and not answers[other]:
            stays[digest] = number
        elif (
            answers[number]
            and answers[number] != answers[other]
            and digest not in conflicting
            and differ(number, other)
        ):
            conflicting.add(digest)
    reasons, others = [], []
    for number, digest in enumerate(digests):
        other = -1 if stays[digest] == number else stays[digest]
        reasons.append("conflicting-gold" * (digest in conflicting) or "duplicate" * (other >= 0))
        others.append(other)
    return Fates(reasons, others)


def signature(text: str) -> NDArray[np.uint32]:
    """Return the 128 least values of a text's 5-grams, [128] uint32."""
    values = _five_grams(text)
    if not len(values):
        return np.zeros(FUNCTIONS, np.uint32)
    found = np.full(FUNCTIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(values), 1024):
        mixed = values[start : start + 1024, None] * FACTORS + OFFSETS
        np.minimum(found, mixed.min(axis=0), out=found)
    return (found >> np.uint64(32)).astype(np.uint32)


def near(
    signatures: NDArray[np.uint32],
    golds: NDArray[np.uint64],
    alive: NDArray[np.bool_],
    text: Callable[[int], str],
    threshold: float,
) -> Fates:
    """Return which of the prompts `alive` go because an earlier one that stays is as similar as `threshold`.

    signatures [n, 128]; `text(number)` returns what a signature was made of, for the exact similarity.
    Prompts with other gold answers are other problems, however similar: the numbers differ. Where
    a bucket of a band holds many prompts they share a template; each is compared with the 16 before it
    and the first, so that the work grows with the number of prompts, not with its square.
    """
    reasons, others = [""] * len(golds), [-1] * len(golds)
    grams = lru_cache(REMEMBERED)(lambda number: _five_grams(text(number)))
    for later, earlier in _pairs(signatures, golds, alive, threshold):
        if reasons[later] or reasons[earlier]:
            continue
        if jaccard(grams(later), grams(earlier)) >= threshold:
            reasons[later], others[later] = "near-duplicate", earlier
    return Fates(reasons, others)


def _five_grams(text: str) -> NDArray[np.uint64]:
    return shingles(hashes(text), SHINGLE_WORDS)


def _rows_of_band(threshold: float) -> int:
    """Return the most signature values a band can have and miss hardly a pair: (1 - t^r)^(128/r)."""
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
    """Yield pairs (later, earlier) of prompts that may be as similar as that, in order."""
    rows = _rows_of_band(threshold)
    numbers = np.flatnonzero(alive)
    found = np.zeros(0, np.int64)  # later * 2^32 + earlier
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
            found = np.union1d(found, new)
    for pair in found.tolist():
        yield pair >> 32, pair & 0xFFFFFFFF


def _likely(
    signatures: NDArray[np.uint32],
    golds: NDArray[np.uint64],
    later: NDArray[np.int64],
    earlier: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.int64]:
    """Return the pairs whose golds do not differ and whose signatures agree in about as many values."""
    is_other = (golds[later] != golds[earlier]) & (golds[later] != 0) & (golds[earlier] != 0)
    later, earlier = later[~is_other], earlier[~is_other]
    spread = math.sqrt(threshold * (1 - threshold) / FUNCTIONS)  # of the share that agrees
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(later), 1 << 16):
        one, other = later[start : start + (1 << 16)], earlier[start : start + (1 << 16)]
        agree = (signatures[one] == signatures[other]).mean(axis=1) >= threshold - 4 * spread
        found.append(one[agree] << 32 | other[agree])
    return np.concatenate(found)
