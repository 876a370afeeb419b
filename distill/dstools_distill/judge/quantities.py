r"""Numbers as they are written, and quantities: a number or a formula with its unit.

number("3 1/2 hours")     ->  7/2, " hours"
quantity("22^\circ 30'")  ->  45/2, in degrees
"""

import re
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

from dstools_distill.judge.units import ATOMS, NONE, NoUnitError, Unit, unit

MAX_DIGITS = 1000


class Value(NamedTuple):
    """A part of an answer.

    | kind | text | else |
    |---|---|---|
    | number | | number, unit |
    | formula | LaTeX, also of an equation or a relation | unit |
    | base | digits_base, or r mod m | |
    | items | the brackets: "()", "[)", "{}", ":" for a ratio, or "" for a bare list | items |
    """

    kind: str
    text: str = ""
    items: tuple["Value", ...] = ()
    number: Fraction = Fraction(0)
    unit: Unit = NONE
    name: str = ""  # x of x = 5; of a tuple the names, separated by blanks


def latex(value: Value) -> str:
    """Return a value in LaTeX, without its unit and its name."""
    if value.kind == "items":
        inner = ", ".join(map(latex, value.items))
        return value.text[:1] + inner + value.text[1:] if inner else "\\emptyset"
    if value.kind != "number":
        return value.text
    above, below = value.number.as_integer_ratio()
    return str(above) if below == 1 else f"{'-' * (above < 0)}\\frac{{{abs(above)}}}{{{below}}}"


class UnreadableError(Exception):
    """The text is not an answer that can be compared."""


WHOLE = r"\s*(?:\{\s*(-?\d[\d,]*)\s*\}|(\d))"
FRACTION = re.compile(
    rf"(?:(\d{{1,9}})\s*)?\\frac{WHOLE}{WHOLE}|(?:(\d{{1,9}})\s+)?(-?\d+)\s*/\s*(-?\d+)"
)
DECIMAL = re.compile(
    r"(?:(?P<grouped>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)"
    r"|\d{1,3}(?:['’ ]\d{3})+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?![\d.]))|(?P<whole>\d*))"  # noqa: RUF001
    r"(?:\.(?P<places>\d*))?"
    r"(?:\\overline\s*\{(?P<period>\d+)\}|\((?P<bracket>\d+)\)|(?P<dots>(?:\\dot\s*\{?\d\}?\d*)+))?"
    r"(?:\s*(?:[eE]|\*\s*10\s*\^)\s*\{?\s*(?P<power>[+-]?\d{1,3})(?!\d)\s*\}?)?"
)


def number(text: str) -> tuple[Fraction, str] | None:
    """Return the number at the start of a text and the rest; None if there is none.

    Raises UnreadableError for a mixed number with an improper fraction, and for 0.33...
    """
    sign = -1 if text[:1] == "-" else 1
    text = text[1:].lstrip() if text[:1] in ("-", "+") else text
    match = FRACTION.match(text)
    if match and len(match[0]) < MAX_DIGITS and not re.match(r"[.\d]", text[match.end() :]):
        parts = [int(group.replace(",", "")) for group in match.groups() if group]
        whole, above, below = (0, *parts)[-3:]
        if len(parts) == 3 and not 0 < above < below:
            raise UnreadableError(text)
        return sign * (whole + Fraction(above, below)), text[match.end() :]
    match = DECIMAL.match(text)
    assert match is not None
    rest, places = text[match.end() :], match["places"] or ""
    integer = re.sub(r"\D", "", match["grouped"] or match["whole"] or "")
    period = match["period"] or match["bracket"] or re.sub(r"\D", "", match["dots"] or "")
    if not (integer or places or period) or len(integer + places) > MAX_DIGITS:
        return None
    if match[0].endswith(".") and rest.startswith("."):
        raise UnreadableError(text)
    value = Fraction(f"{integer or 0}.{places or 0}")
    if period:
        if "." not in match[0]:
            return None
        value += Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    return sign * value * Fraction(10) ** int(match["power"] or 0), rest


