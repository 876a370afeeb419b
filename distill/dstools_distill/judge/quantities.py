r"""Numbers as they are written, and quantities: a number or a formula with its unit.

read_number("3 1/2")           ->  7/2
read_quantity("22^\circ 30'")  ->  45/2, in degrees
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from dstools_distill.judge.units import ATOMS, NONE, NoUnitError, Unit, read_unit

MAX_DIGITS = 1000


class Value(NamedTuple):
    """A part of an answer.

    | kind | text | else |
    |---|---|---|
    | number | | number, unit |
    | formula | LaTeX, also of an equation or a relation | unit |
    | base | digits_base | |
    | items | the brackets: "()", "[)", "{}", or "" for a bare list | items, number if 3,5 |
    | items | "≈": a value and its decimal | items |
    """

    kind: str
    text: str = ""
    items: tuple["Value", ...] = ()
    number: Fraction = Fraction(0)
    unit: Unit = NONE
    name: str = ""  # x of x = 5; of a tuple the names, separated by blanks


def to_latex(value: Value) -> str:
    """Return a value in LaTeX, without its unit and its name."""
    if value.kind == "items":
        inner = ", ".join(map(to_latex, value.items))
        return value.text[:1] + inner + value.text[1:] if inner else "\\emptyset"
    if value.kind != "number":
        return value.text
    above, below = value.number.as_integer_ratio()
    return str(above) if below == 1 else f"{'-' * (above < 0)}\\frac{{{abs(above)}}}{{{below}}}"


def column(rows: Iterable[str]) -> str:
    """Return a matrix in LaTeX."""
    return "\\begin{pmatrix}" + "\\\\".join(rows) + "\\end{pmatrix}"


class UnreadableError(Exception):
    """The text is not an answer that can be compared."""


WHOLE = r"\s*(?:\{\s*(-?\d[\d,]*)\s*\}|(\d))"
FRACTION = re.compile(
    rf"(?:(\d{{1,9}})\s*)?\\frac{WHOLE}{WHOLE}|(?:(\d{{1,9}})\s+)?(-?\d+)\s*/\s*(-?\d+)"
)
PERIOD = (
    r"(?:\\overline\s*\{(?P<period>\d+)\}|\((?P<bracket>\d+)\)|(?P<dots>(?:\\dot\s*\{?\d\}?\d*)+))?"
)
DECIMAL = re.compile(
    r"(?P<mantissa>(?:(?P<grouped>[1-9]\d{0,2}(?:,\d{3})+|\d{1,2}(?:,\d\d)+,\d{3}"
    r"|\d{1,3}(?:['’ ]\d{3})+|\d{1,3}(?:\.\d{3}){2,})|(?P<whole>\d*))"  # noqa: RUF001
    rf"(?:\.(?P<places>\d*){PERIOD})?)"
    r"(?:\s*(?:[eE]|\*\s*10\s*\^)\s*\{?\s*(?P<power>[+-]?\d{1,3})\s*\}?)?"
)


def read_number(text: str) -> Fraction | None:
    """Return the number that a text is; None for other text.

    Raises UnreadableError for a mixed number with an improper fraction.
    """
    sign = -1 if text[:1] == "-" else 1
    text = text[1:].lstrip() if text[:1] in ("-", "+") else text
    if len(text) > MAX_DIGITS:
        return None
    if match := FRACTION.fullmatch(text):
        parts = [int(group.replace(",", "")) for group in match.groups() if group]
        whole, above, below = (0, *parts)[-3:]
        if len(parts) == 3 and not 0 < above < below:
            raise UnreadableError(text)
        return sign * (whole + Fraction(above, below))
    match = DECIMAL.fullmatch(text)
    if not match or not re.search(r"\d", match["mantissa"]):
        return None
    places = match["places"] or ""
    integer = re.sub(r"\D", "", match["grouped"] or match["whole"] or "")
    period = match["period"] or match["bracket"] or re.sub(r"\D", "", match["dots"] or "")
    value = Fraction(f"{integer or 0}.{places or 0}")
    if period:
        value += Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    return sign * value * Fraction(10) ** int(match["power"] or 0)


MONEY = re.compile(r"(-?)\s*(?:\\text\s*\{\s*)?([$€£¥₹]|Rs\.?(?![A-Za-z]))\s*\}?\s*(.+)")
TEXT, POWER = (
    re.compile(r"\\text\s*\{((?:[^{}]|\^\s*\{-?\d\})*)\}"),
    re.compile(r"\s*\^\s*\{?(-?\d)\}?"),
)
NAMES = "|".join(sorted(name for name in ATOMS if re.fullmatch("[A-Za-z]{2}", name)))
LETTERS = rf"{NAMES}|µ?[A-Za-z]{{3,}}|[A-Za-z](?:(?=/)|(?<=/\w)|(?<=/ \w))", r"µ?[A-Za-z]+"
ATOMIC = (  # of a unit; it has at most eight of them
    rf"(?:{TEXT.pattern}|°\s*[CF]\b|[^\x00-\x7f⦃⦄µ]|[%$']|(?<![A-Za-z\\])(?:{letters})"
    rf"(?![A-Za-z])\.?)(?:{POWER.pattern})?"
    for letters in LETTERS
)
QUANTITY = [
    re.compile(rf"(.*?[\w)}}\]!.]){gap}({atom}(?:(?:\s*[/*])?\s*{atom}){{0,7}})")
    for gap, atom in zip((r"(?:\s+|(?=[ckm]m|kg|[^A-Za-zµ]))", r"\s*"), ATOMIC, strict=True)
]
BETWEEN = re.compile(r"(?<=[^\W\d_]|[}°])(?<!\d[eE])[\s,]*(?:\band\s)?\s*(?=\d)")
PARENTHESIS = re.compile(  # 9 (apples): a unit
    r"(?<=\d)(?:\s*\\text\s*\{\s*|\s+)\(([A-Za-z]{4,}(?:[ -][A-Za-z]+)*)\)\s*\}?$"
)
COMMA_DECIMAL = re.compile(r"(-?\d+),(\d{1,2})(?=\s*\\text\s*\{|\s+[A-Za-zµ%€/]+$)")
NO_AMOUNT = re.compile(
    r"\\(?:sqrt|frac|cdot)$|\\text|\\begin|[=<>,;]|\\(?:[lg]eq?|in|approx|pm)\b|(?<![a-z\\])or\b"
)
PROSE = re.compile(r"(?<=[A-Za-z])(?<!square)(?<!cubic)\s+[A-Za-z]|^\s*[A-Za-z]{1,2}(?![A-Za-z])")
ANGLE = re.compile(r"(?<!^)[-+]|\\(?:sin|cos|tan|cot|sec|csc)")


def read_quantity(text: str, *, letters_are_units: bool) -> Value | None:
    """Return a number, or a number or formula with its unit; None for other text.

    In "5 m" a letter is a variable unless `letters_are_units`. 3 hours 20 minutes are 10/3 hours.
    """
    text = PARENTHESIS.sub(r" \\text{\1}", text)
    if money := MONEY.fullmatch(text):
        text = f"{money[1]}{money[3]} \\text{{ {money[2]} }}"
    text = COMMA_DECIMAL.sub(r"\1.\2", re.sub(r",?\s*and\s*\}\s*(?=\d)", "}", text))
    parts = BETWEEN.split(text) if text[:1].isdigit() else [text]
    try:
        values = [_part(part, letters_are_units or len(parts) > 1) for part in parts]
    except NoUnitError:
        return None
    total = values[0]
    for larger, value in pairwise(values):
        ratio = value.unit.factor / total.unit.factor
        is_smaller = value.unit.of == total.unit.of and value.unit.factor < larger.unit.factor
        if not is_smaller or "formula" in (total.kind, value.kind):
            return None
        total = total._replace(number=total.number + value.number * ratio)
    return total


def _part(text: str, letters_are_units: bool) -> Value:
    """Return a number, or a number or a formula with its unit; raise NoUnitError for other text."""
    match = QUANTITY[letters_are_units].fullmatch(text)
    amount, words = (match[1], match[2]) if match else (text, "")
    words = re.sub(r"\*|\\cdot", " ", POWER.sub(r"^\1", TEXT.sub(r" \1 ", words)))
    found, its = read_number(amount.strip()), read_unit(words) if words.strip() else NONE
    if found is not None:
        return Value("number", number=found * its.times, unit=its._replace(times=Fraction(1)))
    is_not = "'" in words or NO_AMOUNT.search(amount) or ("°" in words and ANGLE.search(amount))
    if not match or is_not or its.times != 1 or PROSE.search(TEXT.sub("", match[2])):
        raise NoUnitError(text)
    return Value("formula", amount, unit=its)
