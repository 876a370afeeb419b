"""The process that asks math-verify and reasoning-gym: what hangs is ended, what is code is not shown."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstools_distill.judge.referee import Referee

COUNTDOWN = {"answer": "9*9+9", "metadata": {"numbers": [9, 9, 9], "target": 90}}


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    made = Referee(2.0)
    yield made
    made.close()


def test_math_verify_compares_formulas(referee: Referee) -> None:
    assert referee.math(r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}") is True
    assert referee.math(r"\frac{\sqrt2}{3}", r"\frac{1}{\sqrt2}") is False
    assert referee.math("i^2", "-1") is True
    assert referee.math(r"\cos 30^\circ", r"\frac{\sqrt3}{2}") is True


def test_reasoning_gym_scores(referee: Referee) -> None:
    assert referee.score("countdown", "9*9+9", COUNTDOWN) == 1.0
    assert referee.score("countdown", "9*9-9", COUNTDOWN) == 0.05
    assert referee.score("countdown", "9 apples", COUNTDOWN) != 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "open('/tmp/x', 'w')",
        "(lambda: 1)()",
        "[print][0]('1')",
        "exec('1')",
        "().__class__",
    ],
)
def test_an_answer_that_could_call_something_is_not_shown_to_a_scorer(
    referee: Referee, answer: str
) -> None:
    """countdown passes its answer to sympy's parse_expr, and that to eval."""
    assert referee.score("countdown", answer, COUNTDOWN) == "looks-like-code"


def test_what_hangs_is_ended_and_the_next_question_is_answered() -> None:
    referee = Referee(0.3)
    assert referee.score("countdown", "9**9**9**9", COUNTDOWN) == "timeout"
    assert referee._process is None
    assert referee.math("9^{9^{9^9}}", "1") == "timeout"
    assert referee.math(r"\sqrt{4}", "2") is True
    process = referee._process
    assert process is not None
    referee.close()
    assert process.poll() is not None


def test_a_process_that_is_lost_is_replaced(referee: Referee) -> None:
    assert referee.math("1", "1") is True
    process = referee._process
    assert process is not None
    process.kill()
    process.wait()
    assert referee.math("1", "1") == "checker-failed"
    assert referee.math("1", "1") is True


def test_a_scorer_that_stumbles_over_an_answer_says_how_and_goes_on(referee: Referee) -> None:
    assert referee.math("1", "1") is True
    process = referee._process
    factors = {"answer": "2 × 3", "metadata": {"number": 6}}  # noqa: RUF001
    assert referee.score("prime_factorization", "two", factors) == "scorer-failed: ValueError"
    assert referee.score("game_of_life", "{}", {"answer": "[[0]]", "metadata": {}}) == (
        "scorer-failed: KeyError"
    )
    assert referee._process is process


def test_a_checker_that_ends_the_process_is_not_taken_for_a_slow_one(referee: Referee) -> None:
    assert referee.score("no_such_task", "1", {}) == "checker-failed"
    assert referee.math("1", "1") is True


def test_the_process_sees_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, referee: Referee
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    referee.close()
    assert referee.math("1", "1") is True
    assert referee._process is not None
    environment = Path(f"/proc/{referee._process.pid}/environ").read_bytes()
    assert b"secret" not in environment


def test_the_process_ends_with_the_one_that_asks() -> None:
    """Killed in the middle of a question, too: the clock of the question runs on."""
    code = (
        "import threading, time; from dstools_distill.judge.referee import Referee; r = Referee(0.5); "
        "r.math('1', '1'); print(r._process.pid, flush=True); "
        "threading.Thread(target=r.math, args=('9^{9^{9^9}}', '1')).start(); time.sleep(60)"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with asker:
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        asker.kill()
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(600):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"{pid} lives")
