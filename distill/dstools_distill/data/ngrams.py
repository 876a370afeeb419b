"""Normalized tokens of texts, and their hashes; the same problem in other markup has the same.

Tokens are words, numbers and operators. Case, Unicode form, punctuation, markup, variants of LaTeX
and the spelling of numbers do not count: "What is $\\dfrac{1}{2}+ 1{,}000$?" and "what is one half
+ 1000.0" have the same tokens. A window is a run of tokens; its hash is a polynomial of their
hashes, modulo 2^64.
"""

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from dstools_distill.figures import SPELLED, in_figures, joined

NORMALISATION = 4  # raised with every change of tokens, words or tables: older indexes are useless
KEY = b"dstools n-grams 1"  # one key for all indexes, so that they can be searched together
MEMO = 1 << 17  # words, and tokens, whose hashes are cached; about 30 MiB each
LONG_WORD = 64  # characters; longer words are rarely seen twice, and are not cached
BASE = np.uint64(0x94D049BB133111EB)  # odd, and BASE - 1 has only one factor of 2

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # one token each
TOKEN = re.compile(
    rf"""
      [a-z]+
    | {SPELLED}\d+
    | (?<=frac)\d | (?<=frac\d)\d                # \frac12 is \frac{{1}}{{2}}
    | \d{{1,3}}(?=(?:\d{{3}}){{0,4}}(?!\d))      # by thousands: 1,000 is 1000
    | \d+
    | \\(?:begin|end)\{{[a-z*]{{0,30}}\}}
    | \\?[^\W\d_{CJK}]+
    | [{CJK}]
    | [<>]=? | != | [+/=^]
    | -(?=[\s{{}}$(]*(?:[\d\\.]|[b-hj-z](?![a-z])))  # a minus; others are hyphens or dashes
    | (?<![a-z]{{2}})-(?=\s*{SPELLED})
    """,
    re.VERBOSE,
)
STYLE = frozenset(  # ignored; also signs of multiplication, which are often left out
    r"""
    \left \right \middle \big \bigl \bigr \bigg \biggl \biggr \displaystyle \textstyle \scriptstyle
    \limits \nolimits \text \textbf \textit \textrm \texttt \textnormal \mathrm \mathbf \mathit
    \mathsf \mathtt \mathbb \mathcal \boldsymbol \bf \it \rm \emph \underline \operatorname \mbox
    \hbox \boxed \quad \qquad \hspace \vspace \enspace \thinspace \nonumber \notag \cdot \times \ast
    """.split()  # noqa: SIM905
)
SPELLINGS = {
    r"\dfrac": "frac", r"\tfrac": "frac", r"\cfrac": "frac",
    r"\leq": "le", r"\leqslant": "le", "<=": "le",
    r"\geq": "ge", r"\geqslant": "ge", ">=": "ge",
    r"\neq": "ne", "!=": "ne", r"\lt": "<", r"\gt": ">", r"\div": "/",
    r"\varphi": "phi", r"\varepsilon": "epsilon", r"\vartheta": "theta",
}  # fmt: skip
GREEK = [unicodedata.name(chr(code)).rsplit(" ", 1)[1].lower() for code in range(0x3B1, 0x3CA)]
SPELLINGS |= {chr(0x3B1 + n): name for n, name in enumerate(GREEK)}
SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010", "-"), "÷": "/", "\u2044": "/",
        "≤": " le ", "⩽": " le ", "≥": " ge ", "⩾": " ge ", "≠": " ne ", "√": " sqrt ",
        "∞": " infty ", "°": "^circ ", "∈": " in ", "∑": " sum ", "∏": " prod ", "∫": " int ",
        "∠": " angle ", "△": " triangle ", "π": " pi ",
        **dict.fromkeys((0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF, *range(0xFE00, 0xFE10))),
    }
)  # fmt: skip  # the last: invisible characters
MINUS = frozenset("-\u2212\u2013\u2010\ufe63\uff0d")
RAISED = re.compile("[⁰¹²³⁴-⁹]+")
VULGAR = re.compile("[¼-¾⅐-⅞]")


def tokens(text: str) -> list[str]:
    """Return the tokens of a text: words, numbers (in groups of three digits) and operators.

    A small number that is in words begins with SPELLED, and has the hash of its digits.
    """
    return [token for word in _split(text) for token in _tokens_of_word(word)]


def hashes(text: str) -> NDArray[np.uint64]:
    """Return the hash of each of `tokens(text)`, [n] uint64."""
    return np.frombuffer(b"".join(map(_words.__getitem__, _split(text))), "<u8")


def hashes_of(tokens: list[str]) -> NDArray[np.uint64]:
    """Return the hash of each of these tokens, [n] uint64."""
    return np.frombuffer(b"".join(map(_hash, tokens)), "<u8")


