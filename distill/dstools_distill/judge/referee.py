"""Client of the process that asks math-verify and reasoning-gym, ended when it takes too long.

The time limits of those libraries are alarms, which work in the main thread only and do not stop
9**9**9. Some scorers of reasoning-gym pass the answer to Python's eval: an answer that could call a
function is not shown to them.

The limit is CPU time, so that a busy machine gives the same verdicts. Past it the system ends the
process, and the next question starts another.
"""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from dstools_converters.errors import DstoolsError, install_hint, printable

# a call is a name or a bracket before a bracket; calls of these names are harmless
CALL = re.compile(r"__|\blambda\b|[\])\"']\s*\(|([A-Za-z_]\w*)\s*\(")
HARMLESS = {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "abs", "pi", "x", "y", "z"}
PROBES: dict[str, tuple[dict[str, Any], bool | float]] = {  # first questions, and their answers
    "math_verify": ({"answer": "0.5", "gold": r"\frac{1}{2}"}, True),
    "reasoning_gym": ({"task": "chain_sum", "answer": "3", "entry": {"answer": "3"}}, 1.0),
}


class Referee:
    """One process, started with the first question. See `checker.py` for its side.

    A question raises DstoolsError if the process cannot start, or cannot answer a first question
    by the library that it needs. A process that ends later costs one answer: "timeout" or
    "checker-failed".
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._error = ""  # of a process that ended
        self._proven: set[str] = set()  # libraries by which a process has answered

    def math(self, answer: str, gold: str) -> bool | str | None:
        """Return whether math-verify finds both equal; None: it cannot read one; or why unknown."""
        self._require("math_verify")
        equal: bool | str | None = self._ask({"answer": answer, "gold": gold})
        return equal

    def score(self, task: str, answer: str, entry: dict[str, Any]) -> float | str:
        """Return the score, 0 to 1, that reasoning-gym gives an answer; or why it is unknown."""
        if any(call[1] not in HARMLESS for call in CALL.finditer(answer)):
            return "looks-like-code"
        self._require("reasoning_gym")
        score: float | str = self._ask({"task": task, "answer": answer, "entry": entry})
        return score

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with suppress(BrokenPipeError), self._process:  # of an unsent question
                pass
            self._process = None

    def __del__(self) -> None:
        self.close()

    def _require(self, library: str) -> None:
        """Raise DstoolsError unless a process can answer by `library`; asked once, first of all."""
        if library in self._proven:
            return
        question, expected = PROBES[library]
        answer = self._ask(question | {"is_probe": True})
        if answer != expected:
            reason = printable(self._error) or f"its first answer was {answer}, not {expected}"
            raise DstoolsError(
                f"the process that compares answers by {library} failed: {reason}",
                f'`{sys.executable} -c "import {library}"` must work; '
                f"{install_hint('distill')} installs the right version",
            )
        self._proven.add(library)

    def _ask(self, question: dict[str, Any]) -> Any:
        """Return the answer of the process; "timeout" or "checker-failed" where it has ended."""
        if self._process is None:
            self._process, self._error = self._start(), ""
        process, line = self._process, b""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if line and not isinstance(answer := json.loads(line), dict):
            return answer
        self._error = answer["error"] if line else ""  # the process ends
        has_no_time = -process.wait() in (signal.SIGPROF, signal.SIGALRM)
        self.close()
        return "timeout" if has_no_time else "checker-failed"

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process that imports what this one can, and sees no other variable of its own."""
        environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PATH": os.defpath}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-P", "-m", "dstools_distill.judge.checker", str(self._seconds)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment)
