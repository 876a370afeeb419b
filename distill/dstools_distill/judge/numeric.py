"""Whether two formulas are equal: exactly where they are rational, else by values of 50 digits at random points.

The second opinion beside math-verify. It errs towards None: equal at four points, with symbols positive and
negative, is taken for equal; a function that is not known, a division by zero, a huge power is not judged.
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

TOLERANCE = 1e-30  # of 50 digits; 20 are for what cancels
NOTHING = 1e-40  # what is left of a zero
POINTS = 4
MAX_ITEMS = 40
BARE = ("", "{}")  # a bare list is a set: nobody says in which order solutions come


class Equality(NamedTuple):
    """What a comparison found."""

    is_equal: bool
    is_exact: bool  # by rational numbers alone


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
            if abs(as_float(value(theirs, 0))) <= 1:
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
        ratios.append(as_float(value(ours, point)) / as_float(below))
    is_one = all(_close(ratio, ratios[0]) for ratio in ratios) and abs(ratios[0]) > TOLERANCE
    return Equality(is_one, is_exact=False)


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
        _close(as_float(value(answer, point)), as_float(value(gold, point)))
        for point in range(points)
    )
    return Equality(is_equal, is_exact=False)


def _limit(node: Node) -> str:
    if node.op == "neg" and node.args[0] == INFINITY:
        return "-inf"
    if node.op == "sym" and node.name in ("inf", "empty", "varnothing"):
        return "empty" if node.name == "varnothing" else node.name
    return ""


def _close(one: Float, other: Float) -> bool:
    """Tell whether two values are equal; of two that are next to nothing that is not known."""
    difference, largest = abs(one - other), max(abs(one), abs(other))
    if difference <= TOLERANCE * largest:
        return True
    if largest > NOTHING:
        return False
    if one == 0 or other == 0:  # sin(pi) is nothing, too
        return True
    raise NotComparableError("next to nothing")
