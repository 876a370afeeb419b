"""Whether two formulas are equal: exactly where they are rational, else by values of 50 digits at random points.

The second opinion beside math-verify. It errs towards None: equal at four points, with symbols positive and
negative, is taken for equal; a function that is not known, a division by zero, a huge power is not judged.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from math import comb, factorial, log2
from typing import Any, NamedTuple

from mpmath import MPContext

from dstools_distill.formula import Node

DIGITS, TOLERANCE = 50, 1e-30  # 20 digits are for what cancels
POINTS = 4
MAX_BITS, MAX_MAGNITUDE = 20_000, 1e6  # of exact powers; of exponents to base 2
MAX_ITEMS = 40
_mp = MPContext()
_mp.dps = DIGITS
Float = Any  # a real or complex number of mpmath
Number = Fraction | Float
BARE = ("", "{}")  # a bare list is a set: nobody says in which order solutions come


class Equality(NamedTuple):
    """What a comparison found."""

    is_equal: bool
    is_exact: bool  # by rational numbers alone


class NotComparableError(Exception):
    """The values cannot be told."""


def equal(answer: Node, gold: Node, ordered: bool | None = None) -> Equality | None:
    """Return whether an answer has the value of the gold; None where that cannot be told.

    ordered: True where brackets of any kind, or none, hold a tuple; False where they hold a set; None
    where they say it themselves.
    """
    try:
        return _Comparison(ordered).same(settled(answer), settled(gold))
    except (NotComparableError, ArithmeticError, ValueError, RecursionError):
        return None


class _Comparison:
    def __init__(self, ordered: bool | None) -> None:
        self.ordered = ordered

    def same(self, answer: Node, gold: Node) -> Equality:
        answer, gold = _alone(answer, gold), _alone(gold, answer)
        if gold.op == "relation" or answer.op == "relation":
            answer, gold = without_name(answer, gold)
        if gold.op == "unit" or answer.op == "unit":
            return self.quantities(answer, gold)
        kinds = {answer.op, gold.op} & STRUCTURES
        if not kinds:
            return same_scalars(answer, gold)
        if answer.op != gold.op:
            return Equality(False, is_exact=kinds <= {"group", "matrix", "union"})
        match gold.op:
            case "base":
                return Equality(answer.name == gold.name, is_exact=True)
            case "relation":
                return same_relations(answer, gold)
            case "group":
                return self.groups(answer, gold)
            case "union":
                return self.set_items(answer.args, gold.args)
        return self.tuple_items(answer.args, gold.args)

    def groups(self, answer: Node, gold: Node) -> Equality:
        ordered = self.ordered
        if ordered is None:
            are_bare = answer.name in BARE and gold.name in BARE
            if answer.name != gold.name and not are_bare:
                if "" in (answer.name, gold.name):
                    raise NotComparableError("a list and a tuple")
                return Equality(False, is_exact=True)
            ordered = not are_bare
        if ordered:
            return self.tuple_items(answer.args, gold.args)
        is_list = "" in (answer.name, gold.name)
        if is_list and len(answer.args) != len(gold.args):
            return Equality(False, is_exact=True)
        return self.set_items(answer.args, gold.args)

    def tuple_items(self, answer: tuple[Node, ...], gold: tuple[Node, ...]) -> Equality:
        if len(answer) != len(gold):
            return Equality(False, is_exact=True)
        names = _names(answer)
        if names != sorted(names) and names != _names(gold):
            raise NotComparableError("named in an order of their own")
        found = [self.same(a, g) for a, g in zip(answer, gold, strict=True)]
        return Equality(all(e.is_equal for e in found), all(e.is_exact for e in found))

    def set_items(self, answer: tuple[Node, ...], gold: tuple[Node, ...]) -> Equality:
        if max(len(answer), len(gold)) > MAX_ITEMS:
            raise NotComparableError("long sets")
        if len(set(_names(answer))) > 1 and not _names(gold):
            raise NotComparableError("values of several names")
        table = [[self.same(a, g) for g in gold] for a in answer]
        is_exact = all(each.is_exact for row in table for each in row)
        rows = all(any(each.is_equal for each in row) for row in table)
        columns = all(any(row[n].is_equal for row in table) for n in range(len(gold)))
        return Equality(rows and columns, is_exact)

    def quantities(self, answer: Node, gold: Node) -> Equality:
        """Compare with units: one that is missing is no fault, two different ones cannot be told.

        50% is 0.5, and 50 where the question asks for per cent. Whether 0.5% is meant by 0.5 nobody knows.
        """
        (ours, unit), (theirs, wanted) = _parts(answer), _parts(gold)
        found = self.same(ours, theirs)
        if unit == wanted or ("%" not in (unit, wanted) and "" in (unit, wanted)):
            return found
        if {unit, wanted} != {"%", ""}:
            raise NotComparableError(f"{unit} and {wanted}")
        if found.is_equal:
            if abs(_float(value(theirs, 0))) <= 1:
                raise NotComparableError("a share or per cent")
            return found
        hundredth = Node("/", (ours if unit else theirs, HUNDRED))
        return self.same(hundredth, theirs) if unit else self.same(ours, hundredth)


STRUCTURES = {"group", "matrix", "union", "relation", "base"}
HUNDRED = Node("num", (), "", Fraction(100))


def _alone(node: Node, other: Node) -> Node:
    """Return the one element of a set that is compared with something else."""
    is_single = node.op == "group" and node.name == "{}" and len(node.args) == 1
    return node.args[0] if is_single and other.op != "group" else node


def _parts(node: Node) -> tuple[Node, str]:
    return (node.args[0], node.name) if node.op == "unit" else (node, "")


def _names(items: tuple[Node, ...]) -> list[str]:
    return [name for name in (_named(item)[1] for item in items) if name]


# ------------------------------------------------------------------------------------ what is meant


def settled(node: Node) -> Node:
    """Return a formula with its ± written out, and conditions on one symbol as intervals."""
    if node.op in ("group", "union", "matrix"):
        items = tuple(settled(item) for item in node.args)
        if node.op == "group" and node.name in BARE:
            items = tuple(
                part
                for item in items
                for part in (item.args if item.op == "group" and not item.name else (item,))
            )
            if len(items) > 1 and all(_is_range(item) for item in items) and not node.name:
                return Node("union", items)
        return node._replace(args=items)
    if node.op == "relation":
        return _interval(node)
    signs = set(_operators(node)) & {"pm", "mp"}
    if not signs:
        return node
    return Node("group", (_with_sign(node, "+", "-"), _with_sign(node, "-", "+")))


def _is_range(node: Node) -> bool:
    return node.op == "group" and node.name not in BARE


def _operators(node: Node) -> Iterator[str]:
    yield node.op
    for each in node.args:
        yield from _operators(each)


def _with_sign(node: Node, upper: str, lower: str) -> Node:
    op = {"pm": upper, "mp": lower}.get(node.op, node.op)
    return node._replace(op=op, args=tuple(_with_sign(each, upper, lower) for each in node.args))


def _interval(node: Node) -> Node:
    """Return the interval of a condition such as 2 < x <= 5; other relations, with each side settled."""
    signs, sides = node.name.split(), node.args
    symbols = [n for n, side in enumerate(sides) if side.op == "sym" and side.name not in CONSTANTS]
    if signs == ["in"] and symbols == [0]:
        return settled(sides[1])
    if (
        len(symbols) == 1
        and symbols[0] == len(sides) // 2
        and all(sign[0] in "<>" for sign in signs)
    ):
        at = symbols[0]
        if len(sides) == 2 and at == 1:  # 5 > x
            return _range(sides[0], signs[0], is_left=True)
        if len(sides) == 3 and signs[0][0] == signs[1][0]:
            low, high = (sides[0], sides[2]) if signs[0][0] == "<" else (sides[2], sides[0])
            first, last = signs if signs[0][0] == "<" else signs[::-1]
            brackets = ("[" if "=" in first else "(") + ("]" if "=" in last else ")")
            return Node("group", (low, high), brackets)
    if len(sides) == 2 and symbols == [0] and signs[0][0] in "<>":
        return _range(sides[1], signs[0], is_left=False)
    if signs[-1] == "=" and symbols[:1] == [0] and len(sides) == 2:
        found = settled(sides[1])
        if found.op == "group" and found.name == "":  # x = 2 ± 1
            return found
    return node


INFINITY = Node("sym", (), "inf")


def _range(bound: Node, sign: str, is_left: bool) -> Node:
    """Return the interval of bound < x, or of x < bound."""
    is_lower = (sign[0] == "<") == is_left
    if is_lower:
        return Node("group", (bound, INFINITY), "[)" if "=" in sign else "()")
    return Node("group", (Node("neg", (INFINITY,)), bound), "(]" if "=" in sign else "()")


def without_name(answer: Node, gold: Node) -> tuple[Node, Node]:
    """Take x = from one side, or from both where it is the same; check a chain of equations."""
    ours, ours_name = _named(answer)
    theirs, theirs_name = _named(gold)
    if ours_name and theirs_name and ours_name != theirs_name:
        return answer, gold
    if (ours_name or answer.op != "relation") and (theirs_name or gold.op != "relation"):
        return ours, theirs
    return answer, gold


def _named(node: Node) -> tuple[Node, str]:
    """Return the value of x = 5, f(x) = 2x, 2 + 3 = 5 or 1/3 ~ 0.333, and what it is called."""
    signs = node.name.split()
    if node.op != "relation" or set(signs) - {"=", "~"} or "~" in signs[:-1]:
        return node, ""
    name = _name(node.args[0])
    values = node.args[1:] if name else node.args
    if any(name.split()[0] in symbols_of(each) for each in values if name):
        return node, ""
    if signs[-1] == "~" and len(values) > 1:
        values = values[:-1]
    last = _parts(values[-1])[0]
    if any(each.op in STRUCTURES for each in values[:-1]):
        return node, ""
    if not all(same_scalars(_parts(each)[0], last).is_equal for each in values[:-1]):
        return node, ""
    return values[-1], name or "="


def _name(node: Node) -> str:
    """Return what a side is called that only names the other: x, f(x), AB, (x, y)."""
    if node.op == "sym" and node.name not in CONSTANTS:
        return node.name
    if node.op in ("*", "group") and node.args and all(each.op == "sym" for each in node.args):
        names = [each.name for each in node.args]
        if node.op == "group" or names[0] in "fgh" or all(name.isupper() for name in names):
            return " ".join(names)
    return ""


def same_relations(answer: Node, gold: Node) -> Equality:
    """Compare two equations: their differences of sides are in one ratio everywhere."""
    if answer.name != "=" or gold.name != "=":
        if answer.name == gold.name and len(answer.args) == len(gold.args):
            found = [same_scalars(a, g) for a, g in zip(answer.args, gold.args, strict=True)]
            if all(each.is_equal for each in found):
                return Equality(True, is_exact=False)
        raise NotComparableError("relations")
    ours, theirs = Node("-", answer.args), Node("-", gold.args)
    if symbols_of(ours) != symbols_of(theirs) or not symbols_of(ours):
        return Equality(False, is_exact=False)
    ratios = []
    for point in range(POINTS):
        below = value(theirs, point)
        if not below:
            raise NotComparableError("zero at a random point")
        ratios.append(_mp.mpmathify(_float(value(ours, point))) / _float(below))
    is_one = all(_close(ratio, ratios[0]) for ratio in ratios) and abs(ratios[0]) > TOLERANCE
    return Equality(is_one, is_exact=False)


# ------------------------------------------------------------------------------------------- values

CONSTANTS = ("pi", "e", "i", "inf", "empty", "varnothing")


@lru_cache(maxsize=1024)
def symbols_of(node: Node) -> frozenset[str]:
    """Return the names of what may vary in a formula."""
    if node.op == "sym":
        return frozenset() if node.name in CONSTANTS else frozenset((node.name,))
    if node.op == "call" and node.name == "log?":
        return frozenset(("log?",)).union(*(symbols_of(each) for each in node.args))
    return frozenset().union(*(symbols_of(each) for each in node.args))


def same_scalars(answer: Node, gold: Node) -> Equality:
    """Compare two expressions."""
    limits = [_limit(answer), _limit(gold)]
    if any(limits):
        return Equality(limits[0] == limits[1], is_exact=True)
    ours, theirs = value(answer, 0), value(gold, 0)
    if (
        isinstance(ours, Fraction)
        and isinstance(theirs, Fraction)
        and not (symbols_of(answer) or symbols_of(gold))
    ):
        return Equality(ours == theirs, is_exact=True)
    points = POINTS if symbols_of(answer) or symbols_of(gold) else 1
    is_equal = all(
        _close(_float(value(answer, point)), _float(value(gold, point))) for point in range(points)
    )
    return Equality(is_equal, is_exact=False)


def _limit(node: Node) -> str:
    if node.op == "neg" and node.args[0] == INFINITY:
        return "-inf"
    if node.op == "sym" and node.name in ("inf", "empty", "varnothing"):
        return "empty" if node.name == "varnothing" else node.name
    return ""


def _close(one: Float, other: Float) -> bool:
    largest = max(abs(one), abs(other))
    return bool(abs(one - other) <= TOLERANCE * largest or largest < TOLERANCE)


def _float(number: Number) -> Float:
    if isinstance(number, Fraction):
        return _mp.mpf(number.numerator) / number.denominator
    return number


@lru_cache(maxsize=256)
def _at(name: str, point: int) -> Float:
    """Return a symbol's value at a random point: positive at point 0, negative at 1, else either."""
    drawn = int.from_bytes(sha256(f"{name} {point}".encode()).digest(), "big")
    size = _mp.mpf(drawn) / 2**256 * 2 + _mp.mpf("0.3")
    is_negative = point == 1 or (point > 1 and drawn % 2 == 1)
    return -size if is_negative else size


