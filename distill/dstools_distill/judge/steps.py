"""Checks every step of a trace that adds up digit by digit, as the sample model writes it.

    57+68|7+8+0=15,5+6+1=12|125
    5-12|12>5:2-5-0=17,1-0-1=00|-7

A line a term: what is added, its columns from the right, the total. A column is digit, digit, carry and the
two digits they make; where magnitudes are subtracted the larger one is named first, `large>small:`, and the
first digit after each = is what is borrowed. Each column must follow from the numbers and the column before.

Only traces of this form are checked. One that differs from the reference is not wrong for that: every step
is judged by itself.
"""

import re
from typing import NamedTuple


class Steps(NamedTuple):
    """What a check of steps found."""

    right: int  # columns and totals, up to the first fault
    fault: str | None  # "word: detail" of the first one


# what betrays the form: a column, or a sum with a bar behind
FORM = re.compile(r"\d[+-]\d[+-]\d=\d|^\s*-?\d+[+-]\d+\|", re.MULTILINE)
COLUMN = re.compile(r"(\d)([+-])(\d)([+-])(\d)=(\d)(\d)", re.ASCII)
COMPARED = re.compile(r"(\d+)>(\d+)", re.ASCII)


def check(expression: str, reasoning: str, answer: str) -> Steps | None:
    """Return what is wrong first in a trace of `expression`, "57 + 68 - 3"; None: the trace has another form.

    Faults: lines (not one a term), shape, operand, order (of a comparison), digits (of a column), carry,
    arithmetic, total, answer (it is not the last total).
    """
    if not FORM.search(reasoning):
        return None
    first, *rest = expression.split()
    terms = list(zip(rest[::2], rest[1::2], strict=True))
    lines = reasoning.strip("\n").split("\n")
    if len(lines) != len(terms):
        return Steps(0, f"lines: {len(lines)} for {len(terms)} terms")
    total, count = int(first), 0
    for number, (line, (sign, term)) in enumerate(zip(lines, terms, strict=True), start=1):
        right, fault = _line(line, total, sign, term)
        count += right
        if fault:
            return Steps(count, f"{fault} in line {number}")
        total = total + int(term) if sign == "+" else total - int(term)
    if answer.strip() != str(total):
        return Steps(count, f"answer: {answer.strip()[:40]} after {total}")
    return Steps(count, None)


def _line(line: str, total: int, sign: str, term: str) -> tuple[int, str]:
    """Return how many columns and totals of a line are right, and its first fault or ""."""
    parts = line.split("|")
    if len(parts) != 3:
        return 0, "shape: not three fields"
    head, work, result = parts
    if head != f"{total}{sign}{term}":
        return 0, f"operand: {head[:40]}"
    addend = int(term) if sign == "+" else -int(term)
    above, below, operator = abs(total), abs(addend), "+"
    if (total >= 0) != (addend >= 0):
        compared, colon, work = work.partition(":")
        above, below, operator = max(above, below), min(above, below), "-"
        if not colon or not COMPARED.fullmatch(compared):
            return 0, "shape: no comparison"
        if compared != f"{above}>{below}":
            return 0, f"order: {compared[:40]}"
    count, fault = _columns(work, above, below, operator)
    if fault:
        return count, fault
    if result != str(total + addend):
        return count, f"total: {result[:40]}"
    return count + 1, ""


def _columns(work: str, above: int, below: int, operator: str) -> tuple[int, str]:
    """Check written columns of `above` and `below`, from the right; the carry of the last may be left over."""
    uppers, lowers = str(above)[::-1], str(below)[::-1]
    columns = work.split(",")
    if len(columns) != max(len(uppers), len(lowers)):
        return 0, f"digits: {len(columns)} columns"
    carry = 0
    for place, column in enumerate(columns):
        found = COLUMN.fullmatch(column)
        if not found or found[2] != operator or found[4] != operator:
            return place, f"shape: {column[:40]}"
        upper, lower, carried, out, digit = (int(found[n]) for n in (1, 3, 5, 6, 7))
        if (upper, lower) != (
            int(uppers[place : place + 1] or 0),
            int(lowers[place : place + 1] or 0),
        ):
            return place, f"digits: {column}"
        if carried != carry:
            return place, f"carry: {column}"
        value = upper + lower + carry if operator == "+" else upper - lower - carry
        if (out, digit) != (abs(value // 10), value % 10):  # -1 // 10 is -1: one borrowed
            return place, f"arithmetic: {column}"
        carry = out
    return len(columns), ""
