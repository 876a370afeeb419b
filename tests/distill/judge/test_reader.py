"""Tests of the reader of answers: their structure, and what stays unknown."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstools_distill.judge.quantities import Value
from dstools_distill.judge.reader import read, split_top


def number(value: int | str) -> Value:
    return Value("number", number=Fraction(value))


ONE, TWO, THREE = number(1), number(2), number(3)
PI = Value("formula", r"\pi")
ONE_TWO = Value("items", "()", (ONE, TWO))


X_Y = ONE_TWO._replace(name="x y")


def formula(text: str, name: str = "") -> Value:
    return Value("formula", text, name=name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", THREE),
        ("3, 1", Value("items", "", (THREE, ONE))),
        ("1,234", number(1234)),
        ("(1,234)", Value("items", "()", (ONE, number(234)))),
        (r"\{1, 2\}", Value("items", "{}", (ONE, TWO))),
        ("{1, 2}", Value("items", "{}", (ONE, TWO))),
        (r"\left[1, \pi\right)", Value("items", "[)", (ONE, PI))),
        ("]1, 2[", ONE_TWO),
        ("P(1,2)", ONE_TWO._replace(name="P")),
        (r"\langle 1, 2\rangle", ONE_TWO),
        ("x = 3", THREE._replace(name="x")),
        ("x = 1, y = 2", X_Y),
        ("y = 2, x = 1", X_Y),
        ("(x, y) = (1, 2)", X_Y),
        ("x = 2, x = 1", Value("items", "{}", (TWO, ONE))),
        ("1,2", Value("items", "", (ONE, TWO), number=Fraction("1.2"))),
        ("x_2 = 2, x_1 = 1", Value("items", "", (ONE, TWO), name="x_1 x_2")),
        (r"\begin{cases} x=1 \\ y=2 \end{cases}", X_Y),
        ("(1) 1; (2) 2", ONE_TWO._replace(name="a b")),
        ("1+2 = 3", formula("1+2 = 3")),
        ("2x+1 = 3", formula("2x+1 = 3")),
        (r"x \approx 3", THREE._replace(name="x")),
        (r"\pi \approx 3", Value("items", "≈", (PI, THREE))),
        ("1 < x <= 3", formula("1 < x <= 3")),
        (r"x \ge 1 \text{ and } x < 3", formula(r"x \ge 1  and  x < 3")),
        (r"x \ne 3", formula(r"x \ne 3")),
        ("x_1 < x_2", formula("x_1 < x_2")),
        (r"x \in (1,2) \cup (2,3)", formula(r"(1,2) \cup (2,3)")._replace(name="x")),
        (r"\{x \mid x > 3\}", formula("x > 3")),
        (r"x \in \mathbb{R}", formula(r"\mathbb{R}")._replace(name="x")),
        (r"\{\emptyset\}", Value("items", "{}", (Value("items", "{}"),))),
        ("P(A) = 1", ONE._replace(name="P(A)")),
        (r"\varnothing", Value("items", "{}")),
        (r"1 \pm x", Value("items", "", (formula("1 + x"), formula("1 - x")))),
        ("2:4:2", Value("items", "()", (ONE, TWO))),
        (r"(\pm 1, 2)", Value("items", "", (ONE_TWO, ONE_TWO._replace(items=(number(-1), TWO))))),
        (r"(\pm 1, \pm 2)", formula(r"(\pm 1, \pm 2)")),
        (r"2:\pi", formula(r"\frac{2}{\pi}")),
        ("x = y = 1", Value("items", "()", (ONE, ONE), name="x y")),
        (r"1011_{\text{two}}", Value("base", "1011_2")),
        ("0x2A", Value("base", "2a_16")),
        (r"x \equiv 10 \pmod 7", formula(r"⦃10 + 7 \xi ⦄", "x")),
        (r"x = \pi k, k \in \mathbb{Z}", formula(r"⦃\pi \xi ⦄", "x")),
        (r"\{\pi k : k \in \mathbb{Z}\}", formula(r"⦃\pi \xi ⦄")),
        (r"x = \pm 1 + k, k \in \mathbb{Z}", formula(r"⦃+ 1 + \xi , - 1 + \xi ⦄", "x")),
        ("0.3333...", number("1/3")),
        (r"5 \pmod 6", formula(r"⦃5 + 6 \xi ⦄")),
        (r"5x \pmod 6", formula(r"5x \pmod 6")),
    ],
)
def test_an_answer_is_read_as_this_value(text: str, value: Value) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    "text",
    [
        r"\{2x : x > 0\}",
        r"\{y : x > 0\}",
        r"\{(x, y) : x > 0\}",
        r"\{2k : k \in \mathbb{Z}, k \ne 0\}",
        "",
        "1 <",
        r"\{\{1, 2\}\}",
        "1:0",
        "1, 2, ..., n",
        "x" * 3000,
        "{" * 60 + "}" * 60,
    ],
)
def test_ambiguous_or_long_text_is_not_read(text: str) -> None:
    assert read(text) is None


def test_a_text_is_split_outside_of_brackets_only() -> None:
    assert split_top("a,(b,c),d", re.compile(",")) == (["a", "(b,c)", "d"], [",", ","])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=r"0123456789+-*/^_=<>()[]{}|!.,;:%$° \abefinopqrstxyz", max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    read(text)
