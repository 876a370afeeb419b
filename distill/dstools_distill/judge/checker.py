"""Process that runs math-verify and reasoning-gym: one question per line of stdin, one answer out.

Started by `referee.Referee` as `python -m dstools_distill.judge.checker SECONDS`. Questions and
answers are JSON. An error ends the process after a line {"error"}; so does, without one, a question
that uses more CPU time than SECONDS (SIGPROF), or waits for far longer (SIGALRM).
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import sympy
from sympy.logic.boolalg import BooleanFunction

from dstools_distill.judge.equality import every

WALL_FACTOR = 30  # a process that waits forever is ended, too
MEMORY_BYTES = 4 << 30  # of address space; the libraries alone take one GiB
# raised by sympy and by scorers of reasoning-gym on some answers; any other error ends the process
KNOWN_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError),
)
DIGITS, LARGE = 1000, 10**300  # of irrational numbers: tells 1 - e^-200 from 1
INDEX = sympy.Symbol("xi", real=True)  # an integer, of the members of a family
MAX_PROGRESSIONS = 8  # whose comparison takes 2^n steps
VALUES = (5, 7, 8, 11, 26, 17, 14, 19, 23, 29, 31)  # each symbol takes odd and even ones


def serve(seconds: float) -> None:
    """Answer the questions on stdin until it closes, each within `seconds` of CPU time."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what libraries print out of the answers

    def tell(answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    sys.excepthook = lambda kind, error, _: tell({"error": f"{kind.__name__}: {error}"})
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        tell(answer(json.loads(line), seconds))


def answer(question: dict[str, Any], seconds: float) -> bool | float | str | None:
    """Return the answer to a question, or the name of the error of one that is too large.

    {"answer", "gold"} returns whether math-verify finds both equal, None where it cannot read one.
    {"task", "answer", "entry"} returns the score of reasoning-gym. With "is_probe" there is no
    limit: the first question of a library loads more of it than its import does.
    """
    check = score if "task" in question else are_equal
    signal.alarm(WALL_FACTOR * round(seconds + 10))
    import_module("reasoning_gym" if check is score else "math_verify")  # before the clock starts
    signal.setitimer(signal.ITIMER_PROF, 0 if "is_probe" in question else seconds)
    try:
        return check(question)
    except (MemoryError, RecursionError) as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def are_equal(question: dict[str, Any]) -> bool | None:
    """Return whether "answer" and "gold" are equal, by many digits of the trees of math-verify.

    None where it cannot read or compare one, or where they differ only for negative or non-integer
    values of a variable, which the question may exclude.
    """
    try:
        trees = [_tree(question[name]) for name in ("answer", "gold")]
        return _same(*trees) if all(tree is not None for tree in trees) else None
    except KNOWN_ERRORS:
        return None


def _tree(text: str) -> Any:
    """Return what math-verify reads as a tree of sympy, with i and e as constants.

    A chain of equal numbers becomes its value; conditions on one variable become a set.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    normal = NormalizationConfig(malformed_operators=True, boxed="last")
    extraction = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)
    forms = parse(f"\\boxed{{{text}}}", [extraction], parsing_timeout=None)
    tree = next((form for form in forms if not isinstance(form, str)), None)
    if tree is None:
        return None
    relations = tree.args if isinstance(tree, sympy.FiniteSet | sympy.And) else [tree]
    if isinstance(tree, sympy.Eq | sympy.And) and all(isinstance(r, sympy.Eq) for r in relations):
        sides = [_exact(side) for relation in relations for side in relation.args]
        values = [side for side in sides if not side.free_symbols]
        if len(values) > 1:  # 57 + 68 = 125
            return values[0] if every(_same(values[0], value) for value in values) else None
    tree = _exact(tree)
    is_condition = all(isinstance(relation, sympy.Rel | BooleanFunction) for relation in relations)
    if is_condition and len(tree.free_symbols) > 1 and "or" in text.split():
        return None  # for the library it is a comma
    if is_condition and len(tree.free_symbols) == 1 and not tree.atoms(sympy.Eq):
        sets = [relation.as_set() for relation in relations]
        common = sympy.Intersection(*sets)
        return sympy.Union(*sets) if common.is_empty or "or" in text.split() else common
    return tree


def _exact(tree: Any) -> Any:
    constants = {"i": sympy.I, "e": sympy.E}  # variables for math-verify 0.9
    tree = tree.subs({s: constants[s.name] for s in tree.free_symbols if s.name in constants})
    return tree.xreplace({n: sympy.Rational(str(n)) for n in tree.atoms(sympy.Float)}).doit()


def _same(one: Any, other: Any) -> bool | None:
    """Compare two sets, matrices, equations or expressions; None for most others."""
    trees = one, other
    if one == other:
        return True
    if all(isinstance(tree, sympy.FiniteSet) and INDEX in tree.free_symbols for tree in trees):
        return _same_families(one, other)
    if all(isinstance(tree, sympy.Set) for tree in trees):
        return _same_sets(one, other)
    if {sympy.Interval, sympy.Union} & set(map(type, trees)):  # x > 5 is not 5
        return False if any(isinstance(tree, sympy.Expr) for tree in trees) else None
    if all(isinstance(tree, sympy.MatrixBase | sympy.MatrixExpr) for tree in trees):
        cells = zip(sympy.Matrix(one), sympy.Matrix(other), strict=False)
        return one.shape == other.shape and every(_same(*pair) for pair in cells)
    if all(isinstance(tree, sympy.Eq) for tree in trees):
        return _same_equations(*(sympy.together(tree.lhs - tree.rhs) for tree in trees))
    is_known = all(isinstance(tree, sympy.Expr) and not tree.is_Matrix for tree in trees)
    return _same_expressions(one, other) if is_known else None


def _same_families(one: Any, other: Any) -> bool | None:
    """Compare unions of progressions a + b xi, for all integers xi."""
    here, there = (
        [[sympy.N(part, 50) for part in (m.subs(INDEX, 0), m.diff(INDEX))] for m in family.args]
        for family in (one, other)
    )
    are_progressions = all(step.is_number for _, step in here + there)
    are_progressions &= max(len(here), len(there)) <= MAX_PROGRESSIONS
    return _covers(here, there) and _covers(there, here) if are_progressions else None


def _covers(others: list[Any], family: list[Any]) -> bool:
    """Return whether all members of a family are in others.

    n progressions that have 2^n consecutive members have all: Crittenden and Vanden Eynden, 1970.
    """
    members = (start + k * step for start, step in family for k in range(2 ** len(others)))
    quotients = ([(member - start) / step for start, step in others] for member in members)
    return all(any(abs(q - round(q)) < 1e-30 for q in line) for line in quotients)


def _same_sets(one: Any, other: Any) -> bool | None:
    """Compare the ends of intervals one by one; None for other sets."""
    pieces = [sorted(s.args if s.is_Union else [s], key=lambda p: p.inf) for s in (one, other)]
    if not all(piece.is_Interval for piece in pieces[0] + pieces[1]):
        return None
    open_ends = [[(piece.left_open, piece.right_open) for piece in each] for each in pieces]
    ends = [[end for piece in each for end in (piece.inf, piece.sup)] for each in pieces]
    return open_ends[0] == open_ends[1] and every(_same(*pair) for pair in zip(*ends, strict=True))


def _same_expressions(one: Any, other: Any) -> bool | None:
    """Compare at positive integers, then at non-integer and at negative values of each symbol."""
    if one.is_infinite or other.is_infinite:
        return False
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    compared = 0
    for is_certain, point in _points(symbols):
        values = [_value(tree, point) for tree in (one, other)]
        if values[0] is values[1] is None or sympy.nan in values:
            continue  # outside the domain of both, or where a factor cancels
        if None in values:
            return None
        if not _are_close(*values):
            return False if is_certain else None
        compared += is_certain
    return True if compared >= min(2, len(symbols) + 1) else None


def _same_equations(one: Any, other: Any) -> bool | None:
    """Compare two equations by their numerators, xy - 6 of y = 6/x: their ratio is constant."""
    one, other = (tree.as_numer_denom()[0] for tree in (one, other))
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    ratios = [_value(one / other, point) for _, point in _points(symbols)]
    factor = next((ratio for ratio in ratios if ratio not in (None, sympy.nan, 0)), None)
    same = _same_expressions(one, factor * other) if factor is not None else False
    return same or (False if one.is_polynomial() and other.is_polynomial() else None)


def _points(symbols: list[Any]) -> Iterator[tuple[bool, dict[Any, Any]]]:
    """Yield values of the symbols: whether a difference there is one, and the point.

    n is an integer; the others take non-integer values and negative ones, too.
    """
    for k in range(4 if symbols else 1):
        point = {s: VALUES[(3 * k + n) % len(VALUES)] for n, s in enumerate(symbols)}
        yield True, point
    for symbol in symbols:
        for divisor in (1,) if symbol.name == "n" else (1, 17, -17, -1009):
            yield False, point | {symbol: sympy.Rational(-10 * point[symbol] - 3, divisor)}


def _value(tree: Any, point: dict[Any, Any]) -> Any:
    """Return the value at a point; nan where it is not defined, None where it is not real."""
    value = tree.subs(point).replace(  # of a negative number the real cube root is meant
        lambda p: p.is_Pow and p.exp.is_Rational and p.exp.q % 2 and p.base.is_negative,
        lambda p: (-1) ** p.exp.p * (-p.base) ** p.exp,
    )
    if value.is_Rational:
        return value
    number = sympy.N(value, DIGITS)
    if not number.is_number or not number.is_finite or abs(number) > LARGE:
        return sympy.nan
    is_real = bool(abs(sympy.im(number)) <= 1e-50 * abs(number))
    return number if is_real or not point or tree.has(sympy.I) else None


def _are_close(one: Any, other: Any) -> bool:
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    return bool(abs(one - other) <= max(abs(one), abs(other)) * sympy.Float(10) ** (20 - DIGITS))


def score(question: dict[str, Any]) -> float | str:
    """Return the score, 0 to 1, of reasoning-gym; or the error that its scorer raised."""
    import reasoning_gym

    scorer = reasoning_gym.get_score_answer_fn(question["task"])
    try:
        return float(scorer(question["answer"], question["entry"]))
    except KNOWN_ERRORS as error:
        return f"scorer-failed: {type(error).__name__}"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
