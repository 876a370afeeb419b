"""Values of formulas: exact if rational, else to 50 digits; symbols take random values.

Nothing here takes long: huge powers and factorials over 1000 are not computed.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from math import comb, factorial, log2
from typing import Any

from mpmath import MPContext

from dstools_distill.judge.formula import Node

DIGITS = 50
MAX_BITS, MAX_MAGNITUDE = 20_000, 1e6  # of exact powers; of exponents to base 2
context = MPContext()
context.dps = DIGITS
Float = Any  # a real or complex number of mpmath
Number = Fraction | Float


class NotComparableError(Exception):
    """The value of a formula is not defined, not unique or too large to compute."""


CONSTANTS = ("pi", "e", "i", "inf", "empty", "varnothing")


def value(node: Node, point: int) -> Number:
    """Return the value of an expression at random point number `point`, exact if rational.

    Raises NotComparableError, or ArithmeticError for a division by zero.
    """
    match node.op:
        case "num":
            assert node.value is not None
            return node.value
        case "sym":
            return _constant(node.name) if node.name in CONSTANTS else _at(node.name, point)
        case "call":
            return _call(node.name, [value(arg, point) for arg in node.args], point)
        case "unit" if node.name in ("°", "%"):
            inner = as_float(value(node.args[0], point))
            return inner * context.pi / 180 if node.name == "°" else inner / 100
        case "neg" | "!" | "+" | "-" | "*" | "/" | "^":
            return _operate(node.op, [value(arg, point) for arg in node.args])
    raise NotComparableError(node.op)


@lru_cache(maxsize=1024)
def symbols_of(node: Node) -> frozenset[str]:
    """Return the names of the variables in a formula; "log?" is a logarithm to an unknown base."""
    if node.op == "sym":
        return frozenset() if node.name in CONSTANTS else frozenset((node.name,))
    if node.op == "call" and node.name == "log?":
        return frozenset(("log?",)).union(*map(symbols_of, node.args))
    return frozenset().union(*map(symbols_of, node.args))


def as_float(number: Number) -> Float:
    """Return a value to 50 digits."""
    if isinstance(number, Fraction):
        return context.mpf(number.numerator) / number.denominator
    return number


@lru_cache(maxsize=256)
def _at(name: str, point: int) -> Float:
    """Return a symbol's value at a random point: positive at 0, negative at 1, else either."""
    drawn = int.from_bytes(sha256(f"{name} {point}".encode()).digest(), "big")
    size = context.mpf(drawn) / 2**256 * 2 + context.mpf("0.3")
    is_negative = point == 1 or (point > 1 and drawn % 2 == 1)
    return -size if is_negative else size


def _constant(name: str) -> Float:
    match name:
        case "pi":
            return +context.pi
        case "e":
            return +context.e
        case "i":
            return context.mpc(0, 1)
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
        one, other = as_float(one), as_float(other)
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
    base, exponent = as_float(base), as_float(exponent)
    if abs(exponent) * (1 + abs(log2(abs(base)) if abs(base) < 1e300 else 1e6)) > MAX_MAGNITUDE:
        raise NotComparableError("a huge power")
    return context.power(base, exponent)


def _call(name: str, args: list[Number], point: int) -> Number:
    if name in ("floor", "ceil", "abs") and isinstance(args[0], Fraction):
        number = args[0]
        if name == "abs":
            return abs(number)
        return Fraction(number // 1 if name == "floor" else -(-number // 1))
    if name == "binom":
        above, below = args
        if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 1000 for n in args):
            raise NotComparableError("binomial")
        return Fraction(comb(int(above), int(below)))
    if name == "root":
        return _root(*args)
    numbers = [as_float(number) for number in args]
    if name == "log?":
        return context.log(numbers[0]) * _at("log?", point)
    if name == "log":
        base, number = numbers
        return context.log(number) / context.log(base)
    if any(abs(number) > MAX_MAGNITUDE for number in numbers):
        raise NotComparableError("a function of a huge number")
    function = FUNCTIONS_OF.get(name)
    if function is None:
        raise NotComparableError(name)
    return function(numbers[0])


FUNCTIONS_OF: dict[str, Callable[[Float], Float]] = {
    "abs": context.fabs, "exp": context.exp, "ln": context.log,
    "sin": context.sin, "cos": context.cos, "tan": context.tan,
    "cot": context.cot, "sec": context.sec, "csc": context.csc,
    "arcsin": context.asin, "arccos": context.acos, "arctan": context.atan,
    "sinh": context.sinh, "cosh": context.cosh, "tanh": context.tanh,
}  # fmt: skip


def _root(index: Number, radicand: Number) -> Number:
    if not isinstance(index, Fraction) or index.denominator != 1 or not 2 <= index <= 100:
        raise NotComparableError("a root of this degree")
    degree = int(index)
    if isinstance(radicand, Fraction) and radicand >= 0:
        above, below = (_whole_root(part, degree) for part in radicand.as_integer_ratio())
        if above is not None and below is not None:
            return Fraction(above, below)
    number = as_float(radicand)
    if degree % 2 and isinstance(number, context.mpf) and number < 0:  # the real one
        return -context.root(-number, degree)
    return context.root(number, degree)


def _whole_root(number: int, degree: int) -> int | None:
    """Return the root of a number if it is an integer, else None."""
    if number.bit_length() > 1000:
        return None
    near = int(context.nint(context.root(number, degree)))
    return near if near**degree == number else None
