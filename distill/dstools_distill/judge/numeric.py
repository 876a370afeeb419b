"""Equality of two formulas: exact if they are rational, else by 50 digits at four random points.

A second opinion, independent of math-verify. When in doubt it returns None: unknown functions,
divisions by zero and huge powers are not judged.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from dstools_distill.judge.formula import Node
from dstools_distill.judge.values import (
    CONSTANTS,
    Float,
    NotComparableError,
    as_float,
    symbols_of,
    value,
)

TOLERANCE = 1e-30  # relative, of 50 digits; the other 20 allow for cancellation
NEARLY_ZERO = 1e-40  # may be zero after rounding
POINTS = 4
MAX_ITEMS = 40
BARE = ("", "{}")  # a bare list is a set, as solutions have no order


class Equality(NamedTuple):
    """The result of a comparison."""

    is_equal: bool
    is_exact: bool  # by rational arithmetic alone


def equal(answer: Node, gold: Node, ordered: bool | None = None) -> Equality | None:
    """Return whether an answer has the value of the gold; None: unknown.

    ordered: True to read any list as a tuple, False as a set, None to go by its brackets.
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
        return self.tuple_items(answer.args, gold.args)  # rows of a matrix

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
            raise NotComparableError("named items in another order")
        results = [self.same(a, g) for a, g in zip(answer, gold, strict=True)]
        return Equality(all(r.is_equal for r in results), all(r.is_exact for r in results))

    def set_items(self, answer: tuple[Node, ...], gold: tuple[Node, ...]) -> Equality:
        if max(len(answer), len(gold)) > MAX_ITEMS:
            raise NotComparableError("long sets")
        if len(set(_names(answer))) > 1 and not _names(gold):
            raise NotComparableError("values of several names")
        table = [[self.same(a, g) for g in gold] for a in answer]
        is_exact = all(cell.is_exact for row in table for cell in row)
        rows = all(any(cell.is_equal for cell in row) for row in table)
        columns = all(any(row[n].is_equal for row in table) for n in range(len(gold)))
        return Equality(rows and columns, is_exact)

    def quantities(self, answer: Node, gold: Node) -> Equality:
        """Compare quantities; a unit may be missing, two different units are not comparable.

        50% equals 0.5, and equals 50 if the question asks for a percentage. 0.5% and 0.5 are
        ambiguous.
        """
        (given, given_unit), (wanted, wanted_unit) = _parts(answer), _parts(gold)
        units = {given_unit, wanted_unit}
        result = self.same(given, wanted)
        if len(units) == 1 or ("%" not in units and "" in units):
            return result
        if units != {"%", ""}:
            raise NotComparableError(f"{given_unit} and {wanted_unit}")
        if result.is_equal:
            if abs(as_float(value(wanted, 0))) <= 1:
                raise NotComparableError("a fraction or a percentage")
            return result
        if given_unit:
            return self.same(Node("/", (given, HUNDRED)), wanted)
        return self.same(given, Node("/", (wanted, HUNDRED)))


STRUCTURES = {"group", "matrix", "union", "relation", "base"}
HUNDRED = Node("num", (), "", Fraction(100))


def _alone(node: Node, other: Node) -> Node:
    """Return the only element of a set if the other side is not a group, else the node itself."""
    is_single = node.op == "group" and node.name == "{}" and len(node.args) == 1
    return node.args[0] if is_single and other.op != "group" else node


def _parts(node: Node) -> tuple[Node, str]:
    return (node.args[0], node.name) if node.op == "unit" else (node, "")


def _names(items: tuple[Node, ...]) -> list[str]:
    return [name for name in (_named(item)[1] for item in items) if name]


# -------------------------------------------------------------------------------------- normal form


def settled(node: Node) -> Node:
    """Return a formula with ± as two values, and a condition on one symbol as an interval."""
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
    if not {"pm", "mp"}.intersection(_operators(node)):
        return node
    return Node("group", (_with_sign(node, "+", "-"), _with_sign(node, "-", "+")))


def _is_range(node: Node) -> bool:
    return node.op == "group" and node.name not in BARE


def _operators(node: Node) -> Iterator[str]:
    yield node.op
    for arg in node.args:
        yield from _operators(arg)


def _with_sign(node: Node, upper: str, lower: str) -> Node:
    op = {"pm": upper, "mp": lower}.get(node.op, node.op)
    return node._replace(op=op, args=tuple(_with_sign(arg, upper, lower) for arg in node.args))


def _interval(node: Node) -> Node:
    """Return the interval of a condition such as 2 < x <= 5; the solutions of x = 2 ± 1.

    Other relations come back as they are.
    """
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
        solutions = settled(sides[1])
        if solutions.op == "group" and solutions.name == "":  # x = 2 ± 1
            return solutions
    return node


