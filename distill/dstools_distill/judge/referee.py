"""Asks math-verify and reasoning-gym in a process of its own, which is killed when it takes too long.

Their own time limits are alarms: of the main thread only, and no help against 9**9**9. And some scorers
of reasoning-gym pass the answer to Python's eval; what could call a function there is not shown to them.

The limit is CPU time, so that a busy machine gives no other verdict. Past it the system ends the process; the
next question starts another.
"""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

WALL_FACTOR = 30  # a process that waits for something that never comes is ended, too
MEMORY_BYTES = 4 << 30  # of addresses; the libraries alone take one
CHILD = "from dstools_distill.judge.referee import serve; serve()"
# a call is a name or a bracket before a bracket; these names call nothing that harms
CALL = re.compile(r"__|\blambda\b|[\])\"']\s*\(|([A-Za-z_]\w*)\s*\(")
# what the scorers of reasoning-gym were seen to raise; any other kind ends the process
WRONG_KINDS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+)\s*\^\s*\{?\\circ\}?\s*[)}]?")
HARMLESS = {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "abs", "pi", "x", "y", "z"}


class Referee:
    """One process, started when it is first asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def math(self, answer: str, gold: str) -> bool | str | None:
        """Return whether math-verify finds both equal; None: it cannot read one; or why it is not known."""
        said: bool | str | None = self._ask({"answer": answer, "gold": gold})
        return said

    def score(self, task: str, answer: str, entry: dict[str, Any]) -> float | str:
        """Return the score, 0 to 1, that reasoning-gym gives an answer; or why it is not known."""
        if any(found[1] not in HARMLESS for found in CALL.finditer(answer)):
            return "looks-like-code"
        said: float | str = self._ask({"task": task, "answer": answer, "entry": entry})
        return said

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # of what was still to be said
                    pipe.close()
            self._process = None

    def __del__(self) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        if self._process is None:
            self._process = self._start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            line = b""
            while not line.endswith(b"\n"):
                if not select.select([stdout], [], [], WALL_FACTOR * (self._seconds + 10))[0]:
                    self.close()
                    return "timeout"
                if not (piece := os.read(stdout.fileno(), 4096)):
                    break
                line += piece
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self.close()
            return "timeout" if code == -signal.SIGPROF else "checker-failed"
        return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        # nothing of the environment is needed; a token in it is nobody's business there
        environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PATH": os.defpath}
        command = [sys.executable, "-P", "-c", CHILD, str(self._seconds)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )


def serve() -> None:
    """Answer the questions on stdin, a line each; the main function of the process."""
    seconds = float(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        question = json.loads(line)
        ask = _score if "task" in question else _math
        _import(ask)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        try:
            said = ask(question)
        except (MemoryError, RecursionError) as error:
            said = type(error).__name__
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()


def _import(ask: Any) -> None:
    """Import before the clock runs."""
    if ask is _math:
        import math_verify  # noqa: F401
    else:
        import reasoning_gym  # noqa: F401


def _math(question: dict[str, str]) -> bool | None:
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    imaginary = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    read = []
    for name in ("gold", "answer"):
        text = DEGREES.sub(r"\1(\\frac{\2 \\pi}{180})", question[name])
        found = parse(f"\\boxed{{{text}}}", how, parsing_timeout=None)
        # math-verify 0.9 takes i for a variable, and cos 30° for that of 30
        read.append([each if isinstance(each, str) else each.subs(imaginary) for each in found])
    if not all(read):
        return None
    return bool(verify(*read, timeout_seconds=None))


def _score(question: dict[str, Any]) -> float | str:
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(question["task"])
    try:
        return float(score(question["answer"], question["entry"]))
    except WRONG_KINDS as error:
        return f"scorer-failed: {type(error).__name__}"
