r"""Numbers as they are written, and quantities: a number or a formula with its unit.

read_number("3 1/2 cups")      ->  7/2, and " cups"
read_quantity("22^\circ 30'")  ->  45/2, in degrees
"""

import re
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from dstools_distill.figures import SPELLED, in_figures
from dstools_distill.judge.units import ATOMS, NONE, Unit, UnreadableError, read_unit


class Value(NamedTuple):
    """A part of an answer.

    | kind | text | else |
    |---|---|---|
    | number | of "5 m", which may be a formula | number, unit |
    | formula | LaTeX, also of an equation or a relation | unit |
    | base | digits_base | |
    | items | the brackets: "()", "[)", "{}", or "" for a bare list | items, number if 3,5 |
    | items | "≈": a value and its decimal; "(=)": a value in two units | items |
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


WHOLE = r"\s*(?:\{\s*(-?\d[\d,]*)\s*\}|(\d))"
FRACTION = re.compile(
    rf"(?:(\d{{1,9}})\s*)?\\frac{WHOLE}{WHOLE}|(?:(\d{{1,9}})\s+)?(-?\d+)\s*/\s*(-?\d+)"
)
DECIMAL = re.compile(
    r"(?=\d|\.[\d\\])(?P<whole>[1-9]\d{0,2}(?:,\d{3})+|\d{1,2}(?:,\d\d)+,\d{3}"
    r"|\d{1,3}(?:['’ ]\d{3})+|\d{1,3}(?:\.\d{3}){2,}|\d*)"  # noqa: RUF001
    r"(?:(?:\.|,(?=\d\d?(?:\s*\\text|\s+[A-Za-zµ%€/]+$)))(?P<places>\d*)"  # 2,5 km
    r"(?P<period>\\overline\s*\{\d+\}|\(\d+\)|(?:\\dot\s*\{?\d\}?\d*)+)?)?"
    r"(?:\s*(?:[eE]|\*\s*10\s*\^)\s*\{?\s*(?P<power>[+-]?\d{1,3})(?:\s*\})?)?"
)


def read_number(text: str) -> tuple[Fraction, str]:
    """Return the number that a text begins with, and the rest.

    Raises UnreadableError for other text, and for a mixed number with an improper fraction.
    """
    sign = -1 if text[:1] == "-" else 1
    text = text[1:].lstrip() if text[:1] in ("-", "+") else text
    if match := FRACTION.match(text):
        parts = [int(group.replace(",", "")) for group in match.groups() if group]
        whole, above, below = (0, *parts)[-3:]
        if len(parts) == 3 and not 0 < above < below:
            raise UnreadableError(text)
        return sign * (whole + Fraction(above, below)), text[match.end() :]
    match = DECIMAL.match(text)
    if match is None:
        raise UnreadableError(text)
    digits, period = (re.sub(r"\D", "", match[name] or "") for name in ("whole", "period"))
    places = match["places"] or ""
    value = Fraction(f"{digits or 0}.{places or 0}")
    if period:
        value += Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    return sign * value * Fraction(10) ** int(match["power"] or 0), text[match.end() :]


MONEY = re.compile(
    r"(-?)\s*(?:\\text\s*\{\s*)?(R?[$€£¥₹₩]|Rs\.?(?![A-Za-z]))\s*\}?\s*([\d.,/]*\d(?=\s+[a-z])|.+)(.*)"
)
TEXT = re.compile(r"\\text\s*\{((?:[^{}]|\^\s*\{-?\d\})*)\}")
SPOKEN = re.compile(r"(\d+)[\s({]*(?:\\text\s*\{)?\(([a-z -]+)\)[\s)}]*")
POWER = re.compile(r"\s*\^\s*\{?(-?\d)\}?")
# what a unit begins with: 5 m, 5cm, 5 (apples), but not 5m
FIRST = re.compile(
    r"\s+(?:[A-Za-z]|\([a-z]{4})|(?:[ckm]m|kg)(?![A-Za-z])|\s*(?:\\text|[%$']|[^\x00-\x7f⦃⦄])"
)
LETTERS = re.compile(r"\s*([A-Za-z]{1,2})(?![\w/]|\s*/)")
BETWEEN = re.compile(r"(?<=[^\W\d_]|[}°])(?<!\d[eE])[\s,]*(?:\band\s)?\s*(?=\d)")


def read_quantity(text: str) -> Value | None:
    """Return a number, with the unit that may follow it; None for other text.

    3 hours 20 minutes are 10/3 hours. "5 m" keeps its text, as m may be a variable.
    """
    if money := MONEY.fullmatch(text):
        text = f"{money[1]}{money[3]} \\text{{ {money[2]} }}{money[4]}"
    text = re.sub(r",?\s*and\s*\}\s*(?=\d)", "}", text)
    if (spoken := SPOKEN.match(text)) and in_figures(spoken[2]).strip(SPELLED) == spoken[1]:
        text = f"{spoken[1]} {text[spoken.end() :]}".strip()  # 42 (forty-two) apples
    parts = BETWEEN.split(text) if text[:1].isdigit() else [text]
    try:
        values = [_single(part) for part in parts]
    except UnreadableError:
        return None
    total = values[0]
    for larger, value in pairwise(values):
        ratio = value.unit.factor / total.unit.factor
        if value.unit.of != total.unit.of or value.unit.factor >= larger.unit.factor:
            return None
        total = total._replace(number=total.number + value.number * ratio)
    return total


def _single(text: str) -> Value:
    """Return a number with its unit; raise UnreadableError for other text."""
    number, rest = read_number(text.strip())
    if not rest.strip():
        return Value("number", number=number)
    letters, bare = LETTERS.match(rest), TEXT.sub("", rest)
    is_variable = letters and letters[1] not in {*ATOMS, "sq", "cu"}
    if is_variable or not FIRST.match(rest) or "\\" in bare:
        raise UnreadableError(text)
    unit = read_unit(_words(rest))
    number, unit = number * unit.times, unit._replace(times=Fraction(1))
    is_product = letters and (len(letters[1]) == 1 or letters[1] in PRODUCTS)
    return Value("number", text if is_product else "", (), number, unit)


ATOM = rf"(?:{TEXT.pattern}|[^\x00-\x7f⦃⦄°]|[%$])(?:{POWER.pattern})?"
FORMULA = re.compile(rf"(.*?[\w)}}\]!.])\s*({ATOM}(?:\s*[/*]?\s*{ATOM}){{0,7}})")


SHORT = ("cm", "mm", "km", "kg")  # others may be products of variables, as in mg sin x
PRODUCTS = ("mg", "ml", "ms")  # may be of variables
BARE = re.compile(
    r"(.*(?:[\d})]|\\pi))\s+((?:square |cubic )?([a-zµ]{2,}?)s?(?:\s*\^\s*\{?[23]\}?)?(?:/[a-z]+)?)"
)


def read_formula(text: str) -> Value:
    """Return a formula, with the unit that may follow it in \\text{}, or as a symbol but °.

    A known one of two letters or more may stand alone: 36 \\pi cm^2.
    """
    bare = BARE.fullmatch(text)
    is_unit = bare and bare[3] in ATOMS and (len(bare[3]) > 2 or bare[3] in SHORT)
    if match := bare if is_unit else FORMULA.fullmatch(text):
        with suppress(UnreadableError):
            unit = read_unit(_words(match[2]))
            if unit.times == 1:
                return Value("formula", match[1], unit=unit)
    return Value("formula", text)


def _words(text: str) -> str:
    """Return a unit without commands."""
    return POWER.sub(r"^\1", TEXT.sub(r" \1 ", text)).replace("*", " ")
