"""Texts as hashes of what they say, so that the same problem is found in another dress.

Words, numbers and operators are the tokens. Case, Unicode form, punctuation, markup and LaTeX's spacing,
style and spelling variants are none: "What is $\\dfrac{1}{2}+ 1{,}000$?" and "what is \\frac12 + 1000" have
the same. A window is a run of tokens; its hash is a polynomial of theirs, modulo 2^64.
"""

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

NORMALISATION = 1  # one up with every change of what a token is: hashes of before mean nothing then
KEY = b"dstools n-grams 1"  # one key for all, so that any number of indexes is searched at once
MEMO = 1 << 17  # words, and tokens; some 30 MiB each
LONG_WORD = 64  # letters: not met twice, or Chinese, and not to be remembered
BASE = np.uint64(0x94D049BB133111EB)  # odd, and BASE - 1 has but one factor of 2

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # no blanks: by letter
TOKEN = re.compile(
    rf"""
      [a-z]+
    | (?<=frac)\d | (?<=frac\d)\d                # \frac12 is \frac{{1}}{{2}}
    | \d{{1,3}}(?=(?:\d{{3}}){{0,4}}(?!\d))      # by thousands: 1,000 is 1000
    | \d+
    | \\(?:begin|end)\{{[a-z*]{{0,30}}\}}
    | \\?[^\W\d_{CJK}]+
    | [{CJK}]
    | [<>]=? | != | [+/=^]
    | -(?=[\s{{}}$(]*(?:[\d\\.]|[b-hj-z](?![a-z])))  # a minus; any other is a hyphen or a dash
    """,
    re.VERBOSE,
)
STYLE = frozenset(  # a product is often written without a sign, so the signs are none of its tokens
    r"""
    \left \right \middle \big \bigl \bigr \bigg \biggl \biggr \displaystyle \textstyle \scriptstyle \limits
    \nolimits \text \textbf \textit \textrm \texttt \textnormal \mathrm \mathbf \mathit \mathsf \mathtt
    \mathbb \mathcal \boldsymbol \bf \it \rm \emph \underline \operatorname \mbox \hbox \boxed \quad \qquad
    \hspace \vspace \enspace \thinspace \nonumber \notag \cdot \times \ast
    """.split()  # noqa: SIM905
)
SPELLINGS = {
    r"\dfrac": "frac", r"\tfrac": "frac", r"\cfrac": "frac", r"\leq": "le", r"\leqslant": "le", "<=": "le",
    r"\geq": "ge", r"\geqslant": "ge", ">=": "ge", r"\neq": "ne", "!=": "ne", r"\lt": "<", r"\gt": ">",
    r"\div": "/", r"\varphi": "phi", r"\varepsilon": "epsilon", r"\vartheta": "theta",
} | {
    chr(code): unicodedata.name(chr(code)).rsplit(" ", 1)[1].lower()  # a Greek letter by itself
    for code in range(0x3B1, 0x3CA)
}  # fmt: skip
SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010", "-"), "÷": "/", "\u2044": "/", "≤": " le ", "⩽": " le ",
        "≥": " ge ", "⩾": " ge ", "≠": " ne ", "√": " sqrt ", "∞": " infty ", "°": "^circ ", "∈": " in ",
        "∑": " sum ", "∏": " prod ", "∫": " int ", "∠": " angle ", "△": " triangle ", "π": " pi ",
        **dict.fromkeys((0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF, *range(0xFE00, 0xFE10))),
    }
)  # fmt: skip  # the last: characters that are not seen
MINUS = frozenset("-\u2212\u2013\u2010\ufe63\uff0d")
RAISED = re.compile("[⁰¹²³⁴-⁹]+")


def tokens(text: str) -> list[str]:
    """Return what a text says: words, numbers (in groups of three digits) and operators."""
    return [said for word in _split(text) for said in _said(word)]


def hashes(text: str) -> NDArray[np.uint64]:
    """Return the hash of each of `tokens(text)`, [n] uint64."""
    return np.frombuffer(b"".join(map(_words.__getitem__, _split(text))), "<u8")


def hashes_of(said: list[str]) -> NDArray[np.uint64]:
    """Return the hash of each of these tokens, [n] uint64."""
    return np.frombuffer(b"".join(map(_hash, said)), "<u8")


def windows(hashed: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return the hash of each window of `length` tokens, [n - length + 1] uint64; empty where n is less."""
    count = len(hashed) - length + 1
    if count < 1:
        return hashed[:0]
    found = hashed[:count].copy()
    for at in range(1, length):
        found *= BASE
        found += hashed[at : at + count]
    return found


def whole(hashed: NDArray[np.uint64]) -> int:
    """Return the hash of the one window that is as long as the text; of a text without tokens 0."""
    powers = np.full(len(hashed), BASE)
    powers[-1:] = 1
    return int(np.sum(hashed * np.multiply.accumulate(powers[::-1])[::-1]))


def shingles(hashed: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return the distinct windows, sorted; of a shorter text itself."""
    return np.unique(windows(hashed, max(min(length, len(hashed)), 1)))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Return the share that two sets of shingles have in common, |one & other| / |one | other|."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 1.0


def _split(text: str) -> list[str]:
    """Return the words of a text; a minus by itself joins the number behind it."""
    words = text.lower().split()
    if not MINUS.isdisjoint(words):
        for sign in sorted(MINUS.intersection(words)):
            words = " ".join(words).replace(f"{sign} ", sign).split()
    return words


def _said(word: str) -> list[str]:
    """Return the tokens of a word, which is anything between blanks."""
    if not word.isascii():
        word = RAISED.sub(lambda raised: f"^{raised[0]}", word)
        word = unicodedata.normalize("NFKC", word).translate(SIGNS).lower()
    found = TOKEN.findall(word)
    if "\\" in word:
        found = [token for token in found if token not in STYLE and "{" not in token]  # \begin{...}
    return [SPELLINGS.get(token) or token.removeprefix("\\") for token in found]


class _Words(dict[str, bytes]):
    """The hashes of each word's tokens. A dict with a hook: a hit costs no call of a function."""

    def __missing__(self, word: str) -> bytes:
        found = b"".join(map(_hash, _said(word)))
        if len(word) <= LONG_WORD:
            if len(self) >= MEMO:
                self.clear()
            self[word] = found
        return found


_words = _Words()


@lru_cache(MEMO)
def _hash(token: str) -> bytes:
    return blake2b(token.encode(), digest_size=8, key=KEY).digest()
