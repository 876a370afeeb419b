"""Process that runs math-verify and reasoning-gym: one question per line of stdin, one answer out.

Started by `referee.Referee` as `python -m dstools_distill.judge.checker SECONDS`. Questions and
answers are JSON. A question that uses more CPU time than SECONDS ends the process (SIGPROF).
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

MEMORY_BYTES = 4 << 30  # of address space; the libraries alone take one GiB
# raised by scorers of reasoning-gym on some answers; any other error ends the process
SCORER_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
DIGITS = 60
UNDEFINED = "division by zero"
PRIMES = (5, 7, 8, 11, 13, 17, 14, 19, 23, 29, 31)
DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+)\s*\^\s*\{?\\circ\}?\s*[)}]?")


def serve(seconds: float) -> None:
    """Answer the questions on stdin until it closes, each within `seconds` of CPU time."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line), seconds)).encode() + b"\n")
        answers.flush()


def answer(question: dict[str, Any], seconds: float) -> bool | float | str | None:
    """Return the answer to a question, or the name of the error of one that is too large.

    {"answer", "gold"} returns whether math-verify finds both equal, None where it cannot read one.
    {"task", "answer", "entry"} returns the score of reasoning-gym. With "is_probe" there is no
    limit: the first question of a library loads more of it than its import does.
    """
    check = score if "task" in question else are_equal
    import_module("reasoning_gym" if check is score else "math_verify")  # before the clock starts
    signal.setitimer(signal.ITIMER_PROF, 0 if "is_probe" in question else seconds)
    try:
        return check(question)
    except (MemoryError, RecursionError) as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def are_equal(question: dict[str, Any]) -> bool | None:
    """Return whether "answer" and "gold" are equal, by 60 digits of the trees of math-verify.

    None where it cannot read one, or where they differ only for negative or broken values of a
    variable, which the question may exclude.
    """
    trees = [_tree(question[name]) for name in ("answer", "gold")]
    return _same(*trees) if all(tree is not None for tree in trees) else None


