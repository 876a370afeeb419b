"""Tests of the client of the checking process: it stops what hangs and shows no code to scorers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.judge.referee import Referee

COUNTDOWN = {"answer": "9*9+9", "metadata": {"numbers": [9, 9, 9], "target": 90}}


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    made = Referee(2.0)
    yield made
    made.close()


def checkers() -> list[psutil.Process]:
    """Return the processes that referees of this process have started and not ended."""
    children = psutil.Process().children()
    return [child for child in children if "dstools_distill.judge.checker" in child.cmdline()]


def test_math_verify_compares_formulas(referee: Referee) -> None:
    assert referee.math(r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}") is True
    assert referee.math(r"\frac{\sqrt2}{3}", r"\frac{1}{\sqrt2}") is False


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


def test_a_question_that_hangs_is_ended_and_the_next_one_is_answered() -> None:
    others = checkers()
    referee = Referee(0.3)
    assert referee.score("countdown", "9**9**9**9", COUNTDOWN) == "timeout"
    assert checkers() == others
    assert referee.math("9^{9^{9^9}}", "1") == "timeout"
    assert referee.math(r"\sqrt{4}", "2") is True
    assert len(checkers()) == len(others) + 1
    referee.close()
    assert checkers() == others


# ------------------------------------------------------------------ a process that does not start


@pytest.mark.parametrize("library", ["math_verify", "reasoning_gym"])
def test_a_process_that_cannot_import_stops_the_run_with_its_last_words(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError('libantlr.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    others = checkers()
    referee = Referee(2.0)
    ask = {
        "math_verify": lambda: referee.math("1", "1"),
        "reasoning_gym": lambda: referee.score("countdown", "9*9+9", COUNTDOWN),
    }[library]
    for _ in range(2):  # the second question does not pass, either
        with pytest.raises(DstoolsError) as caught:
            ask()
        assert str(caught.value) == (
            f"the process that compares answers by {library} failed: "
            "ImportError: libantlr.so is missing"
        )
        assert f'`{sys.executable} -c "import {library}"` must work' in caught.value.hint
    assert checkers() == others


def test_a_library_that_is_imported_but_cannot_answer_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "math_verify.py"
    monkeypatch.syspath_prepend(tmp_path)
    unreadable = """
LatexExtractionConfig = dict
def parse(*_, **__): return ["1"]
"""
    for text, reason in (
        ("", "cannot import name 'LatexExtractionConfig'"),
        (unreadable, "its first answer was None, not True"),
    ):
        broken.write_text(text)
        with pytest.raises(DstoolsError, match=f"by math_verify failed: .*{reason}"):
            Referee(2.0).math("1", "1")


def test_a_process_that_cannot_start_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DstoolsError, match="first answer was checker-failed, not True"):
        Referee(2.0).math("1", "1")


def test_the_process_imports_from_where_this_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that only a changed sys.path finds, as under pytest or a PYTHONPATH, is found."""
    (tmp_path / "math_verify.py").write_text("raise ImportError(__file__)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DstoolsError) as caught:
        Referee(2.0).math("1", "1")
    assert str(tmp_path / "math_verify.py") in str(caught.value)


# ------------------------------------------------------------------------ a process that ends later


def test_a_first_record_that_ends_the_process_does_not_stop_the_run() -> None:
    referee = Referee(2.0)
    assert referee.score("no_such_task", "1", {}) == "checker-failed"
    assert referee.score("countdown", "9*9+9", COUNTDOWN) == 1.0
    referee.close()


def test_a_process_that_is_lost_is_replaced() -> None:
    referee = Referee(2.0)
    others = checkers()
    assert referee.math("1", "1") is True
    (process,) = (checker for checker in checkers() if checker not in others)
    process.kill()
    process.wait()
    assert referee.math("1", "1") == "checker-failed"
    assert referee.math("1", "1") is True
    referee.close()


def test_a_checker_that_ends_the_process_is_not_taken_for_a_slow_one(referee: Referee) -> None:
    assert referee.math("1", "1") is True
    assert referee.score("no_such_task", "1", {}) == "checker-failed"
    assert referee.math("1", "1") is True


def test_a_scorer_that_raises_says_how_and_the_process_lives_on(referee: Referee) -> None:
    assert referee.math("1", "1") is True
    processes = checkers()
    factors = {"answer": "2 × 3", "metadata": {"number": 6}}  # noqa: RUF001
    assert referee.score("prime_factorization", "two", factors) == "scorer-failed: ValueError"
    assert checkers() == processes


def test_more_than_a_pipe_of_warnings_does_not_block_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "math_verify.py").write_text(
        "import sys, sympy\n"
        "LatexExtractionConfig = lambda **_: None\n"
        "parse = lambda *_, **__: sys.stderr.write('x' * 300_000) and [sympy.Integer(1)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    referee = Referee(2.0)
    assert referee.math("1", "1") is True
    referee.close()


def test_the_process_sees_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    others = checkers()
    referee = Referee(2.0)
    assert referee.math("1", "1") is True
    (process,) = (checker for checker in checkers() if checker not in others)
    assert "secret" not in process.environ().values()
    assert set(process.environ()) == {
        "OPENBLAS_NUM_THREADS",
        "PYTHONHASHSEED",
        "PATH",
        "PYTHONPATH",
    }
    referee.close()


def test_the_process_ends_with_the_one_that_asks() -> None:
    """Killed in the middle of a question, too: the clock of the question runs on."""
    code = (
        "import threading, time, psutil; from dstools_distill.judge.referee import Referee\n"
        "r = Referee(0.5); r.math('1', '1')\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "threading.Thread(target=r.math, args=('9^{9^{9^9}}', '1')).start(); time.sleep(60)"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
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
