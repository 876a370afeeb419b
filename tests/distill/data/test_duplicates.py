"""Tests of duplicates: near ones are those that comparing all pairs finds."""

import random
from itertools import combinations

import numpy as np
import pytest

from dstools_distill.data.duplicates import FUNCTIONS, MISSED, exact, near, rows_of_band, signature
from dstools_distill.data.ngrams import hashes, jaccard, shingles


def texts(count: int, seed: int) -> list[str]:
    """Random sentences, half of them an earlier one with some words changed."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "mu", "ne") for b in ("la", "ro", "sti", "ve")]
    made: list[list[str]] = []
    for number in range(count):
        if number % 2 and made:
            words_of = list(rng.choice(made))
            for _ in range(rng.randrange(5)):
                words_of[rng.randrange(len(words_of))] = rng.choice(words)
        else:
            words_of = [rng.choice(words) for _ in range(rng.randrange(20, 60))]
        made.append(words_of)
    return [" ".join(words_of) for words_of in made]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_near_duplicates_are_those_of_all_pairs(threshold: float) -> None:
    given = texts(300, seed=int(threshold * 10))
    grams = [shingles(hashes(text), 5) for text in given]
    similar = {
        (n, m): jaccard(grams[n], grams[m]) >= threshold for n, m in combinations(range(300), 2)
    }
    gone: set[int] = set()
    for later in range(300):
        if any(similar[n, later] for n in range(later) if n not in gone):
            gone.add(later)
    fates = near(
        np.array([signature(text) for text in given]),
        np.zeros(300, np.uint64),
        np.ones(300, bool),
        given.__getitem__,
        threshold,
    )
    assert len(gone) > 20
    assert {n for n, reason in enumerate(fates.reasons) if reason} == gone
    assert all(similar[fates.others[n], n] and not fates.reasons[fates.others[n]] for n in gone)


def test_signatures_agree_as_often_as_sets_are_alike() -> None:
    one = " ".join(f"w{n}" for n in range(1004))
    other = " ".join(f"w{n}" for n in range(500, 1504))  # 1,000 5-grams each, 500 in common
    agree = np.mean(signature(one) == signature(other))
    # a third; of 128 functions the share has a standard deviation of 0.042
    assert abs(agree - 1 / 3) < 4 * 0.042


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_miss_at_most_one_pair_in_a_thousand(threshold: float) -> None:
    rows = rows_of_band(threshold)
    assert (1 - threshold**rows) ** (FUNCTIONS // rows) <= MISSED


def test_a_template_with_many_problems_is_not_compared_in_all_pairs() -> None:
    template = " ".join(f"w{n}" for n in range(60))
    calls = []

    def text(number: int) -> str:
        calls.append(number)
        return f"{template} {number}"

    count = 2000
    signatures = np.repeat(signature(template)[None], count, axis=0)
    fates = near(signatures, np.zeros(count, np.uint64), np.ones(count, bool), text, threshold=0.99)
    assert not any(fates.reasons)  # 57 of 59
    assert len(calls) < 20 * count  # of 2 million pairs


def test_prompts_with_other_golds_and_dropped_ones_are_ignored() -> None:
    text = "the very same words in the very same order as before"
    signatures = np.repeat(signature(text)[None], 4, axis=0)
    golds = np.array([7, 9, 7, 7], np.uint64)
    alive = np.array([True, True, False, True])
    fates = near(signatures, golds, alive, lambda number: text, 0.8)
    assert fates.reasons == ["", "", "", "near-duplicate"]
    assert fates.others == [-1, -1, -1, 0]


def test_the_first_prompt_with_a_gold_answer_is_kept() -> None:
    digests, golds = [b"a", b"b", b"a", b"a", b"b"], np.array([0, 5, 7, 7, 6], np.uint64)
    fates = exact(digests, golds, lambda one, other: True)
    assert fates.reasons == ["duplicate", "conflicting-gold", "", "duplicate", "conflicting-gold"]
    assert fates.others == [2, -1, -1, 2, 1]


def test_a_gold_of_another_spelling_is_compared_with_the_one_that_is_kept() -> None:
    asked = []

    def differ(one: int, other: int) -> bool:
        asked.append((one, other))
        return one == 4

    digests = [b"a", b"a", b"a", b"b", b"b", b"b"]
    fates = exact(digests, np.array([0, 5, 6, 5, 6, 7], np.uint64), differ)
    assert asked == [(2, 1), (4, 3)]  # not where one is missing, nor where none is trusted already
    assert fates.reasons == ["duplicate", "", "duplicate", *["conflicting-gold"] * 3]
    assert fates.others == [1, -1, 1, -1, 3, 3]