def value(node: Node, point: int) -> Number:
    """Return the value of an expression with its symbols at a random point, exact where it is rational."""
    match node.op:
        case "num":
            assert node.value is not None
            return node.value
        case "sym":
            return _constant(node.name) if node.name in CONSTANTS else _at(node.name, point)
        case "call":
            return _call(node.name, [value(each, point) for each in node.args], point)
        case "unit" if node.name in ("°", "%"):
            inner = _float(value(node.args[0], point))
            return inner * _mp.pi / 180 if node.name == "°" else inner / 100
        case "neg" | "!" | "+" | "-" | "*" | "/" | "^":
            return _operate(node.op, [value(each, point) for each in node.args])
    raise NotComparableError(node.op)


def _constant(name: str) -> Float:
    match name:
        case "pi":
            return +_mp.pi
        case "e":
            return +_mp.e
        case "i":
            return _mp.mpc(0, 1)
    raise NotComparableError(name)


def _operate(op: str, args: list[Number]) -> Number:
    if op == "neg":
        return -args[0]
    if op == "!":
        number = args[0]
        if not isinstance(number, Fraction) or number.denominator != 1 or not 0 <= number <= 1000:
            raise NotComparableError("factorial")
        return Fraction(factorial(int(number)))
    one, other = args
    if not (isinstance(one, Fraction) and isinstance(other, Fraction)):
        one, other = _float(one), _float(other)
    match op:
        case "+":
            return one + other
        case "-":
            return one - other
        case "*":
            return one * other
        case "/":
            return one / other
    return _power(one, other)


