r"""Exact reader of answers: quantities, bases, ratios, lists, tuples, sets, intervals, names.

    read("3 1/2 hours")                        ->  number 7/2, unit hour
    read(r"\left[0, \tfrac{\pi}{2}\right)")    ->  items "[)" of the number 0 and a formula

What it does not know stays a formula, as text: math-verify reads that.
"""

import re

from dstools_distill.judge.quantities import UnreadableError, Value, quantity
from dstools_distill.judge.spelling import plain, squeezed
from dstools_distill.judge.units import NONE

MAX_CHARS, MAX_DEPTH = 2000, 12
PARTS = "(1) (2)"  # the name of a list whose parts are numbered
INFINITY, MINUS_INFINITY = Value("formula", "\\infty"), Value("formula", "-\\infty")
REALS, EMPTY = Value("items", "()", (MINUS_INFINITY, INFINITY)), Value("items", "{}")
RANGES = ("()", "[)", "(]", "[]")
OPEN, CLOSE = "([{⦃⟨", ")]}⦄⟩"
CONSTANTS = {"\\emptyset": EMPTY, "\\varnothing": EMPTY, "⦃⦄": EMPTY, "\\mathbbR": REALS}


def read(text: str, *, letters_are_units: bool = False) -> Value | None:
    """Return the value of a whole answer; None if it is too long or ambiguous.

    In "5 m" a letter is a variable unless `letters_are_units`.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(letters_are_units).value(plain(text), 0)
    except (UnreadableError, ZeroDivisionError):
        return None


def has_unit(value: Value | None) -> bool:
    """Return whether a value, or one of its items, has a unit."""
    return value is not None and (value.unit != NONE or any(map(has_unit, value.items)))


def split_top(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the parts of a text between separators outside all brackets, and the separators."""
    parts, found, depth, start, at = [], [], 0, 0, 0
    while at < len(text):
        match = None if depth else separators.match(text, at)
        if match:
            parts.append(text[start:at].strip())
            found.append(match[0])
            start = at = match.end()
            continue
        if text.startswith(("\\begin", "\\end"), at):
            depth += 1 if text[at + 1] == "b" else -1
        elif text[at] in OPEN:
            depth += 1
        elif text[at] in CLOSE:
            depth = max(0, depth - 1)
        at += 1
    return [*parts, text[start:].strip()], found


SEMICOLON, BARE_COMMA = re.compile(";"), re.compile(",")
COMMA = re.compile(
    r",|、|\\text\s*\{\s*,?\s*(?:或|和)\s*,?\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|或|和|且"
)
SIGNS = {
    "<=": "<=", ">=": ">=", r"\leqslant": "<=", r"\geqslant": ">=", r"\leq": "<=", r"\geq": ">=",
    r"\le": "<=", r"\ge": ">=", r"\lt": "<", r"\gt": ">", "<": "<", ">": ">", r"\neq": "!",
    r"\ne": "!", r"\approx": "~", r"\in": "in", r"\equiv": "mod", "=": "=",
}  # fmt: skip
SIGN = re.compile("|".join(re.escape(s) + r"(?![A-Za-z])" * (s[0] == "\\") for s in SIGNS))
SYMBOL = re.compile(r"(?![ei]$)[A-Za-z](?:_\{?\w+\}?)?|\\(?:alpha|beta|theta|lambda|mu|phi|omega)")
NAME = re.compile(
    r"(?:\\angle|\\overrightarrow|\\vec|\\overline|\\triangle)?\s*\{?\|?\s*(?![ei]$)[A-Za-z]{1,3}'?"
    r"\s*\|?\}?(?:_\{?\w+\}?)?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|Delta|sigma|rho)"
    r"|[A-Za-z](?:_\{?\w+\}?)?\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\)"
    r"|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)"
)
BASE = re.compile(
    r"(?:\\text\s*\{)?(\d[0-9A-Fa-f]*)\}?\s*_\s*\{?\s*(?:\\text\s*\{)?\(?\s*(\w+)\s*\)?[\s}]*"
)
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
         "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip
