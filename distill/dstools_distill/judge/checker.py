"""Process that runs math-verify and reasoning-gym: one question per line of stdin, one answer out.

Started by `referee.Referee` as `python -m dstools_distill.judge.checker SECONDS`. Questions and
answers are JSON. A question that uses more CPU time than SECONDS ends the process (SIGPROF).
"""

import json
import os
import re
import resource
import signal
import sys
from importlib import import_module
from typing import Any

MEMORY_BYTES = 4 << 30  # of address space; the libraries alone take one GiB
# raised by scorers of reasoning-gym on some answers; any other error ends the process
SCORER_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+)\s*\^\s*\{?\\circ\}?\s*[)}]?")


def serve(seconds: float) -> None:
    """Answer the questions on stdin until it closes, each within `seconds` of CPU time."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line), seconds)).encode() + b"\n")
        answers.flush()


def answer(question: dict[str, Any], seconds: float) -> bool | float | str | None:
    """Return the answer to a question, or the name of the error of one that is too large.

    {"answer", "gold"} returns whether math-verify finds both equal, None where it cannot read one.
    {"task", "answer", "entry"} returns the score of reasoning-gym. With "is_probe" there is no
    limit: the first question of a library loads more of it than its import does.
    """
    check = score if "task" in question else are_equal
    import_module("reasoning_gym" if check is score else "math_verify")  # before the clock starts
    signal.setitimer(signal.ITIMER_PROF, 0 if "is_probe" in question else seconds)
    try:
        return check(question)
    except (MemoryError, RecursionError) as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def are_equal(question: dict[str, Any]) -> bool | None:
    """Return whether math-verify finds "answer" and "gold" equal; None where it cannot read one."""
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    imaginary = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
    extraction = [LatexExtractionConfig(boxed_match_priority=0)]
    parsed = []
    for name in ("gold", "answer"):
        text = DEGREES.sub(r"\1(\\frac{\2 \\pi}{180})", question[name])
        forms = parse(f"\\boxed{{{text}}}", extraction, parsing_timeout=None)
        # math-verify 0.9 reads i as a variable, and cos 30° as the cosine of 30 radians
        parsed.append([form if isinstance(form, str) else form.subs(imaginary) for form in forms])
    if not all(parsed):
        return None
    return bool(verify(*parsed, timeout_seconds=None))


def score(question: dict[str, Any]) -> float | str:
    """Return the score, 0 to 1, of reasoning-gym; or the error that its scorer raised."""
    import reasoning_gym

    scorer = reasoning_gym.get_score_answer_fn(question["task"])
    try:
        return float(scorer(question["answer"], question["entry"]))
    except SCORER_ERRORS as error:
        return f"scorer-failed: {type(error).__name__}"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
