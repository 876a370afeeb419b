r"""Equality of two answers that were read: exact where all is rational, else by math-verify.

Three-valued: None where neither knows.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

from dstools_distill.judge.quantities import Value
from dstools_distill.judge.reader import EMPTY, RANGES
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.spelling import squeezed

MAX_ITEMS = 40
SCALARS, SETS, LISTS = {"number", "formula"}, {"union", "without"}, ("", "{}")
DEGREE, PERCENT, RADIAN = (("°", 1),), (("%", 1),), (("rad", 1),)
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*\d+\s*°")
PLAIN_LOG = re.compile(r"\\log(?![a-z])\s*(?!_)")  # to base 10 or e
# what math-verify takes for something else: words, two numbers side by side, 1/2x, sums, primes
MISREAD = re.compile(
    r"[^\x00-\x7f°]|\\(?:text|sum|int|prod|lim|mod|pmod|forall|operatorname|begin\{cases|(?:neq?|in)\b)"
    r"|(?<![\\A-Za-z])(?![pbv]?matrix)[A-Za-z]{4,}|\d\s+\d|--|'|[<>]|[A-Z]_\{?\d+\}?\^"
    r"|/\s*\d+\s*(?:[A-Za-z(]|\\(?!cdot|r|end|\\))|\\(?:log|ln|sin|cos|tan)\s*\w\s*(?:\*|\\cdot)"
)
SUBSCRIPT, COMMAND = re.compile(r"_\s*\{?\w+\}?"), re.compile(r"\\[A-Za-z]+")
LETTER = re.compile("[A-Za-z]")
INFINITE = {"\\infty": 1, "+\\infty": 1, "-\\infty": -1}
FUNCTION = re.compile(r"(\w+)\((\w)\)")


class Comparison:
    """A comparison of one answer with its gold, by a referee that may be asked.

    ordered: True to read any list as a tuple, False as a set, None to go by its brackets.
    """

    def __init__(self, referee: Referee, ordered: bool | None) -> None:
        self.referee, self.ordered = referee, ordered
        self.asked = False  # whether math-verify was
        self.problem = ""  # why the result is None, if there is more to say

    def same(self, answer: Value, gold: Value) -> bool | None:
        """Return whether two values are equal; None if that is not known."""
        if answer == gold:
            return True
        kinds = {answer.kind, gold.kind}
        if "unknown" in kinds:
            return None
        if "chain" in kinds:
            return self.chain(answer, gold)
        if kinds & {"named", "equation"}:
            return self.named(answer, gold)
        answer, gold = _alone(answer, gold), _alone(gold, answer)
        kinds = {answer.kind, gold.kind}
        if kinds & SETS:
            sets = [_set_text(value) for value in (answer, gold)]
            return self.referred(*sets) if all(sets) else _false("number" in kinds)
        if kinds == {"items"}:
            return self.items(answer, gold)
        if kinds <= SCALARS:
            return self.quantities(answer, gold)
        if kinds == {"base"}:
            return answer.text == gold.text
        if gold.kind == "base" and answer.kind == "number":  # the base may have been asked for
            return gold.text.partition("_")[0] == str(answer.number) or None
        return _false(kinds == {"items", "number"} and not _may_be_decimal(answer, gold))

    def chain(self, answer: Value, gold: Value) -> bool | None:
        """Compare 57 + 68 = 125 by its last value, if all its sides are equal."""
        for value in (answer, gold):
            if value.kind == "chain":
                sides = _all(self.same(side, value.items[-1]) for side in value.items[:-1])
                if not sides:
                    return sides
        one, other = (v.items[-1] if v.kind == "chain" else v for v in (answer, gold))
        return self.same(one, other)

    def named(self, answer: Value, gold: Value) -> bool | None:
        """Compare named values and equations."""
        if "equation" not in (answer.kind, gold.kind):
            one, other = (v.items[0] if v.kind == "named" else v for v in (answer, gold))
            if answer.text == gold.text and answer.kind == gold.kind:
                return self.same(one, other)
            if answer.kind != gold.kind:
                if " " in answer.text + gold.text and {one.text, other.text} & set(LISTS):
                    return (
                        (self.sequence(one.items, other.items) or None)
                        if "" in (one.text, other.text)
                        else None
                    )
                return self.same(one, other)
            functions = [FUNCTION.fullmatch(value.text) for value in (answer, gold)]
            if functions[0] and functions[1]:  # f(x) = x + 1 and f(n) = n + 1
                name = rf"(?<![A-Za-z\\]){functions[0][2]}(?![A-Za-z])"
                renamed = one._replace(text=re.sub(name, functions[1][2], one.text))
                return self.same(renamed, other) if functions[0][1] == functions[1][1] else None
        texts = [_equation(value) for value in (answer, gold)]
        return self.ask(*texts) if all(texts) else None

    def quantities(self, answer: Value, gold: Value) -> bool | None:
        """Compare two quantities; a unit may be missing, and 50% is 0.5 or 50."""
        one, other = answer.unit.of, gold.unit.of
        if one == other:
            factors = [value.unit.times * value.unit.factor for value in (answer, gold)]
            return self.scalars(_times(answer, factors[0]), _times(gold, factors[1]))
        given, wanted = _times(answer, answer.unit.times), _times(gold, gold.unit.times)
        if () not in (one, other) and {one, other} != {DEGREE, RADIAN}:
            self.problem = "units"
            return None
        is_same = self.scalars(given, wanted) if RADIAN not in (one, other) else False
        if PERCENT in (one, other):
            if is_same:  # 0.5% and 0.5 are ambiguous
                return (wanted.kind == "number" and abs(wanted.number) > 1) or None
            part, symbol = Fraction(1, 100), ""
        elif DEGREE in (one, other) and not is_same:
            part, symbol = Fraction(1, 180), "\\pi"
        else:
            return is_same
        marked = PERCENT if PERCENT in (one, other) else DEGREE
        if one == marked:
            return self.scalars(_times(given, part, symbol), wanted)
        return self.scalars(given, _times(wanted, part, symbol))

    def scalars(self, answer: Value, gold: Value) -> bool | None:
        """Compare two numbers or formulas without their units."""
        if answer.kind == gold.kind == "number":
            return answer.number == gold.number
        signs = [INFINITE.get(squeezed(value.text)) for value in (answer, gold)]
        return signs[0] == signs[1] if any(signs) else self.ask(_text(answer), _text(gold))

    def ask(self, answer: str, gold: str) -> bool | None:
        """Ask math-verify, unless it is known to misread one."""
        if squeezed(answer) == squeezed(gold):
            return True
        texts = (answer, gold)
        degrees = ["°" in TRIGONOMETRIC.sub("", text) for text in texts]
        if degrees[0] != degrees[1] and "\\pi" in texts[degrees[0]]:
            answer, gold = (text.replace("°", "*\\frac{\\pi}{180}") for text in texts)
            texts, degrees = (answer, gold), [False, False]
        misread = [bool(MISREAD.search(SUBSCRIPT.sub("", text))) for text in texts]
        if any(misread):
            self.problem = "answer-not-read" if misread[0] else "gold-not-read"
            return None
        logs = [bool(PLAIN_LOG.search(text)) for text in texts]
        letters = set(LETTER.findall(COMMAND.sub(" ", f"{answer} {gold}")))
        has_both_cases = len({letter.lower() for letter in letters}) < len(
            letters
        )  # R is read as r
        if has_both_cases or degrees[0] != degrees[1] or logs[0] != logs[1]:
            return None
        return self.referred(_latex(answer), _latex(gold))

    def referred(self, answer: str, gold: str) -> bool | None:
        """Ask math-verify about two formulas or sets in LaTeX."""
        self.asked = True
        found = self.referee.math(answer, gold)
        if isinstance(found, bool):
            return found
        self.problem = found or "math-verify-cannot-read"
        return None

    def items(self, answer: Value, gold: Value) -> bool | None:
        """Compare lists, tuples, sets and ratios."""
        brackets = (answer.text, gold.text)
        if ":" in brackets:
            return self.ratio(answer.items, gold.items) if brackets == (":", ":") else None
        are_lists = [text in LISTS for text in brackets]
        ordered = self.ordered
        if ordered is None:
            if are_lists[0] != are_lists[1]:
                return None
            if brackets[0] != brackets[1] and not are_lists[0]:
                return False
            ordered = not are_lists[0]
        if ordered:
            return self.sequence(answer.items, gold.items)
        if "{}" not in brackets and len(answer.items) != len(gold.items):
            return False
        if max(len(answer.items), len(gold.items)) > MAX_ITEMS:
            return None
        found = self.subset(answer.items, gold.items)
        if found and brackets == ("", "") and self.ordered is None and len(gold.items) > 2:
            self.problem = "order"  # which may have been asked for
            return self.sequence(answer.items, gold.items) or None
        return found

    def sequence(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Compare the items of two lists in their order."""
        if len(answer) != len(gold):
            return False
        return _all(self.same(one, other) for one, other in zip(answer, gold, strict=True))

    def subset(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Compare the items of two lists, each with each."""
        table = [[self.same(one, other) for other in gold] for one in answer]
        columns = [[row[n] for row in table] for n in range(len(gold))]
        return _all(
            True if True in line else None if None in line else False for line in table + columns
        )

    def ratio(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Compare 3:5 and 6:10 by their cross products."""
        if len(answer) != len(gold):
            return False
        products = (
            [_product(one, gold[0]), _product(other, answer[0])]
            for one, other in zip(answer[1:], gold[1:], strict=True)
        )
        return _all(self.scalars(*pair) for pair in products)


def _all(results: Iterable[bool | None]) -> bool | None:
    found = list(results)
    return False if False in found else None if None in found else True


def _false(is_known: bool) -> bool | None:
    return False if is_known else None


def _alone(value: Value, other: Value) -> Value:
    """Return the only element of a set if the other side is none."""
    is_single = value.kind == "items" and value.text == "{}" and len(value.items) == 1
    return value.items[0] if is_single and other.kind != "items" else value


def _may_be_decimal(*values: Value) -> bool:
    """Return whether a list of two, 3,5, may be the decimal 3.5."""
    listed, single = sorted(values, key=lambda value: value.kind)
    if len(listed.items) != 2 or listed.text or {item.kind for item in listed.items} != {"number"}:
        return False
    return f"{listed.items[0].number}.{listed.items[1].number}" == f"{float(single.number):g}"


def _times(value: Value, factor: Fraction, symbol: str = "") -> Value:
    """Return a value without its unit, times a number and a symbol."""
    if value.kind == "number" and not symbol:
        return Value("number", number=value.number * factor)
    if factor == 1:
        return Value("formula", value.text)
    text = f"\\frac{{{factor.numerator}}}{{{factor.denominator}}} * ({_text(value)})"
    return Value("formula", f"{text} * {symbol}" if symbol else text)


def _product(one: Value, other: Value) -> Value:
    if one.kind == other.kind == "number":
        return Value("number", number=one.number * other.number)
    return Value("formula", f"({_text(one)}) * ({_text(other)})")


def _text(value: Value) -> str:
    if value.kind != "number":
        return value.text
    above, below = value.number.as_integer_ratio()
    return str(above) if below == 1 else f"{'-' * (above < 0)}\\frac{{{abs(above)}}}{{{below}}}"


def _equation(value: Value) -> str:
    """Return an equation, or the one that a named value is; "" for other values."""
    if value.kind == "named" and value.items[0].kind in SCALARS:
        return f"{value.text} = {_text(value.items[0])}"
    return value.text if value.kind == "equation" else ""


def _set_text(value: Value) -> str:
    """Return intervals, their union, or a set without some points in LaTeX; "" for others."""
    if value == EMPTY:
        return "\\emptyset"
    texts = [_latex(_text(v)) if v.kind in SCALARS else _set_text(v) for v in value.items]
    if not all(texts):
        return ""
    if value.kind == "union":
        return "\\cup ".join(texts)
    if value.kind == "without":
        return f"({texts[0]}) \\setminus \\{{{', '.join(texts[1:])}\\}}"
    if value.text not in RANGES or len(texts) != 2:
        return ""
    return f"\\left{value.text[0]}{texts[0]}, {texts[1]}\\right{value.text[1]}"


def _latex(text: str) -> str:
    for mark, command in (("*", "\\cdot "), ("°", "^{\\circ}"), ("\\lg", "\\log_{10}")):
        text = text.replace(mark, command)
    return text