RESIDUE = re.compile(r"(-?\d+)\s*\(?\\p?mod\s*\{?\s*(\d+)\s*\}?\s*\)?")
INTEGERS = re.compile(r"([A-Za-z])\s*\\in\s*\\mathbb\s*\{?\s*Z\s*\}?")
DOTS = re.compile(r"\\[lc]?dots(?![a-z])|\.\.\.|…")
REPEATED = re.compile(r"(\d*\.\d*?)(\d+?)\2{2,}\s*(?:\.\.\.|…|\\[lc]?dots)\Z")
COLON = re.compile(r"(?<=[\d}])\s*:\s*(?=[\d\\])")
CUP, MINUS = re.compile(r"\\cup(?![a-z])"), re.compile(r"\\(?:setminus|backslash)(?![a-z])")
CONDITION = re.compile(r"\s*\(?[^|:]*?\)?\s*(?:\||:|\\mid)(.*)")


class _Reader:
    def __init__(self, letters_are_units: bool) -> None:
        self.letters_are_units = letters_are_units

    def value(self, text: str, depth: int) -> Value:
        """Read a list, a relation, a union, or one of what they hold."""
        text = text.strip().removeprefix("\\ ").removesuffix("\\").strip()
        if not text or depth > MAX_DEPTH:
            raise UnreadableError(text)
        text = REPEATED.sub(r"\1\\overline{\2}", text)
        if DOTS.search(text):
            return Value("unknown", squeezed(text))
        if constant := CONSTANTS.get(re.sub(r"[\s{}]", "", text)):
            return constant
        if text[0] == "]":  # ]1, 2[
            return self.single(text, depth)
        if depth == 0 and (whole := quantity(text, letters_are_units=self.letters_are_units)):
            return whole
        for separators in (SEMICOLON, COMMA):
            parts, found = split_top(text, separators)
            parts = [part for part in parts if part]
            if len(parts) > 1:
                return self.list_of(parts, depth, is_and="and" in found or "且" in found)
        return self.relation(text, depth)

    def list_of(self, parts: list[str], depth: int, *, is_and: bool) -> Value:
        """Read a bare list, conditions, or a family of solutions, which ends in k in Z."""
        if integers := INTEGERS.fullmatch(parts[-1]):
            name = re.compile(rf"(?<![A-Za-z\\]){integers[1]}(?![A-Za-z])")
            return self.value(", ".join(name.sub("n", part) for part in parts[:-1]), depth + 1)
        labelled = [match for part in parts if (match := re.fullmatch(r"\(\d\)\s*(.+)", part))]
        if len(labelled) == len(parts):
            values = tuple(self.value(match[1], depth + 1) for match in labelled)
            return Value("named", PARTS, (Value("items", "()", values),))
        items = tuple(self.value(part, depth + 1) for part in parts)
        if any(item.kind == "items" and not item.text for item in items):  # ±1, ±2
            nested = ((i,) if i.kind != "items" or i.text else i.items for i in items)
            return Value("items", "{}", tuple(item for group in nested for item in group))
        if all(map(_is_range, items)) and any(SIGN.search(part) for part in parts):
            return _both(items) if is_and and len(items) == 2 else Value("union", "", items)
        return _by_name(items)

    def relation(self, text: str, depth: int) -> Value:
        """Read x = 5, 2 < x <= 5, a union or a single value."""
        sides, found = split_top(text, SIGN)
        if not found:
            return self.union(text, depth)
        signs = [SIGNS[sign] for sign in found]
        if not all(sides):
            raise UnreadableError(text)
        if signs == ["in"] and NAME.fullmatch(sides[0]):
            return self.value(sides[1], depth + 1)
        if signs == ["mod"] and (match := RESIDUE.fullmatch(sides[1])) and int(match[2]):
            return Value("base", f"{int(match[1]) % int(match[2])} mod {match[2]}")
        if set(signs) <= {"=", "~"} and "~" not in signs[:-1]:
            if signs[-1] == "~" and not (len(sides) == 2 and NAME.fullmatch(sides[0])):
                text, sides = text.rpartition(found[-1])[0], sides[:-1]
            return self.equation(text, sides, depth) if len(sides) > 1 else self.value(text, depth)
        at = [n for n, side in enumerate(sides) if SYMBOL.fullmatch(side)]
        others = [side for n, side in enumerate(sides) if n not in at]
        if len(at) != 1 or (len(sides) == 3 and at != [1]) or {"in", "mod", "=", "~"} & set(signs):
            return Value("unknown", squeezed(text))
        return _interval(at[0], [self.union(side, depth + 1) for side in others], signs)

    def equation(self, text: str, sides: list[str], depth: int) -> Value:
        """Read a named value, an equation, or a chain of equal values."""
        name, last = re.sub(r"[\s{}]", "", sides[0]), sides[-1]
        symbol = re.escape(re.split(r"[(_]", name)[0])
        is_own = len(symbol) == 1 and re.search(rf"(?<![A-Za-z\\]){symbol}(?![A-Za-z])", last)
        is_named = NAME.fullmatch(sides[0]) and (not is_own or "(" in name[1:])
        if is_named and len(sides) == 2:
            name = " ".join(re.findall(r"\w+", name)) if name[0] == "(" else name
            return Value("named", name, (self.value(last, depth + 1),))
        if len(sides) == 2 and _has_letters(text):
            return Value("equation", text)
        if is_named and all(re.fullmatch(r"[a-z]", side) for side in sides[:-1]):  # x = y = 1
            return Value("items", "()", (self.union(last, depth + 1),) * (len(sides) - 1))
        start = 1 if _has_letters(sides[0]) else 0
        return Value("chain", "", tuple(self.union(side, depth + 1) for side in sides[start:]))

    def union(self, text: str, depth: int) -> Value:
        """Read sets with their union or without some points, or a single value."""
        parts, _ = split_top(text, CUP)
        if len(parts) > 1:
            return Value("union", "", tuple(self.value(part, depth + 1) for part in parts))
        (whole, *without), _ = split_top(text, MINUS)
        if without:
            points = self.value(without[0], depth + 1).items
            return Value("without", "", (self.value(whole, depth + 1), *points))
        return self.single(text, depth)

    def single(self, text: str, depth: int) -> Value:
        """Read a system, a bracketed group, a ratio, a number in a base, ±, or a quantity."""
        if text.startswith("\\begin{cases}") and text.endswith("\\end{cases}"):
            return self.cases(text[13:-11], depth)
        point = re.match(r"[A-Z]\s*(?=\([^()]*,[^()]*\)$)", text)
        text = text[point.end() :] if point else text
        if text[0] in "]" + OPEN and (group := self.group(text, depth)):
            return group
        sides = COLON.split(text)
        if len(sides) > 1:
            return Value("items", ":", tuple(self.single(side.strip(), depth) for side in sides))
        if match := re.fullmatch(r"0([bx])([0-9a-f]+)", text.lower()):
            return Value("base", f"{match[2].lstrip('0')}_{2 if match[1] == 'b' else 16}")
        if match := BASE.fullmatch(text):
            base = BASES.get(match[2].lower(), match[2])
            if str(base).isdigit() and 2 <= int(base) <= 36 and int(match[1][-1], 36) < int(base):
                return Value("base", f"{match[1].lower().lstrip('0')}_{base}")
        if re.search(r"\\(?:pm|mp)(?![a-z])", text):
            both = []
            for upper, lower in ("+-", "-+"):
                one = re.sub(r"\\pm(?![a-z])", upper, re.sub(r"\\mp(?![a-z])", lower, text))
                both.append(self.single(one.strip(), depth))
            return Value("items", "", tuple(both))
        found = quantity(text, letters_are_units=self.letters_are_units)
        return found or Value("formula", text)

    def cases(self, text: str, depth: int) -> Value:
        """Read a system of equations as a list, values and their conditions as a set of pairs."""
        if "&" not in text:
            return self.value(text.replace("\\\\", ","), depth + 1)
        rows = [row.split("&") for row in text.split("\\\\") if row.strip()]
        pairs = [[self.value(cell.strip(" ,;"), depth + 1) for cell in row] for row in rows]
        return Value("items", "{}", tuple(Value("items", "()", tuple(pair)) for pair in pairs))

    def group(self, text: str, depth: int) -> Value | None:
        """Read what is between brackets that match to the end; None if they do not."""
        opener, closer, inner = text[0], text[-1], text[1:-1].strip()
        is_french = opener == "]" or closer == "["
        levels, level = [], 0
        for char in text:
            level += (char in OPEN) - (char in CLOSE)
            levels.append(level)
        if not is_french and (levels[-1] or 0 in levels[:-1] or closer not in CLOSE):
            return None
        if opener == "⦃":
            if condition := CONDITION.match(inner):
                return self.value(condition[1], depth + 1)
            value = self.value(inner, depth + 1)
            is_list = value.kind == "items" and value.text in ("", "{}")
            return Value("items", "{}", value.items if is_list else (value,))
        parts, _ = split_top(inner, SEMICOLON if ";" in inner else BARE_COMMA)
        if len(parts) == 1:
            return self.value(inner, depth + 1) if opener in "({" else None
        left = {"]": "(", "⟨": "("}.get(opener, opener)
        right = {"[": ")", "⟩": ")"}.get(closer, closer)
        return Value("items", left + right, tuple(self.value(part, depth + 1) for part in parts))


