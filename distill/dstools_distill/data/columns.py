"""Columns of a source row: read by name, and the names of those never read."""

import ast
import json
import math
import re
from contextlib import suppress
from typing import Any

from dstools_distill.records import Record, message_parts

EXACT = 1 << 53  # below it, floats hold all integers
TRUSTED = ("gold", "expected", "expected_answer")  # golds, taken as they are
# A backslash of TeX: \right, \text, \bar, \frac; but \r before \n is Python's end of a line.
NOT_PYTHON = re.compile(r"""(?<!\\)(?:\\\\)*\\(?!r\\n)[^\\'"nxuU]""")
SHOWN = 60  # characters of a value in a message


class BadRowError(ValueError):
    """A row does not hold a question, or can be read in two ways; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Columns:
    """The columns of a row, by their names in lower case: "Correct Answer" is correct_answer.

    A column whose value is null, an empty list or object or, but for `text`, blank counts as
    missing: tables of several data sets have the columns of all.
    """

    def __init__(self, row: Record) -> None:
        self.row = row
        self._names: dict[str, str] = {}
        for name in row:
            self._names.setdefault(plain(name), name)
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return plain(name) in self._names

    def has(self, name: str) -> bool:
        """Return whether a column has a value."""
        return not _is_blank(self.row.get(self._names.get(name, name)))

    def take(self, name: str) -> Any:
        """Return the value of a column, None if it is missing; it then counts as read."""
        self._read.add(plain(name))
        return self.row.get(self._names.get(name, name))

    def text(self, name: str) -> str:
        """Return a column that must be a text; it then counts as read."""
        return text(self.take(name), self.spelled(name))

    def spelled(self, name: str) -> str:
        """Return the name of a column as the row spells it."""
        return self._names.get(name, name)

    def unread(self) -> tuple[str, ...]:
        """Return the names of the columns with a value that were not read, as spelled."""
        taken = {self.spelled(name) for name in self._read}
        return tuple(
            sorted(name for name in self.row if name not in taken and not _is_blank(self.row[name]))
        )


def plain(name: str) -> str:
    """Return a name in lower case, with underscores for blanks."""
    return name.strip().lower().replace(" ", "_")


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    is_gap = isinstance(value, float) and math.isnan(value)
    return value is None or value in ([], {}) or is_gap


def text(value: Any, name: str) -> str:
    """Return a value that must be a text which is not blank; a BadRowError names it."""
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is not a string: {type(value).__name__}"
        raise BadRowError(f"{name} {problem}")
    if not value.strip():
        raise BadRowError(f"{name} is empty")
    return value


def answer_text(value: Any, name: str) -> str:
    """Return an answer as a text: a number, true or false, or the one entry of a list, too."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRowError(
                f"{name} holds {len(value)} answers: {shown(value)}",
                'write the one that is wanted, such as "3, -3" with "answer_type": "set"',
            )
        value = value[0]
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        value = int(value)  # a table with a gap has floats for integers
    return repr(value) if isinstance(value, bool | int | float) else text(value, name)


def reasoning_and_text(value: Any, name: str) -> tuple[str | None, str]:
    """Return the reasoning, if any, and the text of the content of a message."""
    try:
        return message_parts(value)
    except ValueError as error:
        raise BadRowError(f"{name} {error}") from None


def from_json(value: Any, starts: tuple[str, ...]) -> Any:
    """Return what a JSON text that begins in one of these ways is; other values as they are."""
    if isinstance(value, str) and value.lstrip().startswith(starts):
        with suppress(ValueError):
            return json.loads(value)
    return value


def from_repr(value: Any) -> Any:
    """Return the object, or the list of several, in a text of JSON or of Python; others as is.

    Python writes both that way where a table is saved as text. A list of one may be numpy's of
    several, which has no commas, and a single backslash, as in \\frac, is not Python's.
    """
    read = from_json(value, ("[", "{"))
    if not isinstance(read, str) or not read.lstrip().startswith(("[", "{")):
        return read
    if not NOT_PYTHON.search(read):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            literal = ast.literal_eval(read.strip())
            is_several = isinstance(literal, list) and len(literal) > 1
            return literal if is_several or isinstance(literal, dict) else value
    return value


def shown(value: Any) -> str:
    """Return the start of a value, as a message shows it."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")


def agreeing(values: dict[str, str], what: str) -> str | None:
    """Return the one value that all columns give, None if there are none.

    White space and dollar signs do not count. Raises BadRowError if two of them disagree.
    """
    different = {" ".join(value.split()).strip("$ "): name for name, value in values.items()}
    if len(different) > 1:
        one, other, *_ = different.values()
        raise BadRowError(
            f"{one} is {shown(values[one])} and {other} is {shown(values[other])}: "
            f"either may be the {what}",
            f"keep only the column that holds the {what}",
        )
    return next(iter(values.values()), None)
