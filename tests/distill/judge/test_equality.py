"""Tests of the equality of two answers: equal, different or unknown, and who was asked."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from dstools_distill.judge.equality import Comparison
from dstools_distill.judge.reader import read
from dstools_distill.judge.referee import Referee


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    with closing(Referee(5.0)) as made:
        yield made


def compared(referee: Referee, one: str, other: str) -> tuple[bool | None, Comparison]:
    first, second = read(one), read(other)
    assert first is not None
    assert second is not None
    comparison = Comparison(referee)
    return comparison.same(first, second), comparison


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("0.5%", "0.5", None),
        ("0.3%", "3‰", True),
        ("1.5 hours", "90 minutes", True),
        ("5 cm", "5 m", False),
        ("5 cm", "5 kg", None),
        ("5 cm", "5", True),
        ("25 °C", "25 kelvin", None),
        ("5 m", "5", True),  # m is a metre
        ("5", "5 m", True),
        ("6", "5 m", False),
        ("2.5", r"\frac{5}{2} m", None),  # or a variable
        ("42 lb", "42", None),
        ("5i", "5", False),
        ("42, apples", "42", None),
        ("-1", "7-8", None),  # a range
        ("5 m", "5m", True),
        ("5 m", "500 cm", True),
        ("2 million", "2", False),
        ("1,2", "2,1", True),
        ("1,2,2", "1,2", False),
        (r"\{1,2,2\}", r"\{2,1\}", True),
        (r"\emptyset", r"\{0\}", False),
        (r"\{5\}", "5", True),
        ("1,2,3", "3,1,2", None),  # an order may have been asked for
        ("(1,2)", "(2,1)", False),
        ("(1,2)", "1,2", None),
        ("(0,1)", "(0,1]", False),
        ("x=1,y=2", "(1,2)", True),
        ("x=1,y=2", "2,1", None),
        ("x=1,y=2", "1,2", True),
        ("(a,b)=(1,2)", "(b,a)=(1,2)", None),
        ("5:8", r"\frac{5}{8}", True),
        ("1234.5", "1.234,5", None),
        ("x=1,y=2", "y=2,x=1", True),
        ("a=4,b=3", "a=3,b=4", False),
        ("1:2:3", "2:4:6", True),
        ("1:2", "2:1", False),
        ("1011_2", "1011_3", None),
        ("1011_2", "1001_2", False),
        ("52", "52_8", True),  # the base may have been asked for
        ("52_8", "52", None),
        ("1+1=3", "3", None),
        ("3.5", "3,5", None),
        ("3,5", "3.5", True),
        ("12.500,00", "12500", True),
        (r"6,02 \cdot 10^{23}", r"6.02 \times 10^{23}", True),
        ("FE_{16}", "FF_{16}", False),
        ("~42", "42", None),
        ("3, 5", "3.5", None),
        ("3,5", "3.6", None),
        ("12.500 €", "12500", None),
        ("x=5", "y=5", None),  # another name
        ("a_k=2k", "a_n=2n", None),
        ("y > 3", "x > 3", None),
        (r"\ln 2x + C", r"\ln x + C", None),
        ("m=5, b=3", "(3,5)", None),  # in which order?
        ("m=5, b=3", "b=3, m=5", True),
        ("[3,4]", "(3,4)", None),  # a pair?
        ("5_{10}", "101_2", None),
        ("1.5 hours", "90", None),  # in which unit?
        ("500 cm", "5", None),
        ("500 cm", "6", False),
        ("3.14159", "3.14", None),  # rounded
        ("4 10/3", "22/3", None),
        (r"7\frac{5}{3}", r"\frac{26}{3}", None),  # or a product
        (r"\sqrt7", "2.65", None),
        (r"\sqrt7", "2.66", False),
        (r"2\sqrt5 \approx 3.46", "3.46", None),  # it is not
        (r"2\sqrt5 \approx 4.472", r"2\sqrt5", True),
        ("x=1, x=2", "1, 1, 2", False),
        ("1, 1, 2", "x=1, x=2", True),
        ("1, 2, 2", "1, 1, 2", False),
        (r"\frac{1}{3} \approx 0.33", "0.33", True),
        (r"x = \frac{1}{3} \approx 0.33", r"x = \frac{1}{3}", True),
        (r"\frac{1}{3} \approx 0.33", "0.34", False),
        ("x=4, x=1, x=2", "1, 2, 4", True),
        (r"\infty", r"-\infty", False),
        ("x > 3 or so", "x > 3", None),
        ("5", "x > 5", False),
        ("x = 0", r"x \ne 0", False),
        ("12‰", "0.12", False),
        ("12‰", "12", False),
        ("12‰", "0.012", True),
        (r"\overline{AB}", "AB", None),
        (r"\gcd(a,b)", r"\gcd(a,c)", None),  # 1 for math-verify
        (r"60° + x", "60 + x", None),
        ("R+r", "2r", False),  # math-verify reads R as r
        (r"\log 6", r"\ln 6", None),
        ("f'(x)", "f(x)", None),
        ("A^T", "A", None),
        ("n!!", "(n!)!", None),
        ("(i) 3 (ii) 5", "(i) 5 (ii) 3", None),
        ("I_2", "I_3", False),  # i for math-verify
        ("f^{(3)}(x)", "f(x)^3", None),
        (r"\frac{dy}{dx}", r"\frac{dx}{dy}", None),
        (r"\Delta", r"\delta", None),
        (r"\vec{a} \times \vec{b}", r"\vec{a} \cdot \vec{b}", None),
        ("a_1=2, a_2=3", "a_1=3, a_2=2", None),
        ("a_1=2, a_2=3", "3, 2", True),
        ("x_1=2, x_2=3", r"L = \{3; 2\}", True),
        (r"V = 3 \cdot 12\pi = 36\pi \approx 113.1", "113.1", True),
        ("A(1,2), B(3,4)", "A(3,4), B(1,2)", False),
        (r"x \in (0,1)", r"y \in (0,1)", None),
        (r"x \in A", "A", None),
        (r"y = \pi k, k \in \mathbb{Z}", r"x = \pi k, k \in \mathbb{Z}", None),
        (r"\text{even}", r"\text{odd}", None),
    ],
)
def test_two_answers_are_equal_different_or_not_comparable(
    referee: Referee, one: str, other: str, expected: bool | None
) -> None:
    assert compared(referee, one, other)[0] is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (r"\sqrt{12}", r"2\sqrt3", True),
        (r"\cos 30^\circ", r"\frac{\sqrt3}{2}", True),
        (r"\sin(30^{\circ})", r"\frac12", True),
        (r"60° + 2", r"\frac{\pi}{3} + 2", True),
        (r"\frac{\pi}{4} \text{ rad}", r"\frac{2\pi}{8}", True),
        ("x > 3", r"(3, \infty)", True),
        ("x < 1 and x > -1", r"x < 1 \text{ or } x > -1", False),
        ("3+4 = 7", "7", True),
        ("m+n = 3+4 = 7", "7", True),
        (r"\sum_{k=1}^{10} k", "55", True),
        ("sin(x)", r"\sin x", True),
        (r"\tan^{-1} 2", r"\arctan 2", True),
        (r"\begin{pmatrix}1\\-\pi\end{pmatrix}", r"\langle 1, \pi - 2\pi\rangle", True),
        (r"x \equiv 3 \pmod 7", r"x = 7k - 4, k \in \mathbb{Z}", True),
        (r"x \equiv 3 \pmod 7", r"x \equiv 4 \pmod 7", False),
        (r"60° + 360°k, k \in \mathbb{Z}", r"\{\frac{\pi}{3} - 2\pi n : n \in \mathbb{Z}\}", True),
        (r"x \ne 3", r"x \ne 5", False),
        (r"\sin 2x", r"2 \sin x \cos x", True),
        (r"2 \pm \sqrt 3", r"2-\sqrt3, 2+\sqrt3", True),
        ("f(n)=1+n", "f(x)=x+1", True),
        ("(2, 60°)", r"(2, \frac{\pi}{3})", True),
        (r"45°", r"\frac{\pi}{4}", True),
        (r"1:\sqrt3", r"\sqrt3:3", True),
    ],
)
def test_formulas_are_compared_by_math_verify(
    referee: Referee, one: str, other: str, expected: bool
) -> None:
    found, comparison = compared(referee, one, other)
    assert (found, comparison.asked) == (expected, True)