def _has_letters(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))


def _is_range(value: Value) -> bool:
    is_pair = value.text in RANGES and len(value.items) == 2
    return value.kind in ("union", "without") or (value.kind == "items" and is_pair)


def _both(items: tuple[Value, ...]) -> Value:
    """Return what x >= 1 and x < 4 have in common; their union where that is nothing."""
    low, high = sorted(items, key=lambda item: item.items[0] == MINUS_INFINITY)
    ends = (low.items[0], high.items[1])
    are_halves = low.items[1] == INFINITY and high.items[0] == MINUS_INFINITY
    if are_halves and {end.kind for end in ends} == {"number"} and ends[0].number < ends[1].number:
        return Value("items", low.text[0] + high.text[1], ends)
    return Value("union", "", items)


def _by_name(items: tuple[Value, ...]) -> Value:
    """Return x = 1, y = 2 as a named tuple in the order of the names; x = 1, x = 2 as a list."""
    names = [item.text for item in items if item.kind == "named"]
    if not names or any(item.kind == "equation" for item in items):
        return Value("items", "", items)
    pairs = [(i.text, i.items[0]) if i.kind == "named" else ("", i) for i in items]
    if len(set(names)) == len(items):
        pairs.sort(key=lambda pair: pair[0])
    values = tuple(value for _, value in pairs)
    if len({re.split(r"[_(]", name)[0] for name in names}) < 2 or len(set(names)) < len(items):
        return Value("items", "", values)
    return Value("named", " ".join(name for name, _ in pairs), (Value("items", "()", values),))


def _interval(at: int, others: list[Value], signs: list[str]) -> Value:
    """Return the interval of 2 < x <= 5 or x > 3, or what x != 1 leaves of the reals."""
    if signs == ["!"]:
        return Value("without", "", (REALS, others[0]))
    low, high, opener, closer = MINUS_INFINITY, INFINITY, "(", ")"
    for n, (sign, other) in enumerate(zip(signs, others, strict=True)):
        if sign == "!" or sign[0] != signs[0][0]:
            raise UnreadableError("signs of two directions")
        if (sign[0] == "<") == (n < at):
            low, opener = other, "[" if "=" in sign else "("
        else:
            high, closer = other, "]" if "=" in sign else ")"
    return Value("items", opener + closer, (low, high))
