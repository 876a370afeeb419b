"""Comparison of a question with another text, word by word.

The text repeats a question if most words of the question are there in the same order, or nearly all
in any, and no other numbers: with other numbers it is another problem. A number may be missing, but
none may replace it. The same numbers among none but other words are another problem, too. Words are
those of ngrams.py: neither letters nor signs. A small number that is spelled there equals one in
figures, but is a word like others.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dstools_distill.data.ngrams import are_numbers, are_words, hashes_of, signed, windows

REPLACED = 0.25  # most words that may be others, as a share of a question's tokens
WITHOUT_NUMBERS = 0.2  # the same of a question that only words tell from others
AROUND_FORMULA = 0.2  # most words of a question, as a share, that may all be others but for numbers
IN_ANY_ORDER = 0.9  # least share of words in any order, where numbers are few
STRETCHED = 1.5  # most words in which a question may be found, as a multiple of its own
FEW_NUMBERS = 1 / 3  # of all words
NUMBERS_KEPT = 1 / 3  # least share of a question's numbers
IN_ORDER = 0.6  # least share of words, where letters and signs are most tokens
PAIR = 2  # words, or numbers, one after another
CONTEXT = 3  # words, of which the first or the last is a number

Hashes = NDArray[np.uint64]
Places = NDArray[np.intp]


class Words(NamedTuple):
    """The words of a text."""

    hashes: Hashes  # [n]
    signed: Hashes  # [n], of a number with the operator after it; 0 for other words
    length: int  # of the text in tokens

    @property
    def numbers(self) -> NDArray[np.bool_]:
        """Which words are numbers, [n] bool; not those of ngrams.py that begin with SPELLED."""
        numbers: NDArray[np.bool_] = self.signed != 0
        return numbers

    @property
    def keys(self) -> Hashes:
        """The hashes, of a number with the operator after it, [n]."""
        return np.where(self.numbers, self.signed, self.hashes)

    def part(self, start: int, end: int) -> "Words":
        """Return the words from `start` up to `end`."""
        return Words(self.hashes[start:end], self.signed[start:end], end - start)


def words_of(text: list[str]) -> Words:
    """Return the words among the tokens of a text."""
    hashed = hashes_of(text)
    numbers = np.array([token.isdigit() for token in text], bool)
    with_signs = np.where(numbers, hashes_of(signed(text)), np.uint64(0))
    spoken = are_words(hashed)
    return Words(hashed[spoken], with_signs[spoken], len(text))


def repeated(question: Words, text: Words, near: Places) -> tuple[int, int, float] | None:
    """Return first word and end of a question in a text, and the share of its words there.

    near: positions in the text, sorted, of pairs that the question has. None if the text does not
    repeat the question there.
    """
    length, numbers = len(question.hashes), question.numbers
    counts = np.searchsorted(near, near + 2 * length) - np.arange(len(near))
    best = int(np.argmax(counts))  # the stretch with the most pairs
    before = max(int(near[best]) - length, 0)
    stretch = text.part(before, int(near[best + counts[best] - 1]) + length)
    present = _among(question.hashes, stretch.hashes)
    is_formula = numbers.mean() > FEW_NUMBERS
    least = length - (REPLACED if numbers.any() else WITHOUT_NUMBERS) * question.length
    least = max(least, IN_ORDER * length)
    if present.sum() < least or present[numbers].sum() < NUMBERS_KEPT * numbers.sum():
        return None
    places_in_question, places_in_text = _aligned(question, stretch)
    matched_in_text, aligned = np.zeros(len(stretch.hashes), bool), np.zeros(length, bool)
    matched_in_text[places_in_text] = aligned[places_in_question] = True
    has_its_words = aligned[~numbers].any() or (~numbers).mean() <= AROUND_FORMULA
    is_ordered = has_its_words and aligned.sum() >= least and aligned[numbers & present].all()
    is_reordered = not is_formula and _in_another_order(question, stretch, present)
    beside = (np.diff(places_in_question) == 1) & (np.diff(places_in_text) == 1)
    sure = places_in_text[
        np.append(beside, False) | np.append(False, beside) | numbers[places_in_question]
    ]
    if not (is_ordered or is_reordered) or not len(sure):
        return None
    first, last = int(sure[0]), int(sure[-1]) + 1
    replaced = length - int(aligned.sum()) if is_ordered else 0
    around = slice(max(first - replaced, 0), last + replaced)
    missing_numbers = int((~present[numbers]).sum())
    text_numbers = are_numbers(stretch.hashes) if missing_numbers else stretch.numbers
    foreign_numbers = text_numbers & ~matched_in_text
    if not missing_numbers:  # numbers around the question are not its own
        foreign_numbers &= ~_among(stretch.hashes, question.hashes)
        around = slice(first, last)
        if is_formula:  # a longer one begins or ends with other numbers
            around = slice(max(first - int(numbers[0]), 0), last + int(numbers[-1]))
    is_another = foreign_numbers[around].any() or (~matched_in_text[around]).sum() < missing_numbers
    if is_another or last - first > STRETCHED * length:
        return None
    share = float((aligned if is_ordered else present).mean())
    return before + first, before + last, share


def _among(words: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Return which words are among others, [n]; for so few a tenth of the time of np.isin."""
    among: NDArray[np.bool_] = (words[:, None] == others).any(axis=1)
    return among


def _aligned(question: Words, stretch: Words) -> tuple[Places, Places]:
    """Return which words of a question and of a stretch are the same, in order of both, [m] each.

    As many as there can be, where a number counts for three.
    """
    asked, there = question.keys, stretch.keys
    same = asked[:, None] == there
    most = np.zeros((len(asked) + 1, len(there) + 1), np.int32)  # of the first n and m words
    for n, weight in enumerate(np.where(question.numbers, 3, 1).tolist()):
        either = np.maximum(most[n, 1:], most[n, :-1] + weight * same[n])
        most[n + 1, 1:] = np.maximum.accumulate(either)
    pairs, n, m = [], len(asked), len(there)
    while n and m:
        if same[n - 1, m - 1]:
            n, m = n - 1, m - 1
            pairs.append((n, m))
        elif most[n - 1, m] >= most[n, m - 1]:
            n -= 1
        else:
            m -= 1
    places = np.array(pairs[::-1], np.intp).reshape(-1, 2)
    return places[:, 0], places[:, 1]


def _in_another_order(question: Words, stretch: Words, present: NDArray[np.bool_]) -> bool:
    """Return whether nearly all words are there, and each number begins or ends the same words."""
    shared = _among(windows(question.hashes, CONTEXT), windows(stretch.hashes, CONTEXT))
    around = [False] * (CONTEXT - 1)  # "in 4 hours" may be of any 4; "4 hours later" tells which
    among = np.append(shared, around) | np.append(around, shared)
    same = among & _among(question.keys, stretch.keys)
    return bool(present.mean() >= IN_ANY_ORDER and same[question.numbers].all())
