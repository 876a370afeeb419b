r"""Exact reader of answers: quantities, bases, lists, tuples, sets, intervals, names.

    read("3 1/2 hours")                        ->  number 7/2, unit hour
    read(r"\left[0, \tfrac{\pi}{2}\right)")    ->  items "[)" of the number 0 and a formula

What it does not know stays a formula, as text: math-verify reads that.
"""

import re
from fractions import Fraction

from dstools_distill.figures import SPELLED, in_figures
from dstools_distill.judge.quantities import Value, read_formula, read_quantity
from dstools_distill.judge.spelling import CLOSING, COMMAND, OPENING, outside, plain
from dstools_distill.judge.units import NONE, UnreadableError

MAX_CHARS, MAX_DEPTH = 2000, 12


def read(text: str) -> Value | None:
    """Return the value of a whole answer; None if it is too long or ambiguous."""
    if len(text) > MAX_CHARS:
        return None
    try:
        return _value(_counted(plain(FOR_ALL.sub("", text))), 0)
    except (UnreadableError, ZeroDivisionError):
        return None


FOR_ALL = re.compile(  # f(x) = x for all x; y = Ce^x, where C is a constant
    r"(?<=\S),?\s*(?:\\text\s*\{\s*)?\b(?:for (?:all|every)(?: real| integers?)?[\s}$]*[a-z]\$?"
    r"(?:\s*\\in\s*\\mathbb\s*\{?\s*[CNQRZ]\s*\}?)?|where \$?[A-Z]\$? is an? (?:\w+ )?constant)\s*$"
)


def _counted(text: str) -> str:
    """Return a text with the number in words that it begins with in figures: 1200 loaves."""
    counted = in_figures(text.lower()).replace(SPELLED, "") if text[:1].isalpha() else ""
    return counted if counted[:1].isdigit() and not re.search(r"\d", text) else text


