"""Tests of the values of formulas: exact if rational, to 50 digits otherwise, or refused."""

from fractions import Fraction

import pytest

from dstools_distill.judge.formula import read
from dstools_distill.judge.values import NotComparableError, as_float, context, symbols_of, value


def worth(text: str, point: int = 0) -> object:
    """The value of a formula."""
    node = read(text)
    assert node is not None
    return value(node, point)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/3 + 1/6", Fraction(1, 2)),
        ("2^{-3}", Fraction(1, 8)),
        ("0^3", Fraction(0)),
        ("5!", Fraction(120)),
        (r"\binom{5}{2}", Fraction(10)),
        (r"\lfloor -1/2 \rfloor", Fraction(-1)),
        (r"\lceil -1/2 \rceil", Fraction(0)),
        ("|-3/2|", Fraction(3, 2)),
        (r"\sqrt{4/9}", Fraction(2, 3)),
        (r"\sqrt[3]{27}", Fraction(3)),
    ],
)
def test_a_rational_value_is_exact(text: str, expected: Fraction) -> None:
    result = worth(text)
    assert isinstance(result, Fraction)
    assert result == expected


@pytest.mark.parametrize(
    ("text", "digits"),
    [  # the first 40 digits
        (r"\pi", "3.141592653589793238462643383279502884197"),
        (r"\sqrt 2", "1.414213562373095048801688724209698078569"),
        (r"\sqrt[3]{-2}", "-1.259921049894873164767210607278228350570"),  # the real root
        (r"\ln 2", "0.6931471805599453094172321214581765680755"),
        (r"\log_2 8", "3"),
        (r"\lg 1000", "3"),
        (r"\sin 30°", "0.5"),
        ("50%", "0.5"),
        ("i^2", "-1"),
    ],
)
def test_an_irrational_value_has_40_right_digits(text: str, digits: str) -> None:
    assert abs(as_float(worth(text)) - context.mpf(digits)) < 1e-38


@pytest.mark.parametrize(
    "text",
    ["1001!", "(-1)!", "(1/2)!", "0^0", "0^{-1}", "10^{9999999}", "e^{10^{9}}", r"\sqrt[200]{2}",
     r"\binom{2000}{3}", r"\infty + 1", r"\sin(10^7)", "1, 2"],
)  # fmt: skip
def test_a_value_that_is_undefined_or_huge_is_not_computed(text: str) -> None:
    with pytest.raises(NotComparableError):
        worth(text)


def test_a_division_by_zero_is_an_arithmetic_error() -> None:
    with pytest.raises(ArithmeticError):
        worth("1/0")


def test_a_symbol_is_positive_at_point_0_negative_at_1_and_its_own_everywhere() -> None:
    values = {name: [as_float(worth(name, point)) for point in range(4)] for name in "xy"}
    assert all(
        0.3 <= numbers[0] <= 2.3 and -2.3 <= numbers[1] <= -0.3 for numbers in values.values()
    )
    assert len({*values["x"], *values["y"]}) == 8
    assert [as_float(worth("x", point)) for point in range(4)] == values["x"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2x + y_1", {"x", "y_1"}),
        (r"\pi e i", set()),
        (r"\log x", {"x", "log?"}),
        (r"\ln x", {"x"}),
    ],
)
def test_variables_are_symbols_that_are_not_constants(text: str, names: set[str]) -> None:
    node = read(text)
    assert node is not None
    assert symbols_of(node) == names
