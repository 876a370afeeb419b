r"""Equality of two answers that were read: exact where all is rational, else by math-verify.

Three-valued: None where neither knows.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from string import ascii_letters

from dstools_distill.judge.quantities import Value, to_latex
from dstools_distill.judge.reader import SIGN
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.spelling import COMMAND, squeezed
from dstools_distill.judge.units import NONE

MAX_ITEMS = 40
SCALARS, LISTS = {"number", "formula"}, {"", "{}"}
DEGREE, PERCENT, RADIAN = (("°", 1),), (("%", 1),), (("rad", 1),)
MARKS = {DEGREE, PERCENT}  # units that stand for a factor
PLAIN_LOG = re.compile(r"\\log(?![a-z])\s*(?!_)")  # to base 10 or e
# commands that math-verify reads as they are meant
KNOWN = (
    r"binom|frac|over|sqrt|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp|pi|infty|cup|setminus"
    r"|emptyset|mathbb|[lr]floor|[lr]ceil|[lg][te]|ne|begin|end|alpha|beta|[Gg]amma|[Dd]elta|epsilon"
    r"|[Tt]heta|[Ll]ambda|mu|nu|xi|rho|[Ss]igma|tau|[Pp]hi|chi|psi|[Oo]mega|sum|prod"
)
# what it takes for something else: words, two numbers side by side, primes, 1/2x, A^T, dy/dx, 7-8
MISREAD = re.compile(
    rf"[^\x00-\x7f°⦃⦄]|~|(?<!\\)\\(?!(?:{KNOWN})(?![A-Za-z]))(?=[A-Za-z])|\\begin\{{cases"
    r"|(?<![\\A-Za-z])(?![pbv]?matrix|array)[A-Za-z]{4,}|\d\s+\d|--|'|[A-Z]_\{?\d+\}?\^"
    r"|!!|^\d+-\d+$|\(ii|\^\s*\{?\s*(?:\(\w\)|[T*]|\\(?:top|dagger))"
    r"|\d\s*\\frac\s*\{\d|frac(?:\d{3}|\s*\{[^{}]*\}\s*\{\s*(?:d|\\partial)\s*[a-z])"
    r"|/\s*\d+\s*(?:[A-Za-z(]|\\(?!cdot|r|end|\\))|\\(?:log|ln|sin|cos|tan)\s*\w\s*(?:\*|\\cdot)"
)
SUBSCRIPT = re.compile(r"_\s*\{?\w+\}?")
NO_SYMBOL = re.compile(
    r"\\(?:begin|end)\{\w+\}(?:\{[clr|]+\})?|\\mathbb\s*\{?\w|\\[A-Za-z]+|\b(?:or|and)\b"
)
LETTER, CONSTANTS = re.compile("[A-Za-z]"), {"e", "i"}
TO_LATEX = str.maketrans(  # as math-verify reads it
    {"*": "\\cdot ", "I": "\\iota ", "°": "\\cdot\\frac{\\pi}{180}", "⦃": "\\{", "⦄": "\\}"}
)


def every(results: Iterable[bool | None]) -> bool | None:
    """Return whether all results are true; None where that depends on an unknown one."""
    known = list(results)
    return False if False in known else None if None in known else True


def some(results: Iterable[bool | None]) -> bool | None:
    """Return whether any result is true; None where that depends on an unknown one."""
    known = list(results)
    return True if True in known else None if None in known else False


class Comparison:
    """A comparison of one answer with its gold, by a referee that may be asked."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee
        self.asked = False  # whether math-verify was
        self.problem = ""  # why the result is None, if there is more to say

    def same(self, answer: Value, gold: Value) -> bool | None:
        """Return whether two values are equal, also 5 and {5}; None if that is not known."""
        one, other = (
            v.items[0] if v.text == "{}" and len(v.items) == 1 and w.kind in SCALARS else v
            for v, w in ((answer, gold), (gold, answer))
        )
        return self._same(one, other)

    def _same(self, answer: Value, gold: Value) -> bool | None:
        """Compare two values, or two items of them."""
        if answer == gold:
            return True
        for line, other in ((answer, gold), (gold, answer)):
            if line.text == "(=)":
                return self._in_two_units(line.items, other)
            if line.text == "≈":
                if not self._rounds(*line.items):
                    return None
                return some(self._same(side._replace(name=line.name), other) for side in line.items)
        if ("\\xi" in answer.text) != ("\\xi" in gold.text):
            answer, gold = _as_family(answer, gold.text), _as_family(gold, answer.text)
        kinds = {answer.kind, gold.kind}
        are_named = answer.name and gold.name and (" " in answer.name) == (" " in gold.name)
        if answer.name != gold.name and (are_named or "=" in answer.text + gold.text):
            if "[" in answer.name + gold.name:  # [H^+] and [OH^-]
                return None
            equations = (f"{v.name} = {to_latex(v)}" if v.name else v.text for v in (answer, gold))
            return self._ask(*equations) if kinds <= SCALARS else None
        if kinds == {"items"}:
            return self._items(answer, gold)
        if "base" in kinds:  # 52 for 52_8; in another base the same number may be meant
            is_same_base = answer.text.partition("_")[1:] == gold.text.partition("_")[1:]
            return gold.text[:-1] == f"{to_latex(answer)}_" or (False if is_same_base else None)
        if kinds <= SCALARS:
            return self._quantities(answer, gold)
        if kinds == {"items", "number"}:
            if answer.number == gold.number != 0:  # 3,5 may be 3.5
                return gold.kind == "number" or None
            items = {item.kind for item in answer.items + gold.items}  # 42, apples
            is_known = items == {"number"} and answer.number.denominator == 1
            return False if is_known and gold.number.denominator == 1 else None
        return self._ask(*map(_as_matrix, (answer, gold)))

    def _in_two_units(self, sides: tuple[Value, ...], other: Value) -> bool | None:
        """Return whether one of two quantities that are said to be equal is `other`."""
        one, two = sides
        if one.kind == two.kind and one.unit.of == two.unit.of and not self._quantities(one, two):
            return None
        return some(self._same(side, other) for side in sides) or None

    def _quantities(self, answer: Value, gold: Value) -> bool | None:
        """Compare two quantities; a unit may be missing, and 50% is 0.5 or 50."""
        is_figure = answer.kind == "number" and "\\" not in gold.text  # 5 for 5 m, not for x m
        if gold.kind == "number" and gold.text and answer.unit == NONE and not is_figure:
            gold = gold._replace(kind="formula", unit=NONE)
        if answer.kind == "number" and answer.text and (gold.kind, gold.unit) == ("formula", NONE):
            answer = answer._replace(kind="formula", unit=NONE)
        units = {answer.unit.of, gold.unit.of}
        if len(units) == 1:
            return self._scalars(*(_times(v, v.unit.factor) for v in (answer, gold)))
        if () not in units and units != {DEGREE, RADIAN}:
            self.problem = "units"
            return None
        given, wanted = (
            _times(v, v.unit.factor if v.unit.of in MARKS else Fraction(1)) for v in (answer, gold)
        )
        is_same = self._scalars(given, wanted) if () in units else False
        if is_same and PERCENT in units:  # 0.5% and 0.5 are ambiguous
            return (wanted.kind == "number" and abs(wanted.number) > 1) or None
        if is_same or not units & MARKS:
            return is_same or (None if _are_multiples(given, wanted) else is_same)
        pairs = ((given, answer.unit), (wanted, gold.unit))
        return self._scalars(*(_unmarked(value, unit.of) for value, unit in pairs))

    def _scalars(self, answer: Value, gold: Value) -> bool | None:
        """Compare two numbers or formulas without their units."""
        if answer.kind == gold.kind == "number":
            is_decimal = answer.number > 1 and answer.number.denominator > 1
            is_grouped = is_decimal and answer.number * 1000 == gold.number  # 12.500 may be 12500
            is_same = None if is_grouped else answer.number == gold.number
        else:
            is_same = self._ask(to_latex(answer), to_latex(gold))
        is_rounded = is_same is False and gold.number.denominator > 1 and self._rounds(answer, gold)
        return None if is_rounded else is_same

    def _rounds(self, exact: Value, rounded: Value) -> bool | None:
        """Return whether a value rounds to a decimal; None for other values."""
        places = [n for n in range(10) if 10**n % rounded.number.denominator == 0]
        if exact.kind not in SCALARS or rounded.kind != "number" or not places:
            return None
        scale = 10 ** places[0]
        if exact.kind == "number":
            return bool(abs(exact.number - rounded.number) * 2 * scale <= 1)
        nearest = (
            f"\\lfloor {scale} * ({exact.text.rpartition('=')[2]}) + \\frac{{1}}{{2}} \\rfloor"
        )
        return self._ask(nearest, str(rounded.number * scale))

    def _ask(self, answer: str, gold: str) -> bool | None:
        """Ask math-verify about two formulas, equations or sets, unless it would misread one."""
        if squeezed(answer) == squeezed(gold):
            return True
        texts = [answer, gold]
        misread = [bool(MISREAD.search(SUBSCRIPT.sub("", text))) for text in texts]
        if any(misread):
            self.problem = "answer-not-read" if misread[0] else "gold-not-read"
            return None
        here, there = (set(LETTER.findall(NO_SYMBOL.sub(" ", text))) for text in texts)
        symbols = here | there | set(COMMAND.findall(f"{answer} {gold}"))
        both = {name for name in symbols if name != name.lower() in symbols}  # R is read as r
        texts = [_renamed(text, both, symbols) for text in texts]
        are_renamed = here - there and there - here  # a_n = 2n, and a_k = 2k
        logs = {bool(PLAIN_LOG.search(text)) for text in texts}
        is_number = ("°" in answer) != ("°" in gold) and "\\pi" not in answer + gold  # 60 + x
        are_fixed = both and ("d" in symbols or max(map(len, both)) > 1)  # dx, or \Delta and \delta
        if are_fixed or are_renamed or len(logs) > 1 or is_number:
            return None
        self.asked = True
        equal = self.referee.math(*(text.translate(TO_LATEX) for text in texts))
        if isinstance(equal, bool):  # letters of one alone may be a unit; ln 2x + C is ln x + C
            are_values = not SIGN.search(answer + gold)
            is_unit = are_values and bool(here - CONSTANTS) != bool(there - CONSTANTS)
            return equal or (None if is_unit or answer[-1:] == gold[-1:] == "C" else False)
        self.problem = equal or "math-verify-cannot-read"
        return None

    def _items(self, answer: Value, gold: Value) -> bool | None:
        """Compare lists, tuples and sets."""
        brackets = {answer.text, gold.text}
        if answer.name != gold.name and "()" in brackets:
            names = (answer.name or gold.name).split()
            letters = "".join(dict.fromkeys(name[0] for name in names))
            if len(names) > 1 and letters not in ascii_letters:  # m, b
                return None
            if "" in brackets:  # in the order of the names?
                return self._sequence(answer.items, gold.items) or None
        if brackets - LISTS:
            equal = None if brackets & LISTS else self._sequence(answer.items, gold.items)
            is_pair = brackets == {"()", "[]"}  # [3, 4] may be one, not an interval
            return equal if len(brackets) == 1 or not equal else None if is_pair else False
        if max(len(answer.items), len(gold.items)) > MAX_ITEMS:
            return None
        table = [[self._same(one, other) for other in gold.items] for one in answer.items]
        columns = [[line[k] for line in table] for k in range(len(gold.items))]
        equal = every(map(some, [*table, *columns]))
        if equal and gold.text == "":  # 1, 1, 2 is not 1, 2
            equal = all(line.count(True) == columns.count(line) for line in columns)
        if equal and brackets == {""} and (len(columns) > 2 or answer.name == gold.name != ""):
            self.problem = "order"  # which may have been asked for, or a_1 and a_2
            return self._sequence(answer.items, gold.items) or None
        return equal

    def _sequence(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Compare the items of two lists in their order."""
        if len(answer) != len(gold):
            return False
        return every(self._same(one, other) for one, other in zip(answer, gold, strict=True))


def _as_matrix(value: Value) -> str:
    """Return a value in LaTeX, a list of lists, [[2, 0], [0, 2]], as a matrix."""
    if value.text != "[]" or any(row.text != "[]" for row in value.items):
        return to_latex(value)
    rows = r" \\ ".join(" & ".join(map(to_latex, row.items)) for row in value.items)
    return rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"


def _as_family(value: Value, other: str) -> Value:
    """Return a formula in k or n as a family, for all integers, where `other` is a family."""
    letters = {*LETTER.findall(COMMAND.sub(" ", value.text))}
    if (
        "\\xi" not in other
        or "\\pi" not in value.text
        or value.kind != "formula"
        or letters not in ({"k"}, {"n"})
    ):
        return value
    (letter,) = letters
    if letter in value.name:  # E_n = n pi
        return value
    members = re.sub(rf"(?<![A-Za-z]){letter}", r"\\xi ", value.text)
    return value._replace(text=f"⦃{members}⦄")


def _renamed(text: str, capitals: set[str], taken: set[str]) -> str:
    """Return a formula with other small letters for some capitals; commands stay."""
    free = iter(
        letter for letter in "uvwpqrstyzabcdfghjklm" if not {letter, letter.upper()} & taken
    )
    names = dict(zip(sorted(capitals), free, strict=False))
    return re.sub(r"\\[A-Za-z]+|[A-Z]", lambda m: names.get(m[0], m[0]), text)


def _times(value: Value, factor: Fraction) -> Value:
    """Return a value without its unit, times a number."""
    if value.kind == "number":
        return Value("number", number=value.number * factor)
    factors = f"{to_latex(Value('number', number=factor))} * ({value.text})"
    return Value("formula", factors if factor != 1 else value.text)


def _are_multiples(one: Value, other: Value) -> bool:
    """Return whether one number is the other times an integer of two digits or more."""
    smaller, larger = sorted((abs(one.number), abs(other.number)))
    return smaller > 0 and (larger / smaller).denominator == 1 and larger >= 10 * smaller


def _unmarked(value: Value, of: tuple[tuple[str, int], ...]) -> Value:
    """Return a percentage as a number, and degrees in radians."""
    if of == DEGREE:
        return Value("formula", f"({to_latex(value)}) * \\frac{{\\pi}}{{180}}")
    return _times(value, Fraction(1, 100)) if of == PERCENT else value
