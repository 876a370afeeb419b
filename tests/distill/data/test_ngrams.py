"""Tests of tokens: the same problem in other markup has the same, another problem has not."""
# ruff: noqa: RUF001

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstools_distill.data.ngrams import (
    Lookup,
    are_numbers,
    are_words,
    hashes,
    hashes_of,
    jaccard,
    shingles,
    tokens,
    whole,
    windows,
)
from dstools_distill.figures import SPELLED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 7, then?", "WHAT IS 7 THEN"),
        ("a well-known ten-digit sum", "a well known ten digit sum"),
        ("**Ines** rows *home*", "Ines rows home"),
        ("it’s “six” — or not", 'it\'s "six", or not'),
        ("cafe\u0301 No\u0308l", "café Nöl"),  # NFD, NFC
        ("Ｗｈａｔ　ｉｓ　７？", "what is 7"),
        ("𝐱 + 𝟐 = ①", "x + 2 = 1"),
        ("pro\u00adb\u200blem\ufeff", "problem"),
        ("1,234,567 people", "1234567 people"),
        ("$1{,}000$ or 1\u202f000", "1000 or 1 000"),
        (r"\dfrac{1}{2} + \tfrac34", r"\frac{1}{2}+\frac{3}{4}"),
        (r"$\left( x \right)\,\cdot\;3$", "(x) * 3"),
        (r"\text{if } x \leq 5", r"\mathrm{if}\ x \le 5"),
        (r"\begin{align*} x &= 3 \\ y &= 4 \end{align*}", "x = 3, y = 4"),
        ("x² − y₁ ≥ √３ ÷ 2", r"x^2 - y1 \geq \sqrt{3} / 2"),
        ("2πr and θ, 75°", r"2\pi r and \theta, 75^\circ"),
        ("5 - 3", "5-3"),
        ("$x$ - $y$", "x-y"),
        ("求1+2的值。", "求 1 + 2 的 值"),
        (r"\( \mathbb{R} \)", "ℝ"),
        ("a <= b != c", r"a \leqslant b \neq c"),
        ("12,000.0 or 0.50", "12000 or 1/2"),
        (r"2½ of $\frac{1}{3}$", "2.5 of one third"),
        ("(thirteen thousand)", "13{,}000"),
    ],
)
def test_the_same_text_in_other_markup_has_the_same_tokens(one: str, other: str) -> None:
    assert tokens(one) == tokens(other)
    assert tokens(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7^12", "7^13"),
        ("x + y", "x - y"),
        ("3 + 4", "3 - 4"),
        ("-5", "5"),
        ("2^3", "23"),
        ("1/2", "12"),
        ("x = 2", "x < 2"),
        (r"\frac{12}{5}", r"\frac{1}{25}"),
        ("求1+2的值", "求1+2的积"),
        (r"\sin x", r"\cos x"),
    ],
)
def test_another_problem_has_other_tokens(one: str, other: str) -> None:
    assert tokens(one) != tokens(other)


def test_tokens_are_these() -> None:
    words = tokens(r"Ines' $1{,}234.5$-km trip: is $\dfrac12 \le x^{2}$? - No, -7!")
    assert " ".join(words) == "ines 1 234 1 / 2 km trip is 1 / 2 le x ^ 2 no - 7"


@pytest.mark.parametrize(
    ("spelled", "figures"),
    [
        ("one of twelve", "1 of 12"),
        ("a - three", "a-3"),
        ("one-to-one", "1 to 1"),
        ("twenty - five", "20-5"),
        ("**Twenty five**, a hundred.", "25, 100"),
        ("one\u00a0hundred and two", "102"),
    ],
)
def test_spelled_numbers_have_the_hashes_of_their_figures(spelled: str, figures: str) -> None:
    assert hashes(spelled).tolist() == hashes(figures).tolist()


def test_small_spelled_numbers_are_told_from_figures() -> None:
    assert tokens("two or 2 of thirteen") == [f"{SPELLED}2", "or", "2", "of", "13"]


def test_numbers_and_words_carry_information_letters_and_signs_do_not() -> None:
    text = tokens(r"What is $\frac{12x^2}{\pi} - 7 \leq \theta_n$? 求 A")
    words = [
        token for token, is_word in zip(text, are_words(hashes_of(text)), strict=True) if is_word
    ]
    assert words == ["what", "is", "12", "2", "7", "求"]


def test_numbers_are_those_of_three_digits_with_zeros_in_front_or_without() -> None:
    text = ["7", "07", "007", "999", "1000", "seven"]
    assert are_numbers(hashes_of(text)).tolist() == [True, True, True, True, False, False]


def test_a_lookup_gives_every_entry_of_a_hash() -> None:
    near = 0b111 << 61  # two hashes whose first bits are the same
    lookup = Lookup(np.array([5, 7, 7, near + 1], np.uint64))
    hashed = np.array([7, 6, near, 5, near + 1, 7], np.uint64)
    places, entries = lookup.matches(hashed)
    assert places.tolist() == [0, 0, 3, 4, 5, 5]
    assert entries.tolist() == [1, 2, 0, 3, 1, 2]
    assert lookup.holds(hashed).tolist() == [True, False, False, True, True, True]


@given(st.text())
def test_a_hash_for_each_token_of_any_text(text: str) -> None:
    assert hashes(text).tolist() == hashes_of(tokens(text)).tolist()


def test_a_long_word_is_hashed_as_its_tokens() -> None:
    word = ",".join(str(number) for number in range(100))
    assert hashes(word).tolist() == hashes_of([str(number) for number in range(100)]).tolist()


def test_a_window_is_the_polynomial_of_its_tokens() -> None:
    hashed = np.array([5, 7, 11], np.uint64)
    base = 0x94D049BB133111EB
    assert windows(hashed, 2).tolist() == [(5 * base + 7) % 2**64, (7 * base + 11) % 2**64]
    assert whole(hashed) == (5 * base**2 + 7 * base + 11) % 2**64
    assert windows(hashed, 3).tolist() == [whole(hashed)]
    assert windows(hashed, 4).tolist() == []
    assert whole(hashed[:0]) == 0


def test_jaccard_is_the_share_in_common() -> None:
    one, other = (
        shingles(hashes(text), 2) for text in ("a b c d", "b c d e")
    )  # ab bc cd, bc cd de
    assert jaccard(one, other) == 2 / 4
    assert jaccard(one, one) == 1
    assert len(shingles(hashes("a b"), 5)) == 1
    assert jaccard(shingles(hashes(""), 5), shingles(hashes("?"), 5)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "0" * 400_000,
        "-(" * 200_000,
        "-" + "(" * 400_000,
        r"\begin{" * 60_000,
        "frac1" * 80_000,
        "-  " * 130_000,
        "1," * 200_000,
        "one hundred " * 30_000,
        "half " + "a " * 200_000,
    ],
    ids=["digits", "minus", "brackets", "begin", "frac", "blanks", "groups", "spelled", "a"],
)
def test_degenerate_texts_take_linear_time(text: str) -> None:
    start = time.process_time()
    hashes(text)
    assert time.process_time() - start < 3