def _power(base: Number, exponent: Number) -> Number:
    if base == 0:
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise NotComparableError("a power of zero")
        return base
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) <= MAX_BITS:
            return base**exponent.numerator
    base, exponent = _float(base), _float(exponent)
    if abs(exponent) * (1 + abs(log2(abs(base)) if abs(base) < 1e300 else 1e6)) > MAX_MAGNITUDE:
        raise NotComparableError("a huge power")
    return _mp.power(base, exponent)


def _call(name: str, args: list[Number], point: int) -> Number:
    if name in ("floor", "ceil", "abs") and isinstance(args[0], Fraction):
        number = args[0]
        return {
            "floor": Fraction(number // 1),
            "ceil": Fraction(-(-number // 1)),
            "abs": abs(number),
        }[name]
    if name == "binom":
        above, below = args
        if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 1000 for n in args):
            raise NotComparableError("binomial")
        return Fraction(comb(int(above), int(below)))
    if name == "root":
        return _root(*args)
    numbers = [_float(number) for number in args]
    if name == "log?":
        return _mp.log(numbers[0]) * _at("log?", point)
    if name == "log":
        base, number = numbers
        return _mp.log(number) / _mp.log(base)
    if any(abs(number) > MAX_MAGNITUDE for number in numbers):
        raise NotComparableError("a function of a huge number")
    function = FUNCTIONS_OF.get(name)
    if function is None:
        raise NotComparableError(name)
    return function(numbers[0])


FUNCTIONS_OF: dict[str, Callable[[Float], Float]] = {
    "abs": _mp.fabs, "exp": _mp.exp, "ln": _mp.log,
    "sin": _mp.sin, "cos": _mp.cos, "tan": _mp.tan, "cot": _mp.cot, "sec": _mp.sec, "csc": _mp.csc,
    "arcsin": _mp.asin, "arccos": _mp.acos, "arctan": _mp.atan,
    "sinh": _mp.sinh, "cosh": _mp.cosh, "tanh": _mp.tanh,
}  # fmt: skip


def _root(index: Number, radicand: Number) -> Number:
    if not isinstance(index, Fraction) or index.denominator != 1 or not 2 <= index <= 100:
        raise NotComparableError("an odd kind of root")
    degree = int(index)
    if isinstance(radicand, Fraction) and radicand >= 0:
        above, below = (_whole_root(part, degree) for part in radicand.as_integer_ratio())
        if above is not None and below is not None:
            return Fraction(above, below)
    number = _float(radicand)
    if degree % 2 and isinstance(number, _mp.mpf) and number < 0:  # the real one
        return -_mp.root(-number, degree)
    return _mp.root(number, degree)


def _whole_root(number: int, degree: int) -> int | None:
    """Return the integer whose power a number is."""
    if number.bit_length() > 1000:
        return None
    near = int(_mp.nint(_mp.root(number, degree)))
    return near if near**degree == number else None
