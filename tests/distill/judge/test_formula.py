"""Tests of the parser of formulas: its trees, and what it refuses."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstools_distill.judge.formula import Node, number, read
from dstools_distill.judge.numeric import equal

X, PI = Node("sym", (), "x"), Node("sym", (), "pi")
ONE, TWO, THREE = number(1), number(2), number(3)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("3", THREE),
        ("1,234.50", number(Fraction("1234.5"))),
        ("2e3", number(2000)),
        ("3 1/2", number(Fraction(7, 2))),
        (r"0.1\overline{6}", number(Fraction(1, 6))),
        ("1+2*3", Node("+", (ONE, Node("*", (TWO, THREE))))),
        ("1-2-3", Node("-", (Node("-", (ONE, TWO)), THREE))),
        ("-x^2", Node("neg", (Node("^", (X, TWO)),))),
        ("2x", Node("*", (TWO, X))),
        (r"\frac{x}{2}", Node("/", (X, TWO))),
        (r"\sqrt[3]{x}", Node("call", (THREE, X), "root")),
        (r"\log_2 x", Node("call", (TWO, X), "log")),
        (r"\log x", Node("call", (X,), "log?")),
        (r"\sin^2 x", Node("^", (Node("call", (X,), "sin"), TWO))),
        ("|x|", Node("call", (X,), "abs")),
        ("3!", Node("!", (THREE,))),
        (r"1 \pm x", Node("pm", (ONE, X))),
        ("x_1", Node("sym", (), "x_1")),
        ("1011_2", Node("base", (), "1011_2")),
        ("3 cm", Node("unit", (THREE,), "cm")),
        ("-$3", Node("unit", (Node("neg", (THREE,)),), "$")),
        ("3, 1", Node("group", (THREE, ONE))),
        (r"\{1, 2\}", Node("group", (ONE, TWO), "{}")),
        (r"\left[1, \pi\right)", Node("group", (ONE, PI), "[)")),
        (
            r"(1, 2) \cup (2, 3)",
            Node("union", (Node("group", (ONE, TWO), "()"), Node("group", (TWO, THREE), "()"))),
        ),
        ("1 < x <= 3", Node("relation", (ONE, X, THREE), "< <=")),
        (
            r"\begin{pmatrix}1 & 2\\3 & x\end{pmatrix}",
            Node("matrix", (Node("group", (ONE, TWO)), Node("group", (THREE, X)))),
        ),
    ],
)
def test_a_formula_is_read_as_this_tree(text: str, tree: Node) -> None:
    assert read(text) == tree


@pytest.mark.parametrize(
    "text",
    [
        "1/2x",
        "3 4",
        "2^3^4",
        "5!!",
        "3 million",
        "41 hours or so",
        "(1",
        "1)",
        r"\frac{1}",
        "f'(x)",
        r"\sum_{k=1}^n k",
        "1..2",
        "x" * 3000,
        "(" * 60 + "1" + ")" * 60,
        "-" * 500 + "1",
        "{" * 500,
        r"\begin{pmatrix} 1",
        r"\sin^{-1} x",
        "0.333...",
        "2 more than 3",
    ],
)
def test_ambiguous_or_unknown_input_is_not_read(text: str) -> None:
    assert read(text) is None


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=r"0123456789+-*/^_=<>()[]{}|!.,;%$° \abefinopqrstxyz", max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    node = read(text)
    if node is not None:
        equal(node, node)
