r"""Reads the mathematics of an answer, LaTeX or plain, into a small tree; our own reader, beside math-verify.

    read(r"\left[0, \tfrac{\pi}{2}\right)")    ->  group "[)" of 0 and pi/2
    read("3 1/2 hours")                        ->  unit "hour" of 7/2

What is not certain is not read: no sums or integrals, no 1/2x, no functions of no known name. A reader that
guesses would make the second opinion worthless.
"""

import re
from fractions import Fraction
from typing import NamedTuple, Never

from dstools_distill.judge.spelling import (
    DROP_BRACES,
    FUNCTIONS,
    SHORT_UNITS,
    SYMBOLS,
    NoUnit,
    plain,
    unit_name,
)

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 2000, 40, 1000
RELATIONS = {
    "<=": "<=", ">=": ">=", "=": "=", "<": "<", ">": ">",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\lt": "<",
    r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\gt": ">",
    r"\approx": "~", r"\in": "in",
}  # fmt: skip


class Node(NamedTuple):
    """A part of a formula.

    | op | args | name |
    |---|---|---|
    | num, sym | | value; name |
    | + - * / ^ neg ! pm mp | operands | |
    | call | arguments; of log and root the base comes first | log, root, abs, floor, sin, binom, ... |
    | base | | digits_base |
    | unit | a scalar | the unit: "%", "°", "$", "cm", "hour" |
    | group | items | the brackets: "()", "[)", "{}", or "" for a bare list |
    | matrix | rows, which are groups | |
    | relation | its sides | the signs between them, with blanks |
    | union | sets | |
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction | None = None


class Unreadable(Exception):
    """The text is no formula that we know."""


def read(text: str) -> Node | None:
    """Return the formula in a text, all of which must belong to it; None where it is not certain."""
    if len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(plain(text)).whole()
    except (Unreadable, NoUnit, RecursionError):
        return None


THOUSANDS = r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|"
DECIMAL = r"\d+\.\d+|\d+\.(?![\d.])|\.\d+|\d+"
POWER_OF_TEN = r"(?:[eE][+-]?\d{1,3}(?![\d.]))?"
ALONE = re.compile(f"(?:{THOUSANDS}{DECIMAL}){POWER_OF_TEN}")
INSIDE = re.compile(f"(?:{DECIMAL}){POWER_OF_TEN}")  # (1,234) holds two numbers
COMMAND, LETTERS = re.compile(r"\\([a-zA-Z]+)"), re.compile(r"[a-zA-Z]+")
DIGIT, DIGITS, WORD = re.compile(r"\d"), re.compile(r"\d+"), re.compile(r"\w+")
UNIT_WORDS = re.compile(r"[a-zA-Z][a-zA-Z/ ]*(?:\^\{?-?\d\}?)?")
RAISED = re.compile(r"\^\{?-?\d\}?")
CONJUNCTION = re.compile(r"(?:or|and)(?![a-zA-Z]),?")
MIXED = (
    re.compile(r"\s*\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))"),
    re.compile(r"(?<=\s)(\d+)()/(\d+)()(?![\d.])"),
)
BRACKETS = {"(": "(", "[": "[", "⦃": "{", ")": ")", "]": "]", "⦄": "}"}


class _Reader:
    """Descends from lists to relations, unions, sums, products, powers and single things."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.depth = 0  # of brackets, braces and operands
        self.inside = 0  # brackets or a list, where a comma parts

    # ------------------------------------------------------------------------------- small steps

    def fail(self) -> Never:
        raise Unreadable(f"{self.at}: {self.text}")

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, what: str) -> bool:
        """Step over `what` if it comes next; a command must end there."""
        self.peek()
        end = self.at + len(what)
        is_next = self.text.startswith(what, self.at)
        if is_next and what[0] == "\\" and self.text[end - 1 : end + 1].isalpha():
            is_next = end == len(self.text) or not self.text[end].isalpha()
        if is_next:
            self.at = end
        return is_next

    def need(self, what: str) -> None:
        if not self.take(what):
            self.fail()

    def match(self, pattern: re.Pattern[str]) -> str:
        """Step over what the pattern finds here; "" where it finds nothing."""
        self.peek()
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found[0] if found else ""

    def command(self) -> str:
        """Return the name of the command that comes next, without stepping over it."""
        self.peek()
        found = COMMAND.match(self.text, self.at)
        return found[1] if found else ""

    def letters(self) -> str:
        """Return the run of letters that comes next, without stepping over it."""
        found = LETTERS.match(self.text, self.at)
        return found[0] if found else ""

    def braced(self) -> str:
        """Return the text in braces, where no other brace may be."""
        self.need("{")
        end = self.text.find("}", self.at)
        if end < 0 or "{" in self.text[self.at : end]:
            self.fail()
        found, self.at = self.text[self.at : end], end + 1
        return found.strip()

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail()

    # -------------------------------------------------------------------------- lists, relations

    def whole(self) -> Node:
        """Read all of the text."""
        found = self.items()
        self.take(".")
        if self.peek():
            self.fail()
        return found[0] if len(found) == 1 else Node("group", found)

    def items(self) -> tuple[Node, ...]:
        found = [self.relation()]
        self.inside += 1
        while self.take(",") or self.take(";") or self.match(CONJUNCTION):
            self.match(CONJUNCTION)
            found.append(self.relation())
        self.inside -= 1
        return tuple(found)

    def relation(self) -> Node:
        sides, signs = [self.union()], []
        while sign := self.sign():
            signs.append(sign)
            sides.append(self.union())
        return Node("relation", tuple(sides), " ".join(signs)) if signs else sides[0]

    def sign(self) -> str:
        for written, sign in RELATIONS.items():
            if self.take(written):
                return sign
        return ""

    def union(self) -> Node:
        found = [self.quantity()]
        while self.take(r"\cup"):
            found.append(self.quantity())
        return Node("union", tuple(found)) if len(found) > 1 else found[0]

    def quantity(self) -> Node:
        """Read a sum with its unit, before or behind it."""
        is_negative = bool(re.match(r"-\s*[$€£]", self.text[self.at :].lstrip())) and self.take("-")
        money = next((mark for mark in "$€£" if self.take(mark)), "")
        found = self.sum()
        if is_negative:
            found = Node("neg", (found,))
        unit = self.unit()
        if (money and unit not in ("", money)) or (len(unit) > 2 and _has_variables(found)):
            self.fail()  # "I cannot say" is no number of anything
        return Node("unit", (found,), money or unit) if money or unit else found

    def unit(self) -> str:
        """Read what stands behind a number; "" where that is no unit."""
        for mark in "%°$€£":
            if self.take(mark):
                return mark
        is_apart = self.text[self.at - 1].isspace()
        if self.take(r"\text"):
            words = self.braced()
            return unit_name(words) + self.match(RAISED).translate(DROP_BRACES) if words else ""
        if not self.letters() or CONJUNCTION.match(self.text, self.at):
            return ""
        words = self.match(UNIT_WORDS)
        first = re.split(r"[/ ^]", words)[0]
        if first not in SHORT_UNITS and (len(first) < 3 or not is_apart):
            self.fail()
        return unit_name(words)

    # ------------------------------------------------------------------- sums, products, powers

    def sum(self) -> Node:
        self.deeper()
        if self.take("-"):
            found = Node("neg", (self.product(),))
        elif self.take(r"\pm"):
            found = Node("pm", (number(0), self.product()))
        else:
            self.take("+")
            found = self.product()
        signs = {"+": "+", "-": "-", r"\pm": "pm", r"\mp": "mp"}
        while sign := next((signs[written] for written in signs if self.take(written)), ""):
            found = Node(sign, (found, self.product()))
        self.depth -= 1
        return found

    def product(self) -> Node:
        found = self.power()
        while True:
            if self.take("*"):
                found = Node("*", (found, self.signed_power()))
            elif self.take("/"):
                found = Node("/", (found, self.signed_power()))
                if self.is_factor_next():
                    self.fail()  # 1/2x: nobody knows
            elif (mixed := self.mixed(found)) is not None:
                found = mixed
            elif self.is_factor_next():
                if self.peek().isdigit() or self.peek() == ".":
                    self.fail()  # 3 4
                found = Node("*", (found, self.power()))
            else:
                return found

    def signed_power(self) -> Node:
        return Node("neg", (self.power(),)) if self.take("-") else self.power()

    def mixed(self, whole: Node) -> Node | None:
        """Read the fraction of a mixed number: 3 1/2."""
        if whole.op != "num" or whole.value is None or whole.value.denominator != 1:
            return None
        for pattern in MIXED:
            if found := pattern.match(self.text, self.at):
                above, below = found[1] or found[2], found[3] or found[4]
                if max(len(above), len(below)) < 10 and 0 < int(above) < int(below):
                    self.at = found.end()
                    return number(whole.value + Fraction(int(above), int(below)))
        return None

    def is_factor_next(self) -> bool:
        """Tell whether something comes that multiplies without a sign."""
        char = self.peek()
        is_apart = self.text[self.at - 1].isspace()
        if char == "\\":
            return self.command() in (*FUNCTIONS, *SYMBOLS, "frac", "binom")
        if word := self.letters():
            if word in (*FUNCTIONS, "pi") or CONJUNCTION.match(self.text, self.at):
                return word not in ("or", "and")
            if word in SHORT_UNITS:
                return len(word) == 1 and not is_apart
            return len(word) <= (2 if is_apart else 4)
        is_number = char.isdigit() or (char == "." and DIGIT.match(self.text, self.at + 1))
        return char == "(" or bool(is_number)

    def power(self) -> Node:
        found = self.atom()
        if self.take("!"):
            found = Node("!", (found,))
        if self.take("^"):
            found = Node("^", (found, self.exponent()))
        if self.peek() and self.peek() in "^!":
            self.fail()  # 2^3^4, 5!!
        return found

    def exponent(self) -> Node:
        self.deeper()
        if self.peek() == "{":
            found = self.group()
        elif self.take("-"):
            found = Node("neg", (self.exponent(),))
        elif digits := self.match(DIGITS):
            found = number(value_of(digits))
        else:
            found = self.atom()
        self.depth -= 1
        return found

    def group(self) -> Node:
        """Read a sum in braces."""
        self.need("{")
        self.inside += 1
        found = self.sum()
        self.inside -= 1
        self.need("}")
        return found

    # ------------------------------------------------------------------------------ single things

    def atom(self) -> Node:
        char = self.peek()
        if char.isdigit() or char == ".":
            return self.number()
        if char == "\\":
            return self.after_backslash()
        if char and char in "([⦃":
            return self.bracketed()
        if char == "{":
            return self.group()
        if char == "|":
            self.need("|")
            found = self.sum()
            self.need("|")
            return Node("call", (found,), "abs")
        word = self.letters()
        if word in ("pi", "inf", "infinity"):
            self.at += len(word)
            return Node("sym", (), SYMBOLS[word])
        for name in FUNCTIONS:
            if word == name or (word.startswith(name) and len(word) == len(name) + 1):  # sinx
                self.at += len(name)
                return self.call(name)
        if not word or len(word) > 4 or CONJUNCTION.match(self.text, self.at):
            self.fail()
        self.at += 1
        return self.symbol(word[0])

    def number(self) -> Node:
        text = self.match(INSIDE if self.inside else ALONE) or self.fail()
        if self.text.startswith(("..", "…", "\\ldots", "\\dots", "\\cdots"), self.at):
            self.fail()
        if self.take(r"\overline") or self.take(r"\bar"):
            again = self.braced() if self.peek() == "{" else self.match(DIGIT)
            if "." not in text or not again.isdigit() or len(text + again) > 60:
                self.fail()
            places = 10 ** len(text.partition(".")[2])
            return number(value_of(text) + Fraction(int(again), places * (10 ** len(again) - 1)))
        if self.take("_"):
            base = self.braced() if self.peek() == "{" else self.match(DIGITS)
            if not base.isdigit() or not text.isdigit():
                self.fail()
            return Node("base", (), f"{text.lstrip('0')}_{base}")
        return number(value_of(text))

    def symbol(self, name: str) -> Node:
        if self.text.startswith("'", self.at):
            self.fail()
        if self.take("_"):
            index = self.braced() if self.peek() == "{" else self.match(WORD)
            name = f"{name}_{index}" if index else self.fail()
        return Node("sym", (), name)

    def after_backslash(self) -> Node:
        name = self.command() or self.fail()
        self.need(f"\\{name}")
        if name in SYMBOLS:
            return self.symbol(SYMBOLS[name])
        if name in FUNCTIONS:
            return self.call(name)
        match name:
            case "frac":
                return Node("/", (self.argument(), self.argument()))
            case "binom":
                return Node("call", (self.argument(), self.argument()), "binom")
            case "lfloor" | "lceil":
                found = self.sum()
                self.need(name.replace("l", r"\r", 1))
                return Node("call", (found,), name[1:])
            case "begin":
                return self.matrix()
        self.fail()

    def argument(self) -> Node:
        """Read what TeX takes: a group in braces, one digit, a letter or a command."""
        if self.peek() == "{":
            return self.group()
        digit = self.match(DIGIT)
        return number(int(digit)) if digit else self.atom()

    def call(self, name: str) -> Node:
        self.deeper()
        if name in ("sqrt", "cbrt"):
            found = self.root(name)
        else:
            base = self.argument() if name == "log" and self.take("_") else None
            exponent = self.exponent() if self.take("^") else None
            if exponent is not None and exponent.op == "neg":
                self.fail()  # arcsin, or one over sine: nobody knows
            operand = self.operand()
            if name == "lg":
                base, name = number(10), "log"
            elif name == "log" and base is None:
                name = "log?"  # to base 10 or e: nobody knows
            found = Node("call", (operand,) if base is None else (base, operand), name)
            found = found if exponent is None else Node("^", (found, exponent))
        self.depth -= 1
        return found

    def root(self, name: str) -> Node:
        index = number(2 if name == "sqrt" else 3)
        if self.take("["):
            index = self.sum()
            self.need("]")
        is_plain = self.text[self.at - 4 : self.at] in ("sqrt", "cbrt") and (
            self.text[self.at - 5 : self.at - 4] != "\\"
        )
        return Node(
            "call",
            (index, self.number() if is_plain and self.peek().isdigit() else self.argument()),
            "root",
        )

    def operand(self) -> Node:
        """Read what a function is of: brackets, or factors up to the next function or sign."""
        if self.take("-"):
            return Node("neg", (self.operand(),))
        if self.peek() and self.peek() in "({|":
            found = self.atom()
            if found.op in ("group", "relation"):
                self.fail()
            return Node("^", (found, self.exponent())) if self.take("^") else found
        found = self.power()
        while self.is_factor_next() and self.command() not in FUNCTIONS and self.peek() != "(":
            if self.letters() in FUNCTIONS:
                break
            found = Node("*", (found, self.power()))
        return Node("unit", (found,), "°") if self.take("°") else found

    def bracketed(self) -> Node:
        opener = self.peek()
        self.need(opener)
        self.deeper()
        self.inside += 1
        if opener == "⦃" and self.take("⦄"):
            found: tuple[Node, ...] = ()
            self.at -= 1
        else:
            found = self.items()
        self.inside -= 1
        self.depth -= 1
        closer = self.peek()
        if not closer or closer not in ")]⦄" or (opener == "⦃") != (closer == "⦄"):
            self.fail()
        self.need(closer)
        brackets = BRACKETS[opener] + BRACKETS[closer]
        if len(found) == 1 and brackets == "()":
            return found[0] if found[0].op != "relation" else self.fail()
        return Node("group", found, brackets)

    def matrix(self) -> Node:
        kind = self.braced()
        if kind not in ("pmatrix", "bmatrix", "matrix", "array"):
            self.fail()
        if kind == "array":
            self.braced()
        rows: list[tuple[Node, ...]] = []
        while not self.take(r"\end"):
            row = [self.sum()]
            while self.take("&"):
                row.append(self.sum())
            rows.append(tuple(row))
            if not self.take("\\\\"):
                self.need(r"\end")
                break
        if self.braced() != kind:
            self.fail()
        return Node("matrix", tuple(Node("group", row) for row in rows))


def _has_variables(node: Node) -> bool:
    if node.op == "sym":
        return node.name not in ("pi", "e", "i")
    return any(map(_has_variables, node.args))


def number(value: Fraction | int) -> Node:
    """Return a number as a node."""
    return Node("num", (), "", Fraction(value))


def value_of(text: str) -> Fraction:
    """Return the value of a written number, exactly."""
    if len(text) > MAX_DIGITS:
        raise Unreadable("too many digits")
    return Fraction(text.replace(",", ""))
