"""Tests of the normal spelling of formulas."""
# ruff: noqa: RUF001

import pytest

from dstools_distill.judge.spelling import plain, squeezed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x − 1", "x - 1"),
        ("10²", "10^{2}"),
        ("x₁₂", "x_{12}"),
        ("x¹ + x¹²", "x^{1} + x^{12}"),
        ("3½", r"3 \frac{1}{2}"),
        ("⅞", r"\frac{7}{8}"),
        ("√2 ≤ π", r"\sqrt{2} \le  \pi"),
        ("√(3/2)", r"\sqrt{3/2}"),
        ("∛2", r"\sqrt[3]{2}"),
        ("２＋３", "2+3"),
        ("a÷b·c", "a/b*c"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( x \right)", "( x  )"),
        (r"$$ 1{,}234 $$", "1,234"),
        (r"1\,234", "1,234"),
        ("6{,}75", "6.75"),
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
        (r"32,\! 348", "32,348"),
        ("sqrt(12)", r"\sqrt{12}"),
        ("C_{10}^{3}", r"\binom{10}{3}"),
        (r"\color{red}{7}", "{7}"),
        (r"\textcircled{1}, \textcircled{3}", "①, ③"),
        ("3 : 4", r"\frac{3}{4}"),
        ("1:2:3", r"(\frac{1}{3}, \frac{2}{3})"),
        (r"2\,k\Omega", "2 kΩ"),
        (r"2\text{ k}\Omega", "2 kΩ"),
        (r"2\,\mathrm{k\Omega}", "2 kΩ"),
        (r"x+1\ (x \neq 1)", r"x+1, x \ne 1"),
        ("(x > 1)", "(x > 1)"),
        (r"\left[\begin{array}{c}1\\2\end{array}\right]", "(1,2)"),
        ("0x2A", "02A_{16}"),
        (r"x \equiv 3 \pmod 7", r"x \equiv 3 + 7 k, k \in \mathbb Z"),
        ("∴ x ≠ 1", r"x \ne  1"),
        ("]1; 2]", "(1; 2]"),
        ("[1, 2[", "[1, 2)"),
        (r"\begin{cases} x=1 \\ y=2 \end{cases}", "( x=1 , y=2 )"),
        ("sin(x) + log 2", r"\sin (x) + \log  2"),
    ],
)
def test_a_formula_has_one_spelling(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_blanks_and_braces_that_mean_nothing_are_dropped() -> None:
    assert squeezed(r"7 ^ {7}") == squeezed("7^7")
    assert squeezed(r"\text{H}_2\text{O}") == squeezed("H_2O")
    assert squeezed("12 5") != squeezed("125")
