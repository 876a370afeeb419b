# ruff: noqa: RUF001, RUF002, SIM905
r"""One spelling for what mathematics is written in: − and -, \dfrac and \frac, 1{,}234, 10², metres and m.

Exact rules for single characters and commands; Unicode's own NFKC would make 102 of 10² and 31/2 of 3½.
"""

import re

FUNCTIONS = (
    "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc exp ln lg log sqrt cbrt".split()
)
SYMBOLS = {"pi": "pi", "infty": "inf", "infinity": "inf", "inf": "inf", "emptyset": "empty"} | {
    name: name
    for name in "alpha beta gamma delta epsilon zeta eta theta lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell varnothing".split()
}
SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|quad|qquad|displaystyle|textstyle|left(?![a-z])|right(?![a-z])|limits"
    r"|[bB]igg?[lr]?(?![a-z]))|~"
)
SAME = [  # what is written in several ways
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:mathrm|mathbf|mathit|bf|rm|boldsymbol|operatorname\*?)\s*\{(\w)\}"), r"\1"),
    (re.compile(r"\\(?:operatorname\*?|mathrm)\s*\{(" + "|".join(FUNCTIONS) + r")\}"), r"\\\1 "),
    (re.compile(r"\\(?:mathrm|textbf|textit|textrm|mbox|mathbf|textnormal)(?=\s*\{)"), r"\\text"),
    (re.compile(r"\\text\s*\{\s*(?:or|and)\s*\}"), " or "),
    (re.compile(r"\\(?:lbrace|\{)"), "⦃"),
    (re.compile(r"\\(?:rbrace|\})"), "⦄"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])|×"), "*"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])"), "°"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\$\s*(,|or|and)\s*\$"), r" \1 "),  # $1$ and $2$
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
]
PLAIN = re.compile(r"[\w\s.,+/()-]*", re.ASCII)
CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑﹣－", "-"),
        **dict.fromkeys("⋅·∙✕✖×", "×"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "±": r"\pm ",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≈": r"\approx ", "∪": r"\cup ",
        "∈": r"\in ", "º": "°", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "λ": r"\lambda ", "％": "%", "ℓ": r"\ell ",
        **{char: rf" \frac{{{a}}}{{{b}}}" for char, a, b in (
            ("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5),
            ("⅖", 2, 5), ("⅗", 3, 5), ("⅘", 4, 5), ("⅙", 1, 6), ("⅛", 1, 8), ("⅜", 3, 8),
            ("⅝", 5, 8), ("⅞", 7, 8))},
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D},
    }
)  # fmt: skip
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
RAISED_RUN, LOWERED_RUN = re.compile(f"[{''.join(RAISED)}]+"), re.compile(f"[{''.join(LOWERED)}]+")


def one_alphabet(text: str) -> str:
    r"""Return a formula in ASCII where it has another character for the same: −, ², √, １.

    A superscript becomes ^{..}: Unicode's own NFKC would make 102 of 10².
    """
    if text.isascii():
        return text
    text = RAISED_RUN.sub(lambda m: "^{" + "".join(map(RAISED.__getitem__, m[0])) + "}", text)
    text = LOWERED_RUN.sub(lambda m: "_{" + "".join(map(LOWERED.__getitem__, m[0])) + "}", text)
    return text.translate(CHARACTERS)


def plain(text: str) -> str:
    r"""Return a formula with one spelling for what has several: − and -, \dfrac and \frac, 1{,}234."""
    text = one_alphabet(text)
    text = re.sub(r"(?<=\d)(?:\\,|,\\!|\\!,)(?=\d{3}(?!\d))", ",", text)
    text = SPACING.sub(" ", text)
    if not PLAIN.fullmatch(text):
        for pattern, ours in SAME:
            text = pattern.sub(ours, text)
    text = text.strip()
    for mark in ("$$", "$"):
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)].strip()
    for opener, closer in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opener) and text.endswith(closer):
            text = text[2:-2].strip()
    return text


UNITS = {  # other spellings -> ours; words that are not here stand for themselves, without plural s
    "dollar": "$", "usd": "$", "euro": "€", "eur": "€", "pound sterling": "£", "gbp": "£",
    "degree": "°", "deg": "°", "percent": "%", "per cent": "%", "percentage point": "%",
    "metre": "m", "meter": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm",
    "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilogram": "kg", "gram": "g",
    "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l",
    "inches": "inch", "feet": "ft", "foot": "ft", "square unit": "unit", "cubic unit": "unit",
}  # fmt: skip
SHORT_UNITS = set(
    "m km cm mm kg g mg s ms h min l L ml mL ft N J W V A K Hz kHz Pa mph kph".split()
)
NO_UNITS = set(  # words that change a number, or take it back
    "hundred thousand million billion trillion dozen score half third quarter fourth fifth tenth "
    "percent plus minus times divided over squared cubed root factorial mod power "
    "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
    "or and to not no nor if maybe perhaps about least most more less fewer fewest between than "
    "approximately under above below negative but either wrong false instead except without "
    "pair pairs couple imaginary i x".split()
)


class NoUnit(Exception):
    """A word behind a number is no unit."""


DROP_BRACES = str.maketrans("", "", "{}")


def unit_name(words: str) -> str:
    """Return one name of a unit: no plural, spelled out; raises where a word changes the number."""
    words = " ".join(words.replace("per ", "/").replace("\\", "").split()).rstrip(".")
    raised = ""
    if "^" in words:
        words, _, raised = words.partition("^")
        raised = "^" + raised.translate(DROP_BRACES)
    lower = words.lower()
    if lower not in ("percent", "per cent", "/cent") and NO_UNITS & set(re.split(r"[ /-]", lower)):
        raise NoUnit(words)
    if not words or len(words) > 40 or not re.fullmatch(r"[A-Za-zµ°€£$%/ ().-]+", words):
        raise NoUnit(words)
    if lower == "/cent":
        return "%"
    single = lower[:-1] if lower.endswith("s") and len(lower) > 2 else lower
    return UNITS.get(lower, UNITS.get(single, words if words in SHORT_UNITS else single)) + raised
