"""Tests of numbers as they are written, and of numbers and formulas with a unit."""

from fractions import Fraction

import pytest

from dstools_distill.judge.quantities import read_formula, read_number, read_quantity
from dstools_distill.judge.units import UnreadableError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1,234.50", Fraction("-1234.5")),
        ("12,34,567", 1234567),
        ("1.234.567", 1234567),
        ("1'234'567", 1234567),
        ("100 000", 100000),
        ("2e3", 2000),
        ("4.5 * 10^{-7}", Fraction(45, 10**8)),
        ("3 1/2", Fraction(7, 2)),
        (r"7\frac{1}{2}", Fraction(15, 2)),
        (r"\frac{3}{20,000}", Fraction(3, 20000)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"0.\dot{4}\dot{5}", Fraction(5, 11)),
        ("0.(3)", Fraction(1, 3)),
        ("7.", 7),
        (".5", Fraction(1, 2)),
    ],
)
def test_a_number_has_an_exact_value(text: str, value: Fraction) -> None:
    assert read_number(text) == (value, "")


@pytest.mark.parametrize(
    ("text", "rest"),
    [("0,125", ",125"), ("3x", "x"), ("1,2345", "5"), ("1..2", ".2"), ("2 * 10^n", " * 10^n")],
)
def test_what_follows_a_number_is_the_rest(text: str, rest: str) -> None:
    assert read_number(text)[1] == rest


@pytest.mark.parametrize("text", ["x", "", ".", "- x"])
def test_other_text_is_not_a_number(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_number(text)


def test_a_mixed_number_with_an_improper_fraction_is_not_read() -> None:
    with pytest.raises(UnreadableError):
        read_number("4 10/3")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"3 \text{ hours } 20 \text{ minutes}", r"3\text{ hours and }20\text{ minutes}"),
        ("90 minutes", "1.5 hours"),
        ("22° 30'", "22.5°"),
        ("$0.50", "50 cents"),
        ("2,5 km", "2.5 km"),
        ("9 (apples)", "9 apples"),
        ("5cm", "5 cm"),
        (r"\text{Rs. }1,50,000", "Rs. 1.5 lakh"),
        ("5 feet 6 inches", "66 inches"),
        ("5 ft 6 in", "66 inches"),
        (r"9 \text{m s^{-2}}", "9 m/s^2"),
        ("$2.5 million", "2500000 dollars"),
    ],
)
def test_a_quantity_is_the_same_in_any_unit(one: str, other: str) -> None:
    found = [read_quantity(text) for text in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    values = [value.number * value.unit.factor for value in found if value is not None]
    assert values[0] == values[1]
    assert found[0].unit.of == found[1].unit.of


@pytest.mark.parametrize(
    "text",
    [
        "2h",
        "2 k",
        "6abc",
        "3mg",
        "2(x-y)",
        "41 (minus two)",
        "5 (six)",
        r"3 \text{ (mod 5)}",
        "3i",
        "x + 1",
        "3, 5",
        "3 or 5",
        "2 more than 3",
        "9 fails",
        "I cannot say",
        r"3 hours 2\pi minutes",
    ],
)
def test_variables_lists_and_words_are_no_quantity(text: str) -> None:
    assert read_quantity(text) is None


def test_a_letter_after_a_number_may_be_a_unit_or_a_variable() -> None:
    found = read_quantity("2 h")
    assert found is not None
    assert (found.number, found.unit.of, found.text) == (2, (("s", 1),), "2 h")


def test_a_formula_has_the_unit_after_it() -> None:
    found = read_formula(r"25\pi \text{ cm}^2")
    assert (found.kind, found.text, found.unit.of) == ("formula", r"25\pi", (("m", 2),))
