"""The program in an answer, and the test cases in a gold of code."""

import ast
import json
import re
import textwrap
import warnings
from typing import Any, NamedTuple

PYTHON = ("python", "python3", "py", "py3", "pypy", "pypy3")
OPENER = re.compile(r"(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*\n")  # CommonMark, fenced code blocks
CODE = re.compile(r"\w\(|[{;]\s*$|^\s*(?:import|#include)\b", re.MULTILINE)  # in many languages
MAX_CASES = 100
MAX_PARSED = 100_000  # characters
CASE_KEYS = (("stdin", "stdout"), ("input", "output"), ("inputs", "outputs"))  # ours is first


class Program(NamedTuple):
    """A program, or why an answer has none."""

    text: str
    problem: str = ""  # "", "no-code", "code-not-found" or "code-language: NAME"


def find(answer: str) -> Program:
    """Return the Python program of an answer: its last fenced block that is one, or all of it.

    A block is one by its label, or without any label if it parses and does something. Sessions of
    an interpreter are none, and what other labels mean is not known. Where code has no fence, it is
    not known where it begins, unless the whole answer is a program.
    """
    found = list(blocks(answer))
    programs = [text for label, text in found if label in PYTHON and not text.startswith(">>>")]
    if programs:
        return Program(programs[-1])
    plain = [text for label, text in found if not label]
    programs = [text for text in plain if _does_something(text)]
    others = [label for label, _ in found if label not in ("", *PYTHON)]
    if others and not programs:
        return Program("", f"code-language: {others[0]}")
    if plain or _does_something(answer):
        return Program([answer, *plain, *programs][-1])
    return Program("", "code-not-found" if CODE.search(answer) else "no-code")


def blocks(answer: str) -> list[tuple[str, str]]:
    """Return label, in lower case, and text of each closed block, without common indentation."""
    found, at = [], 0
    answer = answer.replace("\r\n", "\n")
    while opener := OPENER.search(answer, at):
        marks, label = opener[1], opener[2].strip("{.}").lower()
        closer = re.compile(rf"^[ \t]*{marks}|{marks}[ \t]*$", re.MULTILINE)
        closed = closer.search(answer, opener.end())
        if closed is None:
            break
        found.append((label, textwrap.dedent(answer[opener.end() : closed.start()])))
        at = closed.end()
    return found


def _does_something(text: str) -> bool:
    """Return whether a text parses as Python and is more than a value, such as 5."""
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(text[:MAX_PARSED]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(n, ast.Expr) or isinstance(n.value, ast.Call) for n in body)


def read_cases(gold: str) -> list[dict[str, str]] | None:
    """Return the cases of a gold as {"stdin", "stdout"}; None for none, or more than MAX_CASES.

    A gold is JSON: [{"stdin", "stdout"}, ...]; codeforces' and LiveCodeBench's [{"input",
    "output"}, ...]; APPS' and TACO's {"inputs": [...], "outputs": [...]}, where a text may be a
    list of lines; code_contests' {"input": [...], "output": [...]}. Cases that call a function are
    not read. Sources: APPS, testing_util.py; the data sets' cards.
    """
    try:
        cases = json.loads(gold)
        if isinstance(cases, dict) and not cases.pop("fn_name", None):  # columns
            columns = [column if isinstance(column, list) else [] for column in cases.values()]
            cases = [dict(zip(cases, row, strict=True)) for row in zip(*columns, strict=True)]
    except (ValueError, RecursionError):
        return None
    if not isinstance(cases, list) or not 0 < len(cases) <= MAX_CASES:
        return None
    read = [_case(case) for case in cases]
    return read if all(read) else None


def _case(case: Any) -> dict[str, str]:
    """Return a case as {"stdin", "stdout"}; {} if it is not two texts, or lists of lines."""
    if not isinstance(case, dict) or case.pop("testtype", "stdin") != "stdin":
        return {}  # LiveCodeBench: "functional" calls a function
    keys = next((keys for keys in CASE_KEYS if set(keys) == set(case)), ())
    texts = [[case[key]] if isinstance(case[key], str) else case[key] for key in keys]
    are_lines = all(isinstance(t, list) and all(isinstance(line, str) for line in t) for t in texts)
    return dict(zip(CASE_KEYS[0], map("\n".join, texts), strict=False)) if are_lines else {}
