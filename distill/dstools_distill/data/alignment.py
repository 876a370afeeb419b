"""Comparison of a question with a prompt, word by word.

A prompt repeats a question if most words of the question are there in the same order, or nearly all
in any, and no other numbers: with other numbers it is another problem. A number may be missing, but
none may stand in its place. Words are those of ngrams.py: neither letters nor signs.
"""

from difflib import Match, SequenceMatcher
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dstools_distill.data.ngrams import are_words, hashes_of, signed, windows

IN_ORDER = 0.6  # least share of a question's words that a prompt repeats in their order
IN_PROSE = 0.7  # the same of a question with few numbers
IN_ANY_ORDER = 0.9  # the same in any order, where numbers are few
STRETCHED = 1.5  # most words in which a question may be found, as a multiple of its own
FEW_NUMBERS = 1 / 3  # of all words
NUMBERS_KEPT = 0.5  # least share of a question's numbers
PAIR = 2  # words, or numbers, one after another

Hashes = NDArray[np.uint64]
Places = NDArray[np.intp]


class Words(NamedTuple):
    """The words of a text."""

    hashes: Hashes  # [n]
    signed: Hashes  # [n], of a number with the operator after it; 0 for a word that is no number

    @property
    def numbers(self) -> NDArray[np.bool_]:
        """Which words are numbers, [n] bool."""
        numbers: NDArray[np.bool_] = self.signed != 0
        return numbers

    def part(self, start: int, end: int) -> "Words":
        """Return the words from `start` up to `end`."""
        return Words(self.hashes[start:end], self.signed[start:end])


def words_of(text: list[str]) -> Words:
    """Return the words among the tokens of a text."""
    hashed = hashes_of(text)
    numbers = np.array([token.isdigit() for token in text], bool)
    with_signs = np.where(numbers, hashes_of(signed(text)), np.uint64(0))
    spoken = are_words(hashed)
    return Words(hashed[spoken], with_signs[spoken])


def repeated(question: Words, prompt: Words, near: Places) -> tuple[int, int, float] | None:
    """Return first word and end of a question in a prompt, and the share of its words there.

    near: positions in the prompt, sorted, of pairs that the question has. None if the prompt does
    not repeat the question there.
    """
    length, numbers = len(question.hashes), question.numbers
    counts = np.searchsorted(near, near + 2 * length) - np.arange(len(near))
    best = int(np.argmax(counts))  # the stretch with the most pairs
    before = max(int(near[best]) - length, 0)
    stretch = prompt.part(before, int(near[best + counts[best] - 1]) + length)
    present = np.isin(question.hashes, stretch.hashes)
    is_formula = numbers.mean() > FEW_NUMBERS
    least = IN_ORDER if is_formula else IN_PROSE
    if present.mean() < least or present[numbers].sum() < NUMBERS_KEPT * numbers.sum():
        return None
    blocks = _blocks(question, stretch)
    here, aligned = np.zeros(len(stretch.hashes), bool), np.zeros(length, bool)
    for block in blocks:
        here[block.a : block.a + block.size] = aligned[block.b : block.b + block.size] = True
    is_ordered = aligned.mean() >= least and aligned[numbers & present].all()
    is_there = not is_formula and _in_another_order(question, stretch, present)
    sure = [b for b in blocks if b.size > 1 or numbers[b.b]]
    if not (is_ordered or is_there) or not sure:
        return None
    first, last = sure[0].a, sure[-1].a + sure[-1].size
    replaced = length - int(aligned.sum()) if is_ordered else 0
    around = slice(max(first - replaced, 0), last + replaced)
    others, gone = stretch.numbers & ~here, int((~present[numbers]).sum())
    if not gone:  # numbers around the question are not its own
        others &= ~np.isin(stretch.hashes, question.hashes)
        around = slice(first, last)
        if is_formula and numbers[[0, -1]].any():
            around = slice(max(first - 1, 0), last + 1)
    if others[around].any() or (~here[around]).sum() < gone or last - first > STRETCHED * length:
        return None
    share = float((aligned if is_ordered else present).mean())
    return before + first, before + last, share


def _blocks(question: Words, stretch: Words) -> list[Match]:
    """Return the runs of words that a stretch (a) and a question (b) share, in order of both."""
    here, asked = (
        np.where(words.numbers, words.signed, words.hashes).tolist()
        for words in (stretch, question)
    )
    matcher = SequenceMatcher(None, here, asked, autojunk=False)
    return matcher.get_matching_blocks()[:-1]  # the last one is empty


def _in_another_order(question: Words, stretch: Words, present: NDArray[np.bool_]) -> bool:
    """Return whether nearly all words are there, and each number is beside the same word."""
    shared = np.isin(windows(question.hashes, PAIR), windows(stretch.hashes, PAIR))
    beside = np.append(shared, False) | np.append(False, shared)
    same = beside & np.isin(question.signed, stretch.signed)
    return bool(present.mean() >= IN_ANY_ORDER and same[question.numbers].all())