def _tree(text: str) -> Any:
    """Return what math-verify reads as a tree of sympy, with i and degrees as they are meant."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    normal = NormalizationConfig(malformed_operators=True, boxed="last")
    extraction = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)
    # math-verify 0.9 reads i as a variable, and cos 30° as the cosine of 30 radians
    text = DEGREES.sub(r"\1(\\frac{\2 \\pi}{180})", text)
    forms = parse(f"\\boxed{{{text}}}", [extraction], parsing_timeout=None)
    tree = next((form for form in forms if not isinstance(form, str)), None)
    if tree is None:
        return None
    imaginary = {sympy.Symbol("i", real=real): sympy.I for real in (True, False, None)}
    euler = {sympy.Symbol("e", real=real): sympy.E for real in (True, False, None)}
    tree = tree.subs(imaginary | euler)
    floats = {number: sympy.Rational(str(number)) for number in tree.atoms(sympy.Float)}
    return tree.xreplace(floats)


def _same(one: Any, other: Any) -> bool | None:
    import sympy

    if isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq):
        return _same_equations(one.lhs - one.rhs, other.lhs - other.rhs)
    one, other = one.doit(), other.doit()
    if isinstance(one, sympy.Set) and isinstance(other, sympy.Set):
        return True if one == other else _same_sets(one, other)
    matrices = [isinstance(tree, sympy.MatrixBase | sympy.MatrixExpr) for tree in (one, other)]
    if all(matrices):
        if one.shape != other.shape:
            return False
        cells = [
            _same(*cells) for cells in zip(sympy.Matrix(one), sympy.Matrix(other), strict=True)
        ]
        return False if False in cells else None if None in cells else True
    if any(matrices) or not all(isinstance(tree, sympy.Expr) for tree in (one, other)):
        return None
    return _same_expressions(one, other)


def _same_sets(one: Any, other: Any) -> bool | None:
    """Compare the ends of intervals one by one; False for other sets of rational numbers."""

    pieces = [sorted(s.args if s.is_Union else [s], key=lambda p: p.inf) for s in (one, other)]
    if all(piece.is_Interval for piece in pieces[0] + pieces[1]):
        open_ends = [[(piece.left_open, piece.right_open) for piece in each] for each in pieces]
        if open_ends[0] != open_ends[1]:
            return False
        ends = [[end for piece in each for end in (piece.inf, piece.sup)] for each in pieces]
        same = [a == b or _same(a, b) for a, b in zip(*ends, strict=True)]
        return False if False in same else None if None in same else True
    return None if one.free_symbols or other.free_symbols else False


def _same_expressions(one: Any, other: Any) -> bool | None:
    """Compare at positive integers, then at broken and at negative values of each symbol."""
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    compared = 0
    for is_certain, point in _points(symbols):
        values = [_value(tree, point) for tree in (one, other)]
        if values[0] is values[1] is None or UNDEFINED in [v for v in values if isinstance(v, str)]:
            continue  # outside the domain of both, or where a factor cancels
        if values[0] is None or values[1] is None:
            return None
        equal = _close(*values)
        if not equal:
            return False if is_certain and equal is False else None
        compared += is_certain
    return True if compared >= min(2, len(symbols) + 1) else None


def _same_equations(one: Any, other: Any) -> bool | None:
    """Compare lhs - rhs of two equations: their ratio must be the same at all points."""
    import sympy

    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if one.free_symbols != other.free_symbols:
        return False if one.is_polynomial() and other.is_polynomial() else None
    ratios = [_value(one / other, point) for is_certain, point in _points(symbols) if is_certain]
    known = [ratio for ratio in ratios if ratio is not None and not isinstance(ratio, str)]
    if len(known) < 2 or not all(known):
        return None
    if all(_close(ratio, known[0]) for ratio in known):
        return True
    for symbol in symbols:  # xy = 6 and y = 6/x
        numerators = [sympy.together(tree).as_numer_denom()[0] for tree in (one, other)]
        if all(
            tree.is_polynomial(symbol) and sympy.degree(tree, symbol) == 1 for tree in numerators
        ):
            return _same_expressions(*(sympy.solve(tree, symbol)[0] for tree in numerators))
    return False if one.is_polynomial() and other.is_polynomial() else None


def _points(symbols: list[Any]) -> Iterator[tuple[bool, dict[Any, Any]]]:
    """Yield values of the symbols: whether a difference there is one, and the point.

    n is an integer; the others take broken values, and one of them a negative one.
    """
    import sympy

    integers = [
        {s: PRIMES[(3 * k + n) % len(PRIMES)] for n, s in enumerate(symbols)} for k in range(4)
    ]
    if not symbols:
        integers = integers[:1]
    for point in integers:
        yield True, point
    free = [symbol for symbol in symbols if symbol.name != "n"]
    for point in integers[:2] if free else []:
        yield False, point | {s: sympy.Rational(10 * point[s] + 3, 17) for s in free}
    for symbol in free:
        yield False, integers[0] | {symbol: -sympy.Rational(10 * integers[1][symbol] + 7, 13)}
    for symbol in symbols:
        yield False, integers[1] | {symbol: -integers[1][symbol]}


def _value(tree: Any, point: dict[Any, Any]) -> Any:
    """Return the value at a point to 60 digits, None where it is not defined or not real."""
    import sympy

    value = tree.subs(point)
    # of a negative number the real cube root is meant
    value = value.replace(
        lambda p: (
            p.is_Pow and p.exp.is_Rational and p.exp.q % 2 and p.exp.q > 1 and p.base.is_negative
        ),
        lambda p: (-1) ** p.exp.p * (-p.base) ** p.exp,
    )
    number = sympy.N(value, DIGITS)
    if number.is_number and number.is_finite and abs(number) > 1:
        number = sympy.N(value, DIGITS + min(5000, int(sympy.log(abs(number), 10)) + 1))
    if not number.is_number or not number.is_finite:
        return UNDEFINED
    is_real = bool(abs(sympy.im(number)) <= 1e-50 * abs(number))
    return number if is_real or not point or tree.has(sympy.I) else None


def _close(one: Any, other: Any) -> bool | None:
    import sympy

    size = max(abs(one), abs(other))
    if not size:
        return True
    if size < sympy.Float("1e-55"):
        return None
    digits = DIGITS - 10 + max(0, int(sympy.log(size, 10)))
    return bool(abs(one - other) <= size * sympy.Float(10) ** -digits)


def score(question: dict[str, Any]) -> float | str:
    """Return the score, 0 to 1, of reasoning-gym; or the error that its scorer raised."""
    import reasoning_gym

    scorer = reasoning_gym.get_score_answer_fn(question["task"])
    try:
        return float(scorer(question["answer"], question["entry"]))
    except SCORER_ERRORS as error:
        return f"scorer-failed: {type(error).__name__}"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
