"""Tests of the checking process: what it answers, and that it outlives what its libraries print."""

import json
import signal
import subprocess
import sys

import pytest

from dstools_distill.judge.checker import answer, are_equal, score

COMMAND = [sys.executable, "-P", "-m", "dstools_distill.judge.checker", "0.5"]


@pytest.mark.parametrize(
    ("given", "gold", "expected"),
    [
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}", True),
        (r"\frac{\sqrt2}{3}", r"\frac{1}{\sqrt2}", False),
        ("i^2", "-1", True),  # read as a variable by math-verify 0.9 alone
        ("e^0", "1", True),
        ("", "1", None),
        ("|x|-1", "||x|-1|", None),  # differ between -1 and 1
        ("x", "|x|", None),  # equal for positive x alone
        (r"\sqrt{a}\sqrt{b}", r"\sqrt{ab}", True),  # defined for positive a and b alone
        (r"2\ln x", r"\ln x^2", None),
        (r"\cos(n\pi)", "(-1)^n", True),  # n is an integer
        (r"\sin(\pi x)", "0", None),
        ("n", "|n|", None),
        ("-a", "(-1)^n a", False),
        (r"\{1,2\}", r"\{1,3\}", None),
        ("0", "e^{-200}", False),
        ("1", "1-e^{-200}", False),
        ("2^{100000}", "2^{100000}+1", False),
        (r"\frac{(1+\sqrt2)^{2024}+(1-\sqrt2)^{2024}}{2}", r"\frac{(1+\sqrt2)^{2024}}{2}", None),
        (r"\frac{x^2-4}{x-2}", "x+2", True),
        ("7^{9999}-1", "7^{9999}+1", False),
        ("640320^3+744", r"e^{\pi\sqrt{163}}", False),  # 30 digits are the same
        (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1", True),  # real cube roots
        ("1.41421356237309504880", r"\sqrt2", False),
        ("2x+y=4", "y=4-2x", True),
        ("2x+y=4", "y=4+2x", False),
        ("|x|=3", "x=3", None),  # for positive x
        (r"y=\frac{6}{x}", "xy=6", True),
        (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{bmatrix}0.5\\2\end{bmatrix}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", False),
        (r"\{\frac{\pi}{4}+\pi\xi\}", r"\{\frac{5\pi}{4}-\pi\xi\}", True),
        (r"\{\frac{\pi}{4}+\pi\xi\}", r"\{\frac{3\pi}{4}+\pi\xi\}", False),
        (r"\{\frac{\pi\xi}{2}\}", r"\{\pi\xi, \frac{\pi}{2}+\pi\xi\}", True),
        (r"\{2\pi\xi\}", r"\{\pi\xi\}", False),
        (r"\{a+\pi\xi\}", r"\{b+\pi\xi\}", None),
        (r"\{\xi^2\}", r"\{2\xi^2\}", None),
        (r"\{\xi\}", r"\{\pi\xi\}", False),
        (r"\{6\xi+1, 6\xi+3, 6\xi+5\}", r"\{2\xi+1\}", True),
        (r"\{6\xi+1, 6\xi+3, 6\xi+4\}", r"\{2\xi+1\}", False),
        (r"[2,4]\cup[4,5]", "[2,5]", True),
        (r"(2,4)\cup(4,5)", "(2,5)", False),
        ("x > 3", r"(3,\infty)", True),
        ("x < 3", "x > 3", False),
        (r"1 < t \le \sqrt4", "(1,2]", True),
        (r"x \le 4, x \ge 1", "[1,4]", True),
        (r"x < 1, x > 4", r"(-\infty,1)\cup(4,\infty)", True),
        (r"x \ne 1, x \ne 2", r"(-\infty,1)\cup(1,2)\cup(2,\infty)", True),
        (r"x > -1, x \ne 2", r"(-\infty,\infty)", False),
        (r"|x-1| \le 2", "[-1,3]", True),
        (r"x > a", r"(a,\infty)", None),
        (r"x+\sin x > 0", "x>0", None),  # sympy cannot solve it
        ("x>2, y<3", "x>2", None),
        ("x>2 or y<3", "x>2, y<3", None),
        ("x > i", "x>1", None),
        ("x", "y", False),
        (r"(-\infty,\infty)\setminus\{1\}", r"(-\infty,1)\cup(1,\infty)", True),
    ],
)
def test_formulas_are_compared_with_i_and_e_read_as_meant(
    given: str, gold: str, expected: bool | None
) -> None:
    assert are_equal({"answer": given, "gold": gold}) is expected


def test_a_scorer_that_raises_gives_the_kind_of_the_error() -> None:
    game = {"task": "game_of_life", "answer": "{}", "entry": {"answer": "[[0]]", "metadata": {}}}
    assert score(game) == "scorer-failed: KeyError"


def test_a_probe_has_no_limit() -> None:
    probe = {"answer": "0.5", "gold": r"\frac{1}{2}", "is_probe": True}
    assert answer(probe, 1e-6) is True


def test_a_line_of_stdin_gets_a_line_of_stdout() -> None:
    questions = [
        {"answer": "2", "gold": "2", "is_probe": True},
        {"answer": "4", "gold": "4"},
        {"answer": "2", "gold": "3"},
    ]
    ran = subprocess.run(
        COMMAND,
        input="".join(json.dumps(q) + "\n" for q in questions),
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "true\ntrue\nfalse\n")


def test_a_question_that_takes_too_long_ends_the_process() -> None:
    question = json.dumps({"answer": "9^{9^{9^9}}", "gold": "1"}) + "\n"
    ran = subprocess.run(COMMAND, input=question, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (-signal.SIGPROF, "")
