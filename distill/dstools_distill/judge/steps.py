"""Check of every step of a trace that adds up digit by digit, in the sample model's own format.

    57+68|7+8+0=15,5+6+1=12|125
    5-12|12>5:2-5-0=17,1-0-1=00|-7

One line per term: the sum, its columns from the right, the total. A column is digit, digit, carry
and the two digits of the result. A subtraction of magnitudes first names the larger one,
`large>small:`, and the first digit after each = is the borrow.

A term has one right line. Traces in other formats are not checked.
"""

import re
from itertools import zip_longest
from typing import NamedTuple


class Steps(NamedTuple):
    """The result of a check of steps."""

    right: int  # number of correct columns and totals before the first fault
    fault: str | None  # the first fault, "word: detail"


# signs of the format: a column, or a sum followed by a bar
FORM = re.compile(r"\d[+-]\d[+-]\d=\d|^\s*-?\d+[+-]\d+\|", re.MULTILINE)
MARK = re.compile(r"([|:,])")  # between the steps of a line


def check(expression: str, reasoning: str, answer: str) -> Steps | None:
    """Check a trace of an expression such as "57 + 68 - 3"; return None for another format.

    Faults: lines (not one per term), step, answer (it is not the last total).
    """
    if not FORM.search(reasoning):
        return None
    first, *rest = expression.split()
    terms = list(zip(rest[::2], rest[1::2], strict=True))
    lines = reasoning.strip("\n").split("\n")
    if len(lines) != len(terms):
        return Steps(0, f"lines: {len(lines)} for {len(terms)} terms")
    total, right = int(first), 0
    for number, (line, (sign, term)) in enumerate(zip(lines, terms, strict=True), start=1):
        addend = int(term) if sign == "+" else -int(term)
        wanted = f"{total}{sign}{term}|{_columns(total, addend)}|{total + addend}"
        for step, its in zip_longest(MARK.split(line), MARK.split(wanted), fillvalue=""):
            if step != its:
                return Steps(right, f"step: {step[:40]} for {its} in line {number}")
            right += "=" in step
        total, right = total + addend, right + 1
    if answer.strip() != str(total):
        return Steps(right, f"answer: {answer.strip()[:40]} after {total}")
    return Steps(right, None)


def _columns(total: int, addend: int) -> str:
    """Return the comparison of magnitudes, if the signs differ, and the columns."""
    above, below, operator, compared = abs(total), abs(addend), "+", ""
    if (total >= 0) != (addend >= 0):
        above, below, operator = max(above, below), min(above, below), "-"
        compared = f"{above}>{below}:"
    columns, carry = [], 0
    for place in range(len(str(max(above, below)))):
        upper, lower = (number // 10**place % 10 for number in (above, below))
        value = upper + lower + carry if operator == "+" else upper - lower - carry
        written = f"{upper}{operator}{lower}{operator}{carry}"
        carry = abs(value // 10)  # -1 // 10 is -1: one borrowed
        columns.append(f"{written}={carry}{value % 10}")
    return compared + ",".join(columns)
