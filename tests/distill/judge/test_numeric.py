"""Tests of equality: equal, different or unknown."""

import pytest

from dstools_distill.judge.formula import read
from dstools_distill.judge.numeric import Equality, equal


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (r"\sqrt{12}", r"2\sqrt3", True),
        (r"|x|", "x", False),
        (r"\log 8", r"3 \log 2", True),
        (r"\log 8", r"\ln 8", False),  # an unknown base is not e
        ("x^2-1", "(x-1)(x+1)", True),
        (r"\sin 2x", r"2 \sin x \cos x", True),
        (r"2 \pm \sqrt 3", r"2-\sqrt3, 2+\sqrt3", True),
        ("x>3", r"(3,\infty)", True),
        ("(0,1)", "(0,1]", False),
        (r"\{1,2\}", "2,1", True),
        ("1,2,2", "1,2", False),
        ("5 m", "5 cm", None),
        ("0.5%", "0.5", None),
        ("x=1,y=2", "2,1", None),
        ("(1,2)", "1,2", None),
        ("1/0", "1/0", None),
        ("9^(9^(9^9))", "1", None),
        ("10^{100000}", "10^{100000}", True),
        ("2000!", "1", None),
        ("e^{-100}", "e^{-101}", None),  # nearly zero, like a rounding error
        (r"\sin(\pi)", "0", True),
        ("x-x", "0", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1 & 2\end{pmatrix}", False),
        ("1011_2", "1011_3", False),
        ("2x+y=4", "y=4-2x", True),
        ("2x+y=4", "y=4+2x", False),
        (r"\frac13 \approx 0.33", r"\frac13", True),
        ("1+1=3", "3", False),
    ],
)
def test_two_formulas_are_equal_different_or_not_comparable(
    one: str, other: str, expected: bool | None
) -> None:
    first, second = read(one), read(other)
    assert first is not None
    assert second is not None
    result = equal(first, second)
    assert (result.is_equal if result else None) == expected


@pytest.mark.parametrize(
    ("one", "other", "ordered", "expected"),
    [
        ("(1,2)", r"\{2,1\}", False, Equality(True, is_exact=True)),  # any brackets hold a set
        ("1,2", "(2,1)", True, Equality(False, is_exact=True)),  # any brackets hold a tuple
        ("1,2", "2,1", None, Equality(True, is_exact=True)),
        ("(1,2)", "(2,1)", None, Equality(False, is_exact=True)),
        (r"\pi, 2", r"2, \pi", None, Equality(True, is_exact=False)),
        ("1/3", "2/6", None, Equality(True, is_exact=True)),
        ("50%", "0.5", None, Equality(True, is_exact=True)),
        ("50%", "50", None, Equality(True, is_exact=True)),
    ],
)
def test_order_counts_as_asked_and_rational_numbers_are_exact(
    one: str, other: str, ordered: bool | None, expected: Equality
) -> None:
    first, second = read(one), read(other)
    assert first is not None
    assert second is not None
    assert equal(first, second, ordered) == expected
