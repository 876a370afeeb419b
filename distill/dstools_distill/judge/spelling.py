# ruff: noqa: RUF001, RUF002
r"""Normal spelling of formulas and units: − and -, \dfrac and \frac, 1{,}234, 10², metres and m.

The rules name single characters and commands. Unicode's NFKC would turn 10² into 102 and 3½ into
31/2.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from unicodedata import normalize

STYLES = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*"
STYLED = re.compile(STYLES + r"\{([^{}]*)\}")
SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|(?:quad|qquad|displaystyle|textstyle|left|right|limits|[bB]igg?[lr]?)"
    r"(?![a-z]))|(?<=[\w}){])~"
)
FUNCTIONS = "(?:arc)?(?:sin|cos|tan)|ln|log"
COMMAND = re.compile(r"\\([A-Za-z]+|[{}%$])")
SIMPLER = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"), "dbinom": "\\binom", "div": "/",
    "cdot": "*", "times": "*", "degree": "°", "lvert": "|", "rvert": "|", "vert": "|", "%": "%",
    "langle": "(", "rangle": ")", "lbrace": "⦃", "{": "⦃", "rbrace": "⦄", "}": "⦄", "$": "$",
    "colon": ":", "neq": "\\ne", **dict.fromkeys(("leq", "leqslant"), "\\le"),
    **dict.fromkeys(("geq", "geqslant"), "\\ge"), "therefore": "", "lg": "\\log_{10}",
    **dict.fromkeys(("emptyset", "varnothing"), "⦃⦄"),
    "land": "\\wedge", "lor": "\\vee", "neg": "\\lnot",
}  # fmt: skip
# what has a simpler equivalent
REPLACED: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(\\(?:vec|mathbf|boldsymbol|bm)\s*\{\w\}\s*)\\times"), r"\1\\wedge"),
    (re.compile(r"\\(?:math(?:rm|bf|it|cal)|bf|rm|boldsymbol|operatorname\*?)\s*\{(\w)\}"), r"\1"),
    (re.compile(rf"\\(?:operatorname\*?|mathrm)\s*\{{({FUNCTIONS})\}}"
                rf"|(?<![A-Za-z\\])({FUNCTIONS})(?=\s*[(\\\d]|\s+[a-z]\b)"), r"\\\1\2 "),  # sin x
    (re.compile(STYLES + r"(?=\{)"), r"\\text"),
    (re.compile(r"\\text\{[\s,]*(or|and)[\s,]*\}|\$\s*(,|or|and)\s*\$"), r" \1\2 "),  # $1$ and $2$
    (re.compile(r"\\mu\s*\\text\{"), r"\\text{µ"),
    (re.compile(r"(?<=\d)\s*(\\text\{)?\s*([kM]?)\s*\}?\s*\\Omega(?![a-z])(?(1)\}?)"), r" \2Ω"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\(?:text)?color\s*\{\w+\}"), ""),
    (COMMAND, lambda command: SIMPLER.get(command[1], command[0])),
    (re.compile(r"\\textcircled\s*\{(\d)\}"), lambda circled: chr(0x245F + int(circled[1]))),
    (re.compile(r"(?:(?<=\S)\s+|(?<=[\d})]))\((\w\s*(?:\\(?:in|ne|[lg]e)(?![a-z])|[<>])[^()]*)\)$"),
     r", \1"),  # x + 1 (x > 1)
    (re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+)\s*°\s*[)}]?"),
     r"\1(\\frac{\2 \\pi}{180})"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\s*\(\s*(?:\\approx|about|approx(?:imately|\.)?)\s*(-?\d*\.?\d+)\s*\)$"),
     r" \\approx \1"),
    (re.compile(r"\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|[cm]m)\]"), r"\\\\"),  # between rows
    (re.compile(r"^0x([0-9A-Fa-f]+)$"), r"0\1_{16}"),
    (re.compile(r"^0b([01]+)$"), r"\1_2"),
    (re.compile(r"(-?\d+)\s*\(?\\p?mod\s*\{?\s*(\d+)\s*\}?\s*\)?$"),
     r"\1 + \2 k, k \\in \\mathbb Z"),
    (re.compile(r"(?<=\d)\{,\}(?=\d\d?(?!\d))"), "."),  # 6{,}75
    (re.compile(r"(?<![\d.,(\[⦃])[1-9]\d{0,2}(?:\.\d{3})+,\d\d(?![\d.,])"),
     lambda number: number[0].replace(".", "").replace(",", ".")),  # 1.250,00
    (re.compile(r"^\$([^$]+)\$\s*([A-Za-z%][A-Za-z/^\d ]*)$"), r"\1 \\text{\2}"),  # $5$ cm
    (re.compile(r"(?<![A-Za-z])\((-?[\d.,]+)\s*\|\s*(-?[\d.,]+)\)"),  # German for a point
     lambda point: f"({point[1].replace(',', '.')}, {point[2].replace(',', '.')})"),
    (re.compile(r"\]([^\[\]()\s,;][^\[\]()]*[,;][^\[\]()]+)(?=[\[\]])"), r"(\1"),  # ]1, 2[
    (re.compile(r"(?<=[\[(])([^\[\]()]+[,;][^\[\]()]+)\["), r"\1)"),
    (re.compile(r"(\d*\.\d{0,20}?)(\d{1,12}?)\2{2,}\s*(?:\.\.\.|\\[lc]?dots)\s*$"),
     r"\1\\overline{\2}"),
    (re.compile(r"^((?:[A-Za-z]\s*=)?)[(\[\s]*\\begin\{(cases|[pb]?matrix|array)\}(?:\{c\})?([^&]*)"
                r"\\end\{\2\}[)\]\s]*$"),
     lambda rows: f"{rows[1]}({rows[3].replace(chr(92) * 2, ',')})"),  # a system, or a column
    (re.compile(r"(?<![A-Za-z])\\?sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z])C(?:_\{?(\d+)\}?\^\{?(\d+)\}?|\s*\(\s*(\d+)\s*,\s*(\d+)\s*\))"),
     r"\\binom{\1\3}{\2\4}"),
    (re.compile(r"(?<![A-Za-z])[AP]_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2} * \2!"),
]  # fmt: skip
RATIO = re.compile(r"[^:(){}\[\]⦃⦄]*[\d}](?:\s*:\s*[\d\\][^:⦃⦄]*)+")
CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑﹣－", "-"),
        **dict.fromkeys("⋅·∙✕✖×", "*"),
        "或": " or ", "和": " and ", "且": " and ", "、": ",", "…": "\\dots ", "⟨": "(", "⟩": ")",
        "∴": "", "≠": r"\ne ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "±": r"\pm ",
        "∞": r"\infty ", "√": r"\sqrt ",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≈": r"\approx ", "∪": r"\cup ",
        "∈": r"\in ", "∠": r"\angle ", "∣": "|", "º": "°", "∅": "⦃⦄",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
    }
)  # fmt: skip
ROOT = re.compile(r"([√∛])\s*(\d+|[A-Za-z]|\([^()]*\))")
COMPATIBLE = [  # characters that NFKC makes plain, and what is to be put around them
    (re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+"), "^{%s}"),
    (re.compile("[₀-₉]+"), "_{%s}"),
    (re.compile("[¼-¾⅐-⅞]"), r" \frac{%s}"),
    (re.compile("[！-～\u00a0\u2000-\u200a\u202f\u3000ℓ]"), "%s"),
]


@lru_cache(64)  # a text is compared, then read
def plain(text: str) -> str:
    r"""Return a formula in the normal spelling: - for −, ^{2} for ², \frac for \dfrac, 1,234."""
    if not text.isascii():
        text = ROOT.sub(lambda m: f"\\sqrt{'[3]' * (m[1] == '∛')}{{{m[2].strip('()')}}}", text)
        for characters, form in COMPATIBLE:
            for run in sorted(set(characters.findall(text)), key=len, reverse=True):
                text = text.replace(run, form % normalize("NFKC", run).replace("⁄", "}{"))
        text = text.translate(CHARACTERS)
    text = re.sub(r"(?<=\d)(?:\\,|,\s*\\!|\\!,|\{,\})\s*(?=\d{3}(?!\d))", ",", text)
    text = SPACING.sub(" ", text)
    for pattern, simpler in REPLACED:
        text = pattern.sub(simpler, text)
    text = unwrapped(text)
    if not RATIO.fullmatch(text):
        return text
    *parts, last = text.split(":")  # 3:4, and 1:2:3 as a tuple
    shares = ", ".join(f"\\frac{{{part.strip()}}}{{{last.strip()}}}" for part in parts)
    return f"({shares})" if len(parts) > 1 else shares


OPENING, CLOSING = "([{⦃", ")]}⦄"


def outside(text: str) -> str:
    """Return a text with NULs in place of what is in brackets, or between \\begin and \\end."""
    depth, parts = 0, []
    for part in re.findall(r"\\begin|\\end|.", text, re.DOTALL):
        depth = max(0, depth - (part in CLOSING or part == "\\end"))
        parts.append("\0" * len(part) if depth else part)
        depth += part in OPENING or part == "\\begin"
    return "".join(parts)


PAIRS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")]
PAIRS += zip("\"“'‘", "\"”'’", strict=True)


def unwrapped(text: str) -> str:
    """Return a text without the dollars, brackets of TeX or quotes around all of it."""
    text = text.strip()
    for opener, closer in PAIRS:
        is_alone = text.count(opener) == 1 + (opener == closer)
        if is_alone and text.startswith(opener) and text.endswith(closer):
            text = text[len(opener) : -len(closer)].strip()
    return text


def squeezed(text: str) -> str:
    """Return a formula without blanks and braces that mean nothing."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", plain(text))
    text = re.sub(r"(?<=[\^_])\s*\{(\w)\}", r"\1", text)
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