def split_top(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the parts of a text between separators outside all brackets, and the separators."""
    marks = list(separators.finditer(outside(text)))
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(text)]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return [text[start:end].strip() for start, end in parts], [mark[0] for mark in marks]


LISTS = (re.compile(";"), re.compile(r",|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])"))
RELATION = re.compile(r"[<>]=?|\\(?:[lg][te]|ne)(?![A-Za-z])")
SIGN = re.compile(RELATION.pattern + r"|=|\\(?:approx|in|equiv)(?![A-Za-z])")
NAME = re.compile(
    r"(?:\\angle|\\overrightarrow|\\vec|\\overline|\\triangle)?\s*\{?\|?\s*(?!i$)[A-Za-z]{1,3}'?"
    r"\s*\|?\}?(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])*\)"
    r"|\[[^\[\]=]{1,12}\]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|Delta|sigma|rho)"
)
FUNCTION = re.compile(r"(\w+)\((\w)\)")
BASE = re.compile(
    r"\(?(?:\\text\s*\{)?(\d[0-9A-Fa-f]*|[0-9A-F]+(?=_\{?16))\}?\)?"
    r"\s*_\s*\{?\s*(?:\\text\s*\{)?\(?\s*(\w+)\s*\)?[\s}]*"
)
UNKNOWN = re.compile(r"^\s*([A-Za-z])\s*(?:=|\\equiv|\\in(?![a-z]))\s*")
INTEGERS = re.compile(
    r"([A-Za-z])\s*\\in\s*\\mathbb\s*\{?\s*[NQZ]\s*\}?(?:\s*[\^_]\s*\{?\s*[*+]\s*\}?)?"
)
PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
DOTS = re.compile(r"\\[lc]?dots(?![a-z])|\.\.")
PART_NUMBER = re.compile(r"\(([1-9])\)\s*(?=[\w\\$-])")
CONDITION = re.compile(r"\s*([^|:]*?)\s*(?:\||:|\\mid)\s*(.*)")
ELEMENT = re.compile(r"[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?")
POINT = re.compile(r"([A-Z])\s*(\([^()]*,[^()]*\))")
ASIDE = re.compile(r"(.*\S)\s+\(\s*(=|\\approx)?\s*([^()]*[A-Za-zµ%°][^()]*)\)")
COMMA_DECIMAL = re.compile(  # 3,5 and 6,02 * 10^{23}
    r"(?:[A-Za-z]\s*=\s*)?(-?\d+),(\d+)(?:\s*\*\s*10\s*\^\s*\{?(-?\d{1,3})\}?)?"
)


def _value(text: str, depth: int) -> Value:
    """Read a list, a relation, or one of what they hold."""
    text = text.strip().removesuffix("\\").strip()
    if not text or depth > MAX_DEPTH or DOTS.search(text):
        raise UnreadableError(text)
    if depth == 0 and (whole := read_quantity(text)):
        return whole
    for separators in LISTS:
        parts = [part for part in split_top(text, separators)[0] if part]
        if len(parts) > 1:
            return _list_of(text, parts, depth)
    sides, signs = split_top(text, SIGN)
    if not all(sides):
        raise UnreadableError(text)
    return _relation(text, sides, signs, depth) if signs else _single(text, depth)


def _list_of(text: str, parts: list[str], depth: int) -> Value:
    """Read a bare list, conditions, or a family of solutions, which ends in k in Z."""
    if integers := INTEGERS.fullmatch(parts[-1]):
        name = re.compile(rf"(?<![A-Za-z\\]){integers[1]}(?![A-Za-z])")
        members = [
            PLUS_MINUS.sub(sign, UNKNOWN.sub("", name.sub(r"\\xi ", part)))
            for part in parts[:-1]
            for sign in ("+-" if PLUS_MINUS.search(part) else "+")
        ]
        # a_n = 2n - 1
        if len(parts) == 2 and re.match(rf"\w(?:_\{{?|\(){integers[1]}\}}?\)?\s*=", parts[0]):
            return _value(parts[0], depth + 1)
        if "Z" not in parts[-1] or any(map(SIGN.search, members)):
            raise UnreadableError(text)
        unknown = UNKNOWN.match(parts[0])
        its = unknown[1] if unknown else ""
        return Value("formula", f"⦃{', '.join(members)}⦄", name=its)
    parts = [PART_NUMBER.sub(lambda m: f"{chr(96 + int(m[1]))} = ", part) for part in parts]  # a =
    items = [_value(part, depth + 1) for part in parts]
    if any(item.kind == "formula" and RELATION.search(item.text) for item in items):
        return Value("formula", text)
    if any(item.kind == "items" and not item.text for item in items):  # ±1, ±2
        nested = ((i,) if i.kind != "items" or i.text else i.items for i in items)
        return Value("items", "{}", tuple(item for group in nested for item in group))
    decimal = COMMA_DECIMAL.fullmatch(text)  # 3,5 may be 3.5
    whole, places, power = decimal.groups() if decimal else ("0", "0", None)
    number = Fraction(f"{whole}.{places}e{power or 0}")
    return _by_name(items)._replace(number=number)


def _relation(text: str, sides: list[str], signs: list[str], depth: int) -> Value:
    """Read x = 5 as a value with a name, and other relations as formulas."""
    name, last = re.sub(r"[\s{}]", "", sides[0]), text.partition(signs[0])[2]
    if len(sides) > 2 and all(re.fullmatch("[a-z]", side) for side in sides[:-1]):  # x = y = 1
        return _list_of(text, [f"{side} {signs[0]} {sides[-1]}" for side in sides[:-1]], depth)
    is_member = signs[0] == "\\in" and len(sides[1]) == 1  # of a set A
    is_member |= bool(re.fullmatch(r"\|[a-z]\|", name))  # |x| = 5
    if NAME.fullmatch(sides[0]) and not is_member and signs[0] in ("=", "\\approx", "\\in"):
        if name[0] == "(":
            name = " ".join(re.findall(r"\w+", name))
        elif (function := FUNCTION.fullmatch(name)) and "x" not in last:  # f(n) = n + 1
            its = re.compile(rf"(?<![A-Za-z\\]){function[2]}(?![A-Za-z])")
            name = f"{function[1]}(x)" if its.search(last) else name  # P(A) is not P(B)
            last = its.sub("x", last)
        return _value(last, depth + 1)._replace(name=name)
    if signs[-1] == "\\approx":  # either may have been asked for
        exact, _, rounded = text.rpartition(signs[-1])
        return Value("items", "≈", tuple(_value(t, depth + 1) for t in (exact, rounded)))
    return Value("formula", text)


def _single(text: str, depth: int) -> Value:
    """Read a bracketed group, a number in a base, ±, or a quantity."""
    if point := POINT.fullmatch(text):
        if "|" in point[2]:  # a point of German, or a probability
            raise UnreadableError(text)
        return _single(point[2], depth)._replace(name=point[1])
    if text[0] in OPENING and (group := _group(text, depth)):
        return group
    if (aside := ASIDE.fullmatch(text)) and (other := read_quantity(aside[3])):
        value = read_quantity(aside[1]) or (_single(aside[1], depth) if aside[2] else None)
        is_same_kind = value is not None and (aside[2] or value.unit.of == other.unit.of)
        if value is not None and is_same_kind and value.unit != NONE:  # 90 min (1.5 h)
            return Value("items", "(=)", (value, other))
    if match := BASE.fullmatch(text):
        base = in_figures(match[2]).strip(SPELLED)  # 101_{two}
        digits = match[1].lower().lstrip("0")
        return Value("base", f"{digits}_{base}")
    if len(PLUS_MINUS.findall(text)) == 1:
        both = (PLUS_MINUS.sub(sign, text).strip() for sign in "+-")
        return Value("items", "", tuple(_single(one, depth) for one in both))
    return read_quantity(text) or read_formula(text)


def _group(text: str, depth: int) -> Value | None:
    """Read what is between brackets that match to the end; None if they do not."""
    opener, closer, inner = text[0], text[-1], text[1:-1].strip()
    is_open = closer not in CLOSING or outside(text)[1:-1].strip("\0")
    if opener == "⦃" and not inner:
        return Value("items", "{}")
    if is_open or (opener != "⦃" and re.search(r"\\pm.*,|,.*\\pm", inner)):  # (±1, 2)
        return None
    if opener == "⦃" and (condition := CONDITION.match(inner)):
        element, rest = condition.groups()
        if INTEGERS.fullmatch(rest):
            return _value(f"{element}, {rest}", depth + 1)
        if not ELEMENT.fullmatch(element) or element[0] not in COMMAND.sub("", rest):
            raise UnreadableError(text)
        return _value(rest, depth + 1)
    value = _value(inner, depth + 1)
    is_list = value.kind == "items" and value.text == ""
    if opener == "⦃":
        if inner[0] == "⦃" and value.text == "{}" and value.items:  # a set in a set
            raise UnreadableError(text)
        members = value.items if is_list or value.text == "{}" else ()
        return Value("items", "{}", members or (value,))  # also of {∅}
    if is_list:
        return Value("items", opener + closer, value.items)
    return value if opener in "({" else None


def _by_name(items: list[Value]) -> Value:
    """Return x = 1, y = 2 as a tuple in the order of the names.

    x = 1, x = 2 is a set, and x_1 = 1, x_2 = 2 a list.
    """
    if all(item.name for item in items):
        items = sorted(items, key=lambda item: item.name)
    names = [item.name for item in items]
    values = tuple(item._replace(name="") for item in items)
    symbols = {re.split(r"[_(]", name)[0] for name in names}
    if "" in names or len({*names}) == 1:
        return Value("items", "{}" if names[0] else "", values)
    return Value("items", "()" if len(symbols) == len(names) else "", values, name=" ".join(names))