INFINITY = Node("sym", (), "inf")


def _range(bound: Node, sign: str, is_left: bool) -> Node:
    """Return the interval of `bound < x` (is_left) or of `x < bound`."""
    is_lower = (sign[0] == "<") == is_left
    if is_lower:
        return Node("group", (bound, INFINITY), "[)" if "=" in sign else "()")
    return Node("group", (Node("neg", (INFINITY,)), bound), "(]" if "=" in sign else "()")


def without_name(answer: Node, gold: Node) -> tuple[Node, Node]:
    """Return both values without their "x ="; unchanged if names differ or one is not a value."""
    given, given_name = _named(answer)
    wanted, wanted_name = _named(gold)
    if given_name and wanted_name and given_name != wanted_name:
        return answer, gold
    if (given_name or answer.op != "relation") and (wanted_name or gold.op != "relation"):
        return given, wanted
    return answer, gold


def _named(node: Node) -> tuple[Node, str]:
    """Return value and name of x = 5, f(x) = 2x, 2 + 3 = 5 or 1/3 ~ 0.333.

    The name is "=" if there is none, and "" for a formula of another kind or a false equation.
    """
    signs = node.name.split()
    if node.op != "relation" or set(signs) - {"=", "~"} or "~" in signs[:-1]:
        return node, ""
    name = _name(node.args[0])
    values = node.args[1:] if name else node.args
    if any(name.split()[0] in symbols_of(side) for side in values if name):
        return node, ""
    if signs[-1] == "~" and len(values) > 1:
        values = values[:-1]
    *others, last = values
    if any(other.op in STRUCTURES for other in others):
        return node, ""
    amount = _parts(last)[0]
    if not all(same_scalars(_parts(other)[0], amount).is_equal for other in others):
        return node, ""
    return last, name or "="


def _name(node: Node) -> str:
    """Return the name that one side of an equation gives the other: x, f(x), AB, (x, y), or ""."""
    if node.op == "sym" and node.name not in CONSTANTS:
        return node.name
    if node.op in ("*", "group") and node.args and all(arg.op == "sym" for arg in node.args):
        names = [arg.name for arg in node.args]
        if node.op == "group" or names[0] in "fgh" or all(name.isupper() for name in names):
            return " ".join(names)
    return ""


def same_relations(answer: Node, gold: Node) -> Equality:
    """Compare two equations: left minus right side must have the same ratio at all points."""
    if answer.name != "=" or gold.name != "=":
        if answer.name == gold.name and len(answer.args) == len(gold.args):
            sides = zip(answer.args, gold.args, strict=True)
            if all(same_scalars(given, wanted).is_equal for given, wanted in sides):
                return Equality(True, is_exact=False)
        raise NotComparableError("relations")
    given, wanted = Node("-", answer.args), Node("-", gold.args)
    if symbols_of(given) != symbols_of(wanted) or not symbols_of(given):
        return Equality(False, is_exact=False)
    ratios = []
    for point in range(POINTS):
        divisor = value(wanted, point)
        if not divisor:
            raise NotComparableError("zero at a random point")
        ratios.append(as_float(value(given, point)) / as_float(divisor))
    is_one = all(_close(ratio, ratios[0]) for ratio in ratios) and abs(ratios[0]) > TOLERANCE
    return Equality(is_one, is_exact=False)


def same_scalars(answer: Node, gold: Node) -> Equality:
    """Compare two expressions."""
    limits = [_limit(answer), _limit(gold)]
    if any(limits):
        return Equality(limits[0] == limits[1], is_exact=True)
    given, wanted = value(answer, 0), value(gold, 0)
    has_symbols = bool(symbols_of(answer) or symbols_of(gold))
    if isinstance(given, Fraction) and isinstance(wanted, Fraction) and not has_symbols:
        return Equality(given == wanted, is_exact=True)
    points = POINTS if has_symbols else 1
    is_equal = all(
        _close(as_float(value(answer, point)), as_float(value(gold, point)))
        for point in range(points)
    )
    return Equality(is_equal, is_exact=False)


def _limit(node: Node) -> str:
    """Return "inf", "-inf", "empty" (the set) or "" for everything that has a value."""
    if node.op == "neg" and node.args[0] == INFINITY:
        return "-inf"
    if node.op == "sym" and node.name in ("inf", "empty", "varnothing"):
        return "empty" if node.name == "varnothing" else node.name
    return ""


def _close(one: Float, other: Float) -> bool:
    """Return whether two values are equal; raise NotComparableError if both are nearly zero."""
    difference, largest = abs(one - other), max(abs(one), abs(other))
    if difference <= TOLERANCE * largest:
        return True
    if largest > NEARLY_ZERO:
        return False
    if one == 0 or other == 0:  # such as sin(pi)
        return True
    raise NotComparableError("nearly zero")
