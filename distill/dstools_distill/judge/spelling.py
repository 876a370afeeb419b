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
    (re.compile(r"\\text\s*\{\s*(or|and)\s*\}"), r" \1 "),
    (re.compile(r"\\mu\s*\\text\s*\{"), r"\\text{µ"),
    (re.compile(r"(?<=\d)\s*\\Omega(?![a-z])"), " Ω"),
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
    (re.compile(r"\\(?:text)?color\s*\{\w+\}"), ""),
    (re.compile(r"\\text\s*\{\s*(-?[\d.,/]+)\s*\}"), r"\1"),
    (re.compile(r"(?<![A-Za-z])\\?sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\{?\s*(\w+)\s*\\over(?![a-z])\s*(\w+)\s*\}?"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{?\s*(\w+)\s*\\choose\s*(\w+)\s*\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(sin|cos|tan)\s*\^\s*\{?\s*-1\s*\}"), r"\\arc\1 "),
    (re.compile(r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<![A-Za-z])[AP]_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2} * \2!"),
    (re.compile(r"(?<![A-Za-z])C\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\langle(?![a-z])"), "⟨"),
    (re.compile(r"\\rangle(?![a-z])"), "⟩"),
]
ROWS = re.compile(r"\[\s*(\[[^][]*\](?:\s*,\s*\[[^][]*\])+)\s*\]")
ARRAY = re.compile(r"[\[(]\s*\\begin\{array\}\{[a-z|]*\}(.*?)\\end\{array\}\s*[\])]", re.DOTALL)
PLAIN = re.compile(r"[\w\s.,+/()-]*", re.ASCII)
CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑﹣－", "-"),
        **dict.fromkeys("⋅·∙✕✖×", "×"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "±": r"\pm ",
        "∛": r"\sqrt[3] ", "，": ",", "；": ";",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≈": r"\approx ", "∪": r"\cup ",
        "∈": r"\in ", "º": "°", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "λ": r"\lambda ", "％": "%", "ℓ": r"\ell ",
        **{char: rf" \frac{{{a}}}{{{b}}}" for char, a, b in (
            "½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅖25",
            "⅗35", "⅘45", "⅙16", "⅛18", "⅜38", "⅝58", "⅞78")},
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D},
    }
)  # fmt: skip
ROOT = re.compile(r"([√∛])\s*(\d+|[A-Za-z]|\([^()]*\))")
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
RAISED_RUN, LOWERED_RUN = re.compile(f"[{''.join(RAISED)}]+"), re.compile(f"[{''.join(LOWERED)}]+")


def one_alphabet(text: str) -> str:
    r"""Return a formula with characters such as −, √, １ in ASCII or LaTeX; ² becomes ^{2}."""
    if text.isascii():
        return text
    text = ROOT.sub(lambda m: f"\\sqrt{'[3]' * (m[1] == '∛')}{{{m[2].strip('()')}}}", text)
    text = RAISED_RUN.sub(lambda run: "^{" + "".join(map(RAISED.__getitem__, run[0])) + "}", text)
    text = LOWERED_RUN.sub(lambda run: "_{" + "".join(map(LOWERED.__getitem__, run[0])) + "}", text)
    return text.translate(CHARACTERS)


def _matrix(rows: re.Match[str]) -> str:
    """Return [[1, 2], [3, 4]] as a matrix."""
    cells = re.sub(r"\]\s*,\s*\[", r" \\\\ ", rows[1]).strip("[]").replace(",", " & ")
    return f"\\begin{{pmatrix}}{cells}\\end{{pmatrix}}"


def plain(text: str) -> str:
    r"""Return a formula in the normal spelling: - for −, \frac for \dfrac, 1,234 for 1{,}234."""
    text = one_alphabet(text)
    text = re.sub(r"(?<=\d)(?:\\,|,\s*\\!|\\!,)\s*(?=\d{3}(?!\d))", ",", text)
    text = SPACING.sub(" ", text)
    text = re.sub(r"\\textcircled\s*\{(\d)\}", lambda m: chr(0x245F + int(m[1])), text)
    text = re.sub(r"(?<=[①-⑳])\s*[、,]\s*(?=[①-⑳])", "", text)
    if not PLAIN.fullmatch(text) or re.search(r"sqrt|C\(", text):
        for pattern, simpler in REPLACED:
            text = pattern.sub(simpler, text)
    text = ROWS.sub(_matrix, text)
    text = ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text.strip())
    for mark in ("$$", "$"):
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)].strip()
    for opener, closer in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opener) and text.endswith(closer):
            text = text[2:-2].strip()
    return text


def squeezed(text: str) -> str:
    """Return a formula without blanks and braces that mean nothing."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", plain(text))
    text = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
    return re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)
