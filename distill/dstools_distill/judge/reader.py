r"""Exact reader of answers: quantities, bases, ratios, lists, tuples, sets, intervals, names.

    read("3 1/2 hours")                        ->  number 7/2, unit hour
    read(r"\left[0, \tfrac{\pi}{2}\right)")    ->  items "[)" of the number 0 and a formula

What it does not know stays a formula, as text: math-verify reads that.
"""

import re
from fractions import Fraction
from itertools import accumulate

from dstools_distill.judge.quantities import UnreadableError, Value, latex, quantity
from dstools_distill.judge.spelling import plain, squeezed
from dstools_distill.judge.units import NONE

MAX_CHARS, MAX_DEPTH = 2000, 12
OPENING, CLOSING = "([{⦃⟨", ")]}⦄⟩"
CONSTANTS = {
    "\\emptyset": Value("items", "{}"), "\\varnothing": Value("items", "{}"),
    "⦃⦄": Value("items", "{}"), "\\mathbbR": Value("set", "(-\\infty, \\infty)"),
}  # fmt: skip


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
    parts, between, depth, start, at = [], [], 0, 0, 0
    while at < len(text):
        if not depth and (match := separators.match(text, at)):
            parts.append(text[start:at].strip())
            between.append(match[0])
            start = at = match.end()
            continue
        opens = text[at] in OPENING or text.startswith("\\begin", at)
        closes = text[at] in CLOSING or text.startswith("\\end", at)
        depth = max(0, depth + opens - closes)
        at += 1
    return [*parts, text[start:].strip()], between


LISTS = (
    re.compile(";"),
    re.compile(
        r",|、|\\text\s*\{\s*,?\s*(?:或|和)\s*,?\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|或|和|且"
    ),
)
BARE_COMMA = re.compile(",")
RELATION = r"[<>]=?|\\(?:[lg]t|[lg]eq?(?:slant)?|neq?|cup|setminus|backslash)(?![A-Za-z])"
SIGN = re.compile(RELATION + r"|=|\\(?:approx|in|equiv)(?![A-Za-z])")
LETTER = r"[A-Za-z](?:_\{?\w+\}?)?"
GREEK = r"\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|Delta|sigma|rho)"
NAME = re.compile(
    r"(?:\\angle|\\overrightarrow|\\vec|\\overline|\\triangle)?\s*\{?\|?\s*(?![ei]$)[A-Za-z]{1,3}'?"
    rf"\s*\|?\}}?(?:_\{{?\w+\}}?)?|{GREEK}|(?:{LETTER}\s*)?\([A-Za-z](?:\s*,\s*[A-Za-z])*\)"
)
BASE = re.compile(
    r"\(?(?:\\text\s*\{)?(\d[0-9A-Fa-f]*)\}?\)?\s*_\s*\{?\s*(?:\\text\s*\{)?\(?\s*(\w+)\s*\)?[\s}]*"
)
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
         "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip
