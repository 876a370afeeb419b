"""Numbers in one spelling: "twelve thousand" and "12,000.0" as 12000, "0.50" and "one half" as 1/2.

The numbers up to twelve are marked where they are spelled: as "one" and "two" are often no amounts,
a comparison of texts treats them as words. Ordinals, "a half" and "dozen" are left alone, and so is
a decimal of three places, which may be German for thousands, as in 12.000.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

SPELLED = "\x01"  # before a number up to MOST that is in words
MOST = 12
NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
VALUES = {word: value for value, word in enumerate(NAMES.split())}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth".split()  # noqa: SIM905
PARTS = {word: parts for parts, word in enumerate(ORDINALS, start=3)} | {"half": 2, "quarter": 4}
SEVERAL = {f"{word}s": parts for word, parts in PARTS.items()} | {"halves": 2}
SMALL_PARTS = 10  # greatest denominator of decimals that are also written as fractions

COUNT = NAMES.replace(" ", "|")
SCALE = "|".join(SCALES)
WORD = f"(?:{COUNT}|{'|'.join(TENS)}|{SCALE})"
FIGURE = r"(?<![\d.,])\d[\d,]*(?:\.\d+)?"
GAP = r"(?:\s+|-)"
VALUES |= SCALES | {word: 10 * n for n, word in enumerate(TENS, start=2)} | {"a": 1}

AND_A_HALF = re.compile(
    rf"(?<![\w\\.,-])((?:(?:{'|'.join(TENS)}){GAP})?(?:{COUNT})|{'|'.join(TENS)}|\d+)"
    rf"{GAP}and{GAP}(?:a|one){GAP}half\b"
)
FRACTION = re.compile(
    rf"(?<![\w\\])(?:one{GAP}(?P<part>{'|'.join(PARTS)})"
    rf"|(?P<count>{COUNT}){GAP}(?P<parts>{'|'.join(SEVERAL)}))(?!\w)"
)
NUMBER = re.compile(
    rf"(?<![\w\\])(?:(?:a|{FIGURE}){GAP}(?:{SCALE})|{WORD})(?:{GAP}(?:and{GAP})?{WORD})*"
    rf"(?!\w|-(?:first|second|{'|'.join(ORDINALS)})\b)"
)
LATEX = re.compile(r"\\[dtc]?frac\s*(?:(\d)|\{\s*(\d+)\s*\})\s*(?:(\d)|\{\s*(\d+)\s*\})")
DECIMAL = re.compile(
    r"(?:(?<![\d.])(?P<whole>\d{1,3}(?:,\d{3})+|\d+)|(?<![\w.)}\]]))\.(?P<places>\d+)(?!\.?\d)"
)
REACH = 3  # words from one of these to the others of a number: "two and a half"
BESIDE = frozenset(TENS) | {
    f"{word}{mark}"
    for word in (*SCALES, *PARTS, *SEVERAL)
    for mark in ("", ".", ",", ";", ":", "?", "!", ")", "$")
}


def joined(words: list[str]) -> list[str]:
    """Return the words of a text, with numbers of several words in figures."""
    parts, start, end = list[str](), 0, 0  # of words that may be of one number
    for at in [at for at, word in enumerate(words) if word in BESIDE]:
        if at - REACH > end:
            parts += in_figures(" ".join(words[start:end])).split() + words[end : at - REACH]
            start = at - REACH
        end = at + REACH + 1
    return parts + in_figures(" ".join(words[start:end])).split() + words[end:]


def in_figures(text: str) -> str:
    """Return a text in lower case with its numbers in figures, decimals without zeros at the end.

    Decimals whose denominator is ten at most become fractions: 2.50 is "2 1/2".
    """
    text = AND_A_HALF.sub(lambda match: f"{_value(re.split(GAP, match[1]))}.5", text)
    text = FRACTION.sub(_fraction, text)
    text = NUMBER.sub(lambda match: " ".join(_numbers(re.split(GAP, match[0]))), text)
    if "frac" in text:
        text = LATEX.sub(lambda match: " {}/{} ".format(*filter(None, match.groups())), text)
    return DECIMAL.sub(_decimal, text) if "." in text else text


def _fraction(match: re.Match[str]) -> str:
    if match["part"]:
        return f"1/{PARTS[match['part']]}"
    return f"{VALUES[match['count']]}/{SEVERAL[match['parts']]}"


def _numbers(words: list[str]) -> Iterator[str]:
    """Yield the numbers that words spell one after another, each of as many words as can be."""
    number, between = [words[0]], ""
    for word in words[1:]:
        if word == "and":
            between = word
        elif (not between or number[-1] in SCALES) and _value([*number, word]) is not None:
            number, between = [*number, word], ""
        else:
            yield from filter(None, (_figures(number), between))
            number, between = [word], ""
    yield _figures(number)


def _figures(words: list[str]) -> str:
    value = _value(words)
    if value is None or value.denominator > 1:
        return " ".join(words)
    return f"{SPELLED if value <= MOST else ''}{value}"


def _value(words: list[str]) -> Fraction | None:
    """Return the value of words that spell one number, of which the first may be in figures."""
    total, group, above = Fraction(0), Fraction(0), Fraction(10**15)
    for n, word in enumerate(words):
        value = Fraction(VALUES[word] if word in VALUES else word.replace(",", ""))
        if word in SCALES:
            if not 0 < group < value < above:
                return None
            group *= value
            if word != "hundred":
                total, group, above = total + group, Fraction(0), value
        elif n == 0 or value < _room(total, group):
            group += value
        else:
            return None
    return total + group


def _room(total: Fraction, group: Fraction) -> int:
    """Return the least number that cannot be added after tens, hundreds or thousands."""
    if group % 100 == 0 and total + group > 0:
        return 100
    return 10 if group % 100 in range(20, 100, 10) else 0


def _decimal(match: re.Match[str]) -> str:
    whole, places = match["whole"] or "0", match["places"]
    if len(places) == 3 and len(whole) <= 3 and whole != "0":
        return match[0]
    part = Fraction(int(places), 10 ** len(places))
    if not part:
        return whole
    if part.denominator > SMALL_PARTS:
        return f"{whole}.{places.rstrip('0')}"
    return f"{part}" if whole == "0" else f"{whole} {part}"