MONEY = re.compile(r"(-?)\s*(?:\\text\s*\{\s*)?([$€£¥₹]|Rs\.?(?![A-Za-z]))\s*\}?\s*(.+)")
POWER = r"\s*\^\s*\{?(-?\d)\}?"
WORDS = re.compile(rf"[^\d^]*(?:{POWER}[^\d^]*)*")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
REMARK = re.compile(r"(?<=[\w}])\s*(?:\\text\s*\{\s*\([A-Za-z -]+\)\s*\}|\([A-Za-z -]{3,}\))$")
LINK = re.compile(r"(?:,|\\text\s*\{\s*(?:,|and)?\s*\}|\band(?=\s*\}?$))\s*(\}?)\s*$")
COMMA_DECIMAL = re.compile(r"(-?\d+),(\d{1,2})(?=\s*\\text\s*\{|\s+[A-Za-zµ%€/]+$)")
FORMULA = re.compile(
    rf"(.*[\w)}}\]!])((?:\s*/?\s*\\text\s*\{{[^{{}}]*\}}(?:{POWER})?)+|\s*[°%]"
    r"|\s+(?:square |cubic )?[A-Za-z]{3,})"
)
NO_AMOUNT = re.compile(
    r"\\(?:sqrt|frac|cdot)$|\\text|\\begin|[=<>,;]|\\(?:[lg]eq?|in|approx|pm)\b|(?<![a-z\\])or\b"
)
ANGLE = re.compile(r"(?<!^)[-+]|\\(?:sin|cos|tan|cot|sec|csc)")


def quantity(text: str, *, letters_are_units: bool) -> Value | None:
    """Return a number, or a number or formula with its unit; None for other text.

    In "5 m" a letter is a variable unless `letters_are_units`. 3 hours 20 minutes are 10/3 hours.
    """
    text = REMARK.sub("", text)
    if money := MONEY.fullmatch(text):
        text = f"{money[1]}{money[3]} \\text{{ {money[2]} }}"
    with suppress(NoUnitError):
        return _amount(COMMA_DECIMAL.sub(r"\1.\2", text), letters_are_units)
    match = FORMULA.fullmatch(text)
    if not match or NO_AMOUNT.search(match[1]) or ("°" in match[2] and ANGLE.search(match[1])):
        return None
    with suppress(NoUnitError):
        return Value("formula", match[1], unit=unit(_words(match[2])))
    return None


def _amount(text: str, letters_are_units: bool) -> Value:
    """Return a number with its unit, or the sum of several, each in a smaller unit than the last.

    Raises NoUnitError for other text.
    """
    found = number(text.strip())
    match = WORDS.match(found[1]) if found else None
    if found is None or match is None or not _may_be_unit(match[0], letters_are_units):
        raise NoUnitError(text)
    its = unit(_words(LINK.sub(r"\1", match[0]))) if match[0].strip() else NONE
    value = Value("number", number=found[0] * its.times, unit=its._replace(times=Fraction(1)))
    if rest := found[1][match.end() :]:
        more = _amount(rest, True)
        ratio = more.unit.factor / its.factor
        if more.unit.of != its.of or ratio >= 1:
            raise NoUnitError(text)
        return value._replace(number=value.number + more.number * ratio)
    return value


def _may_be_unit(words: str, letters_are_units: bool) -> bool:
    """Return whether the text after a number may be its unit, and not a variable or a list."""
    bare = re.sub(POWER, "", TEXT.sub("", words))
    if re.search(r"\\(?!\s|cdot)|[=<>+(!^_|-]", bare) or words.lstrip().startswith((",", ";", ":")):
        return False
    if "\\text" in words or re.match(r"\s*(?:$|[^\sA-Za-z/µΩ])", words):
        return True
    letters = re.findall(r"[A-Za-zµΩ]+", words)
    if not letters or (not letters_are_units and max(map(len, letters)) == 1):
        return bool(re.fullmatch(r"\s*[a-z]+/[a-z]+", words))
    return words[0].isspace() or len(letters[0]) > 2 or letters[0] in ATOMS


def _words(text: str) -> str:
    text = TEXT.sub(r" \1 ", text).replace("*", " ").replace("\\cdot", " ")
    return re.sub(POWER, r"^\1", text)