RESIDUE = re.compile(r"(-?\d+)\s*\(?\\p?mod\s*\{?\s*(\d+)\s*\}?\s*\)?")
INTEGERS = re.compile(r"([A-Za-z])\s*\\in\s*\\mathbb\s*\{?\s*[NQZ]\s*\}?")
DOTS = re.compile(r"\\[lc]?dots(?![a-z])|\.\.\.|…")
REPEATED = re.compile(r"(\d*\.\d*?)(\d+?)\2{2,}\s*(?:\.\.\.|…|\\[lc]?dots)\Z")
COLON = re.compile(r"(?<=[\d}])\s*:\s*(?=[\d\\])")
CONDITION = re.compile(r"\s*\(?[^|:]*?\)?\s*(?:\||:|\\mid)(.*)")
PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
CASES = re.compile(r"\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)


class _Reader:
    def __init__(self, letters_are_units: bool) -> None:
        self.letters_are_units = letters_are_units

    def value(self, text: str, depth: int) -> Value:
        """Read a list, a relation, or one of what they hold."""
        text = text.strip().removeprefix("\\ ").removesuffix("\\").strip()
        if not text or depth > MAX_DEPTH:
            raise UnreadableError(text)
        text = REPEATED.sub(r"\1\\overline{\2}", text)
        if DOTS.search(text):
            return Value("unknown", squeezed(text))
        if constant := CONSTANTS.get(re.sub(r"[\s{}]", "", text)):
            return constant
        if match := re.fullmatch(r"0(?:b([01]+)|x([0-9a-f]+))", text.lower()):
            digits, base = match[1] or match[2], 2 if match[1] else 16
            return Value("base", f"{digits.lstrip('0')}_{base}", number=Fraction(int(digits, base)))
        if text[0] == "]":  # ]1, 2[
            return self.single(text, depth)
        if depth == 0 and (whole := quantity(text, letters_are_units=self.letters_are_units)):
            return whole
        for separators in LISTS:
            parts = [part for part in split_top(text, separators)[0] if part]
            if len(parts) > 1:
                return self.list_of(parts, depth)
        return self.relation(text, depth)

    def list_of(self, parts: list[str], depth: int) -> Value:
        """Read a bare list, conditions, or a family of solutions, which ends in k in Z."""
        if integers := INTEGERS.fullmatch(parts[-1]):
            name = re.compile(rf"(?<![A-Za-z\\]){integers[1]}(?![A-Za-z])")
            value = self.value(", ".join(name.sub("n", part) for part in parts[:-1]), depth + 1)
            if value.kind == "set" or "Z" not in parts[-1]:  # integers are not an interval
                raise UnreadableError(str(parts))
            return value
        labels = [re.fullmatch(r"\(\d\)\s*(.+)", part) for part in parts]
        items = [
            self.value(label[1] if label else part, depth + 1)
            for label, part in zip(labels, parts, strict=True)
        ]
        if all(labels):
            return Value("named", "(1) (2)", (Value("items", "()", tuple(items)),))
        if any(item.kind == "set" for item in items):
            return Value("set", ", ".join(parts))
        if any(item.kind == "items" and not item.text for item in items):  # ±1, ±2
            nested = ((i,) if i.kind != "items" or i.text else i.items for i in items)
            return Value("items", "{}", tuple(item for group in nested for item in group))
        return _by_name(items)

    def relation(self, text: str, depth: int) -> Value:
        """Read x = 5, an equation, a chain of equal values, 2 < x <= 5, or a single value."""
        sides, signs = split_top(text, SIGN)
        if not all(sides):
            raise UnreadableError(text)
        if not signs:
            return self.single(text, depth)
        is_named, last = NAME.fullmatch(sides[0]), sides[-1]
        if signs[0] == "\\in" and is_named:
            return self.value(text.partition("\\in")[2], depth + 1)
        if signs == ["\\equiv"] and (match := RESIDUE.fullmatch(last)) and int(match[2]):
            return Value("base", f"{int(match[1]) % int(match[2])} mod {match[2]}")
        if all(re.fullmatch(RELATION, sign) for sign in signs):
            return Value("set", text)
        if set(signs[:-1]) - {"="} or signs[-1] not in ("=", "\\approx"):
            return Value("unknown", squeezed(text))
        if signs[-1] != "=" and not (is_named and len(sides) == 2):  # 1/3 is about 0.33
            return self.value(text.rpartition(signs[-1])[0], depth + 1)
        return self.equation(text, sides, depth)

    def equation(self, text: str, sides: list[str], depth: int) -> Value:
        """Read a named value, an equation, or a chain of equal values."""
        name, last = re.sub(r"[\s{}]", "", sides[0]), sides[-1]
        symbol = re.escape(re.split(r"[(_]", name)[0])
        is_own = len(symbol) == 1 and re.search(rf"(?<![A-Za-z\\]){symbol}(?![A-Za-z])", last)
        is_named = NAME.fullmatch(sides[0]) and (not is_own or "(" in name[1:])
        if is_named and len(sides) == 2:
            if name[0] == "(":
                name = " ".join(re.findall(r"\w+", name))
            elif (function := re.fullmatch(r"(\w+)\((\w)\)", name)) and "x" not in last:
                name = f"{function[1]}(x)"  # f(n) = n + 1
                last = re.sub(rf"(?<![A-Za-z\\]){function[2]}(?![A-Za-z])", "x", last)
            return Value("named", name, (self.value(last, depth + 1),))
        if len(sides) == 2 and _has_letters(text):
            return Value("equation", text)
        if is_named and all(re.fullmatch(r"[a-z]", side) for side in sides[:-1]):  # x = y = 1
            return Value("items", "()", (self.single(last, depth + 1),) * (len(sides) - 1))
        start = 1 if _has_letters(sides[0]) else 0
        return Value("chain", "", tuple(self.single(side, depth + 1) for side in sides[start:]))

    def single(self, text: str, depth: int) -> Value:
        """Read a system, a bracketed group, a ratio, a number in a base, ±, or a quantity."""
        if (system := CASES.fullmatch(text)) and "&" not in text:
            return self.value(system[1].replace("\\\\", ","), depth + 1)
        text = re.sub(r"^[A-Z]\s*(?=\([^()]*,[^()]*\)$)", "", text)  # a point
        if text[0] in "]" + OPENING and (group := self.group(text, depth)):
            return group
        sides = COLON.split(text)
        if len(sides) > 1:
            return _ratio([self.single(side.strip(), depth) for side in sides])
        if match := BASE.fullmatch(text):
            base = BASES.get(match[2].lower(), match[2])
            digits = match[1].lower().lstrip("0")
            if (
                not str(base).isdigit()
                or not max(int(d, 16) for d in f"{digits}1") < int(base) <= 36
            ):
                raise UnreadableError(text)
            return Value("base", f"{digits}_{base}")
        if PLUS_MINUS.search(text):
            both = (PLUS_MINUS.sub(sign, text).strip() for sign in "+-")
            return Value("items", "", tuple(self.single(one, depth) for one in both))
        whole = quantity(text, letters_are_units=self.letters_are_units)
        return whole or Value("formula", text)

    def group(self, text: str, depth: int) -> Value | None:
        """Read what is between brackets that match to the end; None if they do not."""
        opener, closer, inner = text[0], text[-1], text[1:-1].strip()
        is_french = opener == "]" or closer == "["
        levels = list(accumulate((char in OPENING) - (char in CLOSING) for char in text))
        if not is_french and (levels[-1] or 0 in levels[:-1] or closer not in CLOSING):
            return None
        if opener == "⦃":
            if condition := CONDITION.match(inner):
                if INTEGERS.match(inner):
                    raise UnreadableError(text)
                return self.value(condition[1], depth + 1)
            value = self.value(inner, depth + 1)
            is_list = value.kind == "items" and value.text in ("", "{}")
            return Value("items", "{}", value.items if is_list else (value,))
        parts, _ = split_top(inner, LISTS[0] if ";" in inner else BARE_COMMA)
        if len(parts) == 1:
            return self.value(inner, depth + 1) if opener in "({" else None
        left = {"]": "(", "⟨": "("}.get(opener, opener)
        right = {"[": ")", "⟩": ")"}.get(closer, closer)
        items = tuple(self.value(part, depth + 1) for part in parts)
        if all(item.text == "[]" for item in items):  # [[1, 2], [3, 4]]
            rows = "\\\\".join(" & ".join(map(latex, item.items)) for item in items)
            return Value("formula", f"\\begin{{pmatrix}}{rows}\\end{{pmatrix}}")
        return Value("items", left + right, items)


def _has_letters(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))


def _by_name(items: list[Value]) -> Value:
    """Return x = 1, y = 2 as a named tuple in the order of the names; x = 1, x = 2 as a list."""
    if all(item.kind == "named" for item in items):
        if len({item.text for item in items}) == len(items):
            items = sorted(items, key=lambda item: item.text)
        names = [item.text for item in items]
        if len({re.split(r"[_(]", name)[0] for name in names}) == len(names):
            values = tuple(item.items[0] for item in items)
            return Value("named", " ".join(names), (Value("items", "()", values),))
    return Value("items", "", tuple(i.items[0] if i.kind == "named" else i for i in items))


def _ratio(items: list[Value]) -> Value:
    """Return a ratio with all its numbers divided by the last one."""
    last = items[-1]
    if {item.kind for item in items} == {"number"}:
        parts = [item._replace(number=item.number / last.number) for item in items]
    else:
        parts = [Value("formula", f"\\frac{{{latex(item)}}}{{{latex(last)}}}") for item in items]
    return Value("items", ":", tuple(parts))
