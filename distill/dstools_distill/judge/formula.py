r"""Parser of the mathematics of an answer, LaTeX or plain, into a tree; independent of math-verify.

    read(r"\left[0, \tfrac{\pi}{2}\right)")    ->  group "[)" of 0 and pi/2
    read("3 1/2 hours")                        ->  unit "hour" of 7/2

Ambiguous input is refused: sums, integrals, 1/2x, unknown functions. A parser that guesses would
make the second opinion worthless.
"""

import re
from fractions import Fraction
from typing import NamedTuple, Never

from dstools_distill.judge.spelling import (
    DROP_BRACES,
    FUNCTIONS,
    SHORT_UNITS,
    SYMBOLS,
    NoUnitError,
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
    | call | arguments; the base of log and root first | log, root, abs, floor, sin, binom, ... |
    | base | | digits_base |
    | unit | a scalar | the unit: "%", "°", "$", "cm", "hour" |
    | group | items | the brackets: "()", "[)", "{}", or "" for a bare list |
    | matrix | rows, which are groups | |
    | relation | its sides | the signs between them, separated by blanks |
    | union | sets | |
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction | None = None


class UnreadableError(Exception):
    """The text is not a formula that the parser knows."""


def read(text: str) -> Node | None:
    """Return the formula that the whole text is; None if it is ambiguous or not known."""
    if len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(plain(text)).whole()
    except (UnreadableError, NoUnitError, RecursionError):
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
    """Recursive descent: lists, relations, unions, sums, products, powers, atoms."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.depth = 0  # of nested brackets, braces and operands
        self.inside = 0  # nested brackets and lists, in which a comma separates items

    # ------------------------------------------------------------------------------- small steps

    def fail(self) -> Never:
        raise UnreadableError(f"{self.at}: {self.text}")

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, what: str) -> bool:
        """Step over `what` if it comes next; return whether it did. A command must end there."""
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
        """Step over a match of the pattern and return its text; "" if there is none here."""
        self.peek()
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match[0] if match else ""

    def command(self) -> str:
        """Return the name of the command that comes next, without stepping over it."""
        self.peek()
        match = COMMAND.match(self.text, self.at)
        return match[1] if match else ""

    def letters(self) -> str:
        """Return the run of letters that comes next, without stepping over it."""
        match = LETTERS.match(self.text, self.at)
        return match[0] if match else ""

    def braced(self) -> str:
        """Return the text in braces, which may hold no other brace."""
        self.need("{")
        end = self.text.find("}", self.at)
        if end < 0 or "{" in self.text[self.at : end]:
            self.fail()
        inner, self.at = self.text[self.at : end], end + 1
        return inner.strip()

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail()

    # -------------------------------------------------------------------------- lists, relations

    def whole(self) -> Node:
        """Read all of the text."""
        items = self.items()
        self.take(".")
        if self.peek():
            self.fail()
        return items[0] if len(items) == 1 else Node("group", items)

    def items(self) -> tuple[Node, ...]:
        items = [self.relation()]
        self.inside += 1
        while self.take(",") or self.take(";") or self.match(CONJUNCTION):
            self.match(CONJUNCTION)
            items.append(self.relation())
        self.inside -= 1
        return tuple(items)

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
        sets = [self.quantity()]
        while self.take(r"\cup"):
            sets.append(self.quantity())
        return Node("union", tuple(sets)) if len(sets) > 1 else sets[0]

    def quantity(self) -> Node:
        """Read a sum and the unit before or after it."""
        is_negative = bool(re.match(r"-\s*[$€£]", self.text[self.at :].lstrip())) and self.take("-")
        money = next((mark for mark in "$€£" if self.take(mark)), "")
        amount = self.sum()
        if is_negative:
            amount = Node("neg", (amount,))
        unit = self.unit()
        if (money and unit not in ("", money)) or (len(unit) > 2 and _has_variables(amount)):
            self.fail()  # "I cannot say" is not a quantity
        return Node("unit", (amount,), money or unit) if money or unit else amount

    def unit(self) -> str:
        """Read the unit after a number; return "" if there is none."""
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
            node = Node("neg", (self.product(),))
        elif self.take(r"\pm"):
            node = Node("pm", (number(0), self.product()))
        else:
            self.take("+")
            node = self.product()
        signs = {"+": "+", "-": "-", r"\pm": "pm", r"\mp": "mp"}
        while sign := next((signs[written] for written in signs if self.take(written)), ""):
            node = Node(sign, (node, self.product()))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.take("*"):
                node = Node("*", (node, self.signed_power()))
            elif self.take("/"):
                node = Node("/", (node, self.signed_power()))
                if self.is_factor_next():
                    self.fail()  # 1/2x is ambiguous
            elif (mixed := self.mixed(node)) is not None:
                node = mixed
            elif self.is_factor_next():
                if self.peek().isdigit() or self.peek() == ".":
                    self.fail()  # 3 4
                node = Node("*", (node, self.power()))
            else:
                return node

    def signed_power(self) -> Node:
        return Node("neg", (self.power(),)) if self.take("-") else self.power()

    def mixed(self, whole: Node) -> Node | None:
        """Read the fraction of a mixed number: 3 1/2."""
        if whole.op != "num" or whole.value is None or whole.value.denominator != 1:
            return None
        for pattern in MIXED:
            if match := pattern.match(self.text, self.at):
                above, below = match[1] or match[2], match[3] or match[4]
                if max(len(above), len(below)) < 10 and 0 < int(above) < int(below):
                    self.at = match.end()
                    return number(whole.value + Fraction(int(above), int(below)))
        return None

    def is_factor_next(self) -> bool:
        """Return whether a factor without a multiplication sign comes next."""
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
        node = self.atom()
        if self.take("!"):
            node = Node("!", (node,))
        if self.take("^"):
            node = Node("^", (node, self.exponent()))
        if self.peek() and self.peek() in "^!":
            self.fail()  # 2^3^4, 5!!
        return node

    def exponent(self) -> Node:
        self.deeper()
        if self.peek() == "{":
            node = self.group()
        elif self.take("-"):
            node = Node("neg", (self.exponent(),))
        elif digits := self.match(DIGITS):
            node = number(value_of(digits))
        else:
            node = self.atom()
        self.depth -= 1
        return node

    def group(self) -> Node:
        """Read a sum in braces."""
        self.need("{")
        self.inside += 1
        node = self.sum()
        self.inside -= 1
        self.need("}")
        return node

    # -------------------------------------------------------------------------------------- atoms

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
            operand = self.sum()
            self.need("|")
            return Node("call", (operand,), "abs")
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
            period = self.braced() if self.peek() == "{" else self.match(DIGIT)
            if "." not in text or not period.isdigit() or len(text + period) > 60:
                self.fail()
            places = 10 ** len(text.partition(".")[2])
            return number(value_of(text) + Fraction(int(period), places * (10 ** len(period) - 1)))
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
                operand = self.sum()
                self.need(name.replace("l", r"\r", 1))
                return Node("call", (operand,), name[1:])
            case "begin":
                return self.matrix()
        self.fail()

    def argument(self) -> Node:
        """Read the argument of a command: a group in braces, one digit, a letter or a command."""
        if self.peek() == "{":
            return self.group()
        digit = self.match(DIGIT)
        return number(int(digit)) if digit else self.atom()

    def call(self, name: str) -> Node:
        self.deeper()
        if name in ("sqrt", "cbrt"):
            node = self.root(name)
        else:
            base = self.argument() if name == "log" and self.take("_") else None
            exponent = self.exponent() if self.take("^") else None
            if exponent is not None and exponent.op == "neg":
                self.fail()  # sin^{-1} may be arcsin or 1/sin
            operand = self.operand()
            if name == "lg":
                base, name = number(10), "log"
            elif name == "log" and base is None:
                name = "log?"  # to base 10 or e
            node = Node("call", (operand,) if base is None else (base, operand), name)
            node = node if exponent is None else Node("^", (node, exponent))
        self.depth -= 1
        return node

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
        """Read the operand of a function: brackets, or factors up to the next function or sign."""
        if self.take("-"):
            return Node("neg", (self.operand(),))
        if self.peek() and self.peek() in "({|":
            node = self.atom()
            if node.op in ("group", "relation"):
                self.fail()
            return Node("^", (node, self.exponent())) if self.take("^") else node
        node = self.power()
        while self.is_factor_next() and self.command() not in FUNCTIONS and self.peek() != "(":
            if self.letters() in FUNCTIONS:
                break
            node = Node("*", (node, self.power()))
        return Node("unit", (node,), "°") if self.take("°") else node

    def bracketed(self) -> Node:
        opener = self.peek()
        self.need(opener)
        self.deeper()
        self.inside += 1
        if opener == "⦃" and self.take("⦄"):
            items: tuple[Node, ...] = ()
            self.at -= 1
        else:
            items = self.items()
        self.inside -= 1
        self.depth -= 1
        closer = self.peek()
        if not closer or closer not in ")]⦄" or (opener == "⦃") != (closer == "⦄"):
            self.fail()
        self.need(closer)
        brackets = BRACKETS[opener] + BRACKETS[closer]
        if len(items) == 1 and brackets == "()":
            return items[0] if items[0].op != "relation" else self.fail()
        return Node("group", items, brackets)

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
    """Return the node of a number."""
    return Node("num", (), "", Fraction(value))


def value_of(text: str) -> Fraction:
    """Return the value of a written number, exactly."""
    if len(text) > MAX_DIGITS:
        raise UnreadableError("too many digits")
    return Fraction(text.replace(",", ""))
