# ruff: noqa: RUF001, RUF002, SIM905
r"""Normal spelling of formulas and units: − and -, \dfrac and \frac, 1{,}234, 10², metres and m.

The rules name single characters and commands. Unicode's NFKC would turn 10² into 102 and 3½ into
31/2.
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
REPLACED = [  # commands and characters that have a simpler equivalent
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
            "½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅖25",
            "⅗35", "⅘45", "⅙16", "⅛18", "⅜38", "⅝58", "⅞78")},
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D},
    }
)  # fmt: skip
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
RAISED_RUN, LOWERED_RUN = re.compile(f"[{''.join(RAISED)}]+"), re.compile(f"[{''.join(LOWERED)}]+")


def one_alphabet(text: str) -> str:
    r"""Return a formula with characters such as −, √, １ in ASCII or LaTeX; ² becomes ^{2}."""
    if text.isascii():
        return text
    text = RAISED_RUN.sub(lambda run: "^{" + "".join(map(RAISED.__getitem__, run[0])) + "}", text)
    text = LOWERED_RUN.sub(lambda run: "_{" + "".join(map(LOWERED.__getitem__, run[0])) + "}", text)
    return text.translate(CHARACTERS)


def plain(text: str) -> str:
    r"""Return a formula in the normal spelling: - for −, \frac for \dfrac, 1,234 for 1{,}234."""
    text = one_alphabet(text)
    text = re.sub(r"(?<=\d)(?:\\,|,\\!|\\!,)(?=\d{3}(?!\d))", ",", text)
    text = SPACING.sub(" ", text)
    if not PLAIN.fullmatch(text):
        for pattern, simpler in REPLACED:
            text = pattern.sub(simpler, text)
    text = text.strip()
    for mark in ("$$", "$"):
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)].strip()
    for opener, closer in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opener) and text.endswith(closer):
            text = text[2:-2].strip()
    return text


UNITS = {  # other spellings -> ours; a word that is not here keeps its name, without a plural s
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
NOT_UNITS = set(  # words that change a number, or take it back
    "hundred thousand million billion trillion dozen score half third quarter fourth fifth tenth "
    "percent plus minus times divided over squared cubed root factorial mod power "
    "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
    "or and to not no nor if maybe perhaps about least most more less fewer fewest between than "
    "approximately under above below negative but either wrong false instead except without "
    "pair pairs couple imaginary i x".split()
)


class NoUnitError(Exception):
    """The text after a number is not a unit."""


DROP_BRACES = str.maketrans("", "", "{}")


def unit_name(words: str) -> str:
    """Return the one name of a unit: "cm" for "centimetres", "€" for "euros".

    Raises NoUnitError for text that is not a unit, such as words that change the number.
    """
    words = " ".join(words.replace("per ", "/").replace("\\", "").split()).rstrip(".")
    raised = ""
    if "^" in words:
        words, _, raised = words.partition("^")
        raised = "^" + raised.translate(DROP_BRACES)
    lower = words.lower()
    is_percent = lower in ("percent", "per cent", "/cent")
    if not is_percent and NOT_UNITS & set(re.split(r"[ /-]", lower)):
        raise NoUnitError(words)
    if not words or len(words) > 40 or not re.fullmatch(r"[A-Za-zµ°€£$%/ ().-]+", words):
        raise NoUnitError(words)
    if lower == "/cent":
        return "%"
    single = lower[:-1] if lower.endswith("s") and len(lower) > 2 else lower
    return UNITS.get(lower, UNITS.get(single, words if words in SHORT_UNITS else single)) + raised
