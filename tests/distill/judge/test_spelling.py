"""Tests of the normal spelling of formulas and units."""
# ruff: noqa: RUF001

import pytest

from dstools_distill.judge.spelling import NoUnitError, one_alphabet, plain, unit_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x − 1", "x - 1"),
        ("10²", "10^{2}"),
        ("x₁₂", "x_{12}"),
        ("3½", r"3 \frac{1}{2}"),
        ("⅞", r" \frac{7}{8}"),
        ("√2 ≤ π", r"\sqrt 2 \le  \pi "),
        ("２＋３", "2+3"),
        ("a÷b·c", "a/b×c"),
        (r"\dfrac12", r"\dfrac12"),
    ],
)
def test_a_character_is_replaced_by_its_ascii_or_latex(text: str, expected: str) -> None:
    assert one_alphabet(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( x \right)", "( x  )"),
        (r"$$ 1{,}234 $$", "1234"),
        (r"1\,234", "1,234"),
        (r"\(x\)", "x"),
        (r"\mathrm{d}", "d"),
        (r"\operatorname{sin} x", r"\sin  x"),
        (r"2 \times 3 \cdot 4 \div 5", "2 * 3 * 4 / 5"),
        ("2**3", "2^3"),
        (r"30^\circ", "30°"),
        (r"50\%", "50%"),
        (r"\$5", "$5"),
        ("$1$ and $2$", "1 and 2"),
        (r"\{1\}", "⦃1⦄"),
        (r"1 \text{ or } 2", "1  or  2"),
        ("  1/2 ", "1/2"),
    ],
)
def test_a_formula_has_one_spelling(text: str, expected: str) -> None:
    assert plain(text) == expected


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("centimetres", "cm"), ("Meters", "m"), ("feet", "ft"), ("euros", "€"), ("per cent", "%"),
        ("percentage points", "%"), ("apples", "apple"), ("km", "km"), ("km per hour", "km /hour"),
        ("m^{2}", "m^2"), ("square units", "unit"), ("min.", "min"),
    ],
)  # fmt: skip
def test_a_unit_has_one_name(words: str, name: str) -> None:
    assert unit_name(words) == name


@pytest.mark.parametrize(
    "words", ["million", "dozen eggs", "or so", "times", "", "x" * 41, "m²", "not metres"]
)
def test_words_that_change_the_number_are_not_a_unit(words: str) -> None:
    with pytest.raises(NoUnitError):
        unit_name(words)
