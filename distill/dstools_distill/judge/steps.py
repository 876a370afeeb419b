"""Check of every step of a trace that adds up digit by digit, in the sample model's own format.

    57+68|7+8+0=15,5+6+1=12|125
    5-12|12>5:2-5-0=17,1-0-1=00|-7

One line per term: the sum, its columns from the right, the total. A column is digit, digit, carry
and the two digits of the result. A subtraction of magnitudes first names the larger one,
`large>small:`, and the first digit after each = is the borrow. Each column must follow from the
numbers and the previous column.

Traces in other formats are not checked. Every step is judged by itself, not against a reference.
"""

import re
from typing import NamedTuple


class Steps(NamedTuple):
    """The result of a check of steps."""

    right: int  # number of correct columns and totals before the first fault
    fault: str | None  # the first fault, "word: detail"


# signs of the format: a column, or a sum followed by a bar
FORM = re.compile(r"\d[+-]\d[+-]\d=\d|^\s*-?\d+[+-]\d+\|", re.MULTILINE)
COLUMN = re.compile(r"(\d)([+-])(\d)([+-])(\d)=(\d)(\d)", re.ASCII)
COMPARED = re.compile(r"(\d+)>(\d+)", re.ASCII)


def check(expression: str, reasoning: str, answer: str) -> Steps | None:
    """Check a trace of an expression such as "57 + 68 - 3"; return None for another format.

    Faults: lines (not one per term), shape, operand, order (of a comparison), digits (of a
    column), carry, arithmetic, total, answer (it is not the last total).
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
    """Return the number of correct columns and totals of a line, and its first fault or ""."""
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
    """Return the number of correct columns of `above` and `below`, and the first fault or "".

    Columns run from the right. The last one may leave a carry.
    """
    uppers, lowers = str(above)[::-1], str(below)[::-1]
    columns = work.split(",")
    if len(columns) != max(len(uppers), len(lowers)):
        return 0, f"digits: {len(columns)} columns"
    carry = 0
    for place, column in enumerate(columns):
        match = COLUMN.fullmatch(column)
        if not match or match[2] != operator or match[4] != operator:
            return place, f"shape: {column[:40]}"
        upper, lower, carried, out, digit = (int(match[n]) for n in (1, 3, 5, 6, 7))
        digits = (int(digits[place : place + 1] or 0) for digits in (uppers, lowers))
        if (upper, lower) != tuple(digits):
            return place, f"digits: {column}"
        if carried != carry:
            return place, f"carry: {column}"
        value = upper + lower + carry if operator == "+" else upper - lower - carry
        if (out, digit) != (abs(value // 10), value % 10):  # -1 // 10 is -1: one borrowed
            return place, f"arithmetic: {column}"
        carry = out
    return len(columns), ""