def are_words(hashed: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which tokens carry information, [n] bool: words and numbers, not letters or signs."""
    return ~SYMBOLS.holds(hashed)


def are_numbers(hashed: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which tokens are numbers of up to three digits, as groups of longer ones are too."""
    return NUMBERS.holds(hashed)


def signed(text: list[str]) -> list[str]:
    """Return tokens, each number joined to an operator after it: "3 + 4 - 2" is not "4 - 3 + 2"."""
    after = [*text[1:], ""]
    return [
        token + sign if sign and sign in "+-/^" and token.isdigit() else token
        for token, sign in zip(text, after, strict=True)
    ]


def windows(hashed: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return the hash of each window of `length` tokens, [max(n - length + 1, 0)] uint64."""
    count = len(hashed) - length + 1
    if count < 1:
        return hashed[:0]
    polynomials = hashed[:count].copy()
    for at in range(1, length):
        polynomials *= BASE
        polynomials += hashed[at : at + count]
    return polynomials


def whole(hashed: NDArray[np.uint64]) -> int:
    """Return the hash of the window that is the whole text; 0 for a text without tokens."""
    powers = np.full(len(hashed), BASE)
    powers[-1:] = 1
    return int(np.sum(hashed * np.multiply.accumulate(powers[::-1])[::-1]))


def shingles(hashed: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return the distinct windows, sorted; for a shorter text the hash of the whole."""
    return np.unique(windows(hashed, max(min(length, len(hashed)), 1)))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Return the similarity of two sets of shingles, |one & other| / |one | other|; 1 if empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 1.0


def _split(text: str) -> list[str]:
    """Return the words of a text, a separate minus joined to the word after it."""
    words = text.lower().split()
    if not MINUS.isdisjoint(words):
        for sign in sorted(MINUS.intersection(words)):
            words = " ".join(words).replace(f"{sign} ", sign).split()
    return joined(words)


def _tokens_of_word(word: str) -> list[str]:
    """Return the tokens of a word, which is anything between blanks."""
    if not word.isascii():
        word = VULGAR.sub(r" \g<0>", RAISED.sub(lambda raised: f"^{raised[0]}", word))
        word = unicodedata.normalize("NFKC", word).translate(SIGNS).lower()
    parts = TOKEN.findall(in_figures(word))
    if "\\" in word:
        parts = [part for part in parts if part not in STYLE and "{" not in part]  # \begin{...}
    return [SPELLINGS.get(part) or part.removeprefix("\\") for part in parts]


class _Words(dict[str, bytes]):
    """A cache from words to the hashes of their tokens; a hit costs no Python call."""

    def __missing__(self, word: str) -> bytes:
        hashed = b"".join(map(_hash, _tokens_of_word(word)))
        if len(word) <= LONG_WORD:
            if len(self) >= MEMO:
                self.clear()
            self[word] = hashed
        return hashed


_words = _Words()


@lru_cache(MEMO)
def _hash(token: str) -> bytes:
    return blake2b(token.removeprefix(SPELLED).encode(), digest_size=8, key=KEY).digest()


class Lookup:
    """Hashes with a bitmap of their first bits, which rules out most others at once."""

    def __init__(self, entries: NDArray[np.uint64]) -> None:
        """entries: sorted; a hash may be there several times."""
        self._hashes = entries
        bits = min(max((16 * len(entries)).bit_length(), 12), 26)
        self._shift = np.uint64(64 - bits)
        self._bitmap = np.zeros(1 << bits, bool)
        self._bitmap[entries >> self._shift] = True

    def matches(self, hashed: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return positions of hashes that are among the entries, and numbers of these entries."""
        at = np.flatnonzero(self._bitmap[hashed >> self._shift])
        low = np.searchsorted(self._hashes, hashed[at], "left")
        counts = np.searchsorted(self._hashes, hashed[at], "right") - low
        before = np.cumsum(counts) - counts
        entries = np.arange(counts.sum()) + np.repeat(low - before, counts)
        return np.repeat(at, counts), entries

    def holds(self, hashed: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which hashes are among the entries, [n] bool."""
        held = np.zeros(len(hashed), bool)
        held[self.matches(hashed)[0]] = True
        return held


def _lookup(tokens: list[str]) -> Lookup:
    return Lookup(np.sort(hashes_of(tokens)))


SYMBOLS = _lookup(  # tokens that are not words: alone they tell no text from another
    [*"abcdefghijklmnopqrstuvwxyz+-/=^<>", "le", "ge", "ne", "frac", "sqrt", *GREEK]
)
NUMBERS = _lookup([f"{n:0{digits}}" for digits in (1, 2, 3) for n in range(10**digits)])
