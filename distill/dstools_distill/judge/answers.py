r"""Compares an answer with the gold, by the type of answer that was asked for.

| type | right is |
|---|---|
| integer | the same integer, written without needless zeros: 088 is another text than 88 |
| number, math | the same value, formula, interval, matrix, list of solutions |
| set, tuple | the same items, whatever the brackets; a tuple in its order |
| choice | the same letter or letters: C, (C), C) 42 |
| string | the same text, give or take white space and quotes; the same date or time |
| auto | what the gold looks like |

Text, then rational numbers, decide alone. For the rest two checkers must agree that know nothing of each
other, `numeric` and math-verify; else nobody can tell.
"""

import re
import unicodedata
from datetime import date
from typing import NamedTuple

from dstools_distill.judge.extract import TAKEN_BACK, Found, final_answer, stripped
from dstools_distill.judge.formula import Node, read
from dstools_distill.judge.numeric import equal
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.spelling import one_alphabet, plain
from dstools_distill.recipe.settings import AnswerType


class Ruling(NamedTuple):
    """What a comparison came to."""

    verdict: str  # "correct", "incorrect" or "unverifiable"
    reason: str  # a stable word, or "word: detail"
    checkers: tuple[str, ...] = ()


INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,3999})")
DIGITS = re.compile(r"[+-]?[0-9]{1,4000}")
EXACT = ("exact",)
RIGHT, NO_GOLD = Ruling("correct", "equal", EXACT), Ruling("unverifiable", "no-gold")


def compare(text: str, gold: str | None, kind: AnswerType, referee: Referee) -> Ruling:
    """Rule on the answer that stands in `text`, what a model wrote after its reasoning."""
    if gold is None or kind == "none":
        return NO_GOLD
    wanted, said = gold.strip(), text.strip()
    if kind in ("integer", "auto") and INTEGER.fullmatch(wanted) and DIGITS.fullmatch(said):
        return integers(said, wanted)
    if "\\boxed" in wanted or "####" in wanted:
        wanted = final_answer(wanted).text
    wanted = stripped(wanted) if kind != "string" else wanted
    if not wanted or not _is_balanced(wanted):
        return Ruling("unverifiable", "gold-not-read")
    if kind == "auto":
        kind = looks_like(wanted)
    if kind == "string" and same_text(said, wanted):
        return RIGHT
    if kind == "choice" and "\n" not in said and letters(said):
        return choices(said, wanted)
    found = final_answer(said)
    if found.problem == "several-answers" and kind in ("set", "math"):
        found = _joined(found, wanted, kind)
    if found.problem == "no-answer" and said and "\\boxed{}" not in said:
        return Ruling("unverifiable", "answer-not-found")
    if found.problem:
        return Ruling("incorrect", found.problem)
    match kind:
        case "choice":
            return choices(found.text, wanted)
        case "string":
            return strings(found.text, wanted)
        case "integer" if INTEGER.fullmatch(wanted) and DIGITS.fullmatch(found.text):
            return integers(found.text, wanted)
    return formulas(found.text, wanted, kind, referee)


def looks_like(gold: str) -> AnswerType:
    """Return the type of a gold that does not say."""
    inner = _without_text(gold)
    if INTEGER.fullmatch(inner):
        return "integer"
    if re.fullmatch(r"\(?[A-J]\)?", inner):
        return "choice"
    is_words = (
        re.fullmatch(r"[^\W\d_][^\W\d_' -]*(?: [^\W\d_' -]+)*", inner)
        and inner.lower() not in MATHS
    )
    if inner != gold or (is_words and (len(inner) > 2 or inner.lower() in ("no", "ok"))):
        return "string" if read(inner) is None or is_words else "math"
    if HEXADECIMAL.fullmatch(gold) or _moment(gold) or "'" in gold or '"' in gold:
        return "string"
    return "math"


MATHS = ("infinity", "inf")
HEXADECIMAL = re.compile(r"0x[0-9a-f]{1,64}", re.IGNORECASE)


def _is_balanced(text: str) -> bool:
    return text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


def _joined(found: Found, gold: str, kind: AnswerType) -> Found:
    """Return several boxed answers as a list, where a list is asked for."""
    wanted = read(gold)
    is_list = wanted is not None and wanted.op == "group" and wanted.name in ("", "{}")
    return Found(", ".join(found.parts)) if kind == "set" or is_list else found


# --------------------------------------------------------------------------------------- integers


def integers(answer: str, gold: str) -> Ruling:
    """Compare two runs of digits, the gold without needless zeros."""
    if answer == gold:
        return RIGHT
    value = re.sub(r"^(?:\+|(-))?0*(?=[0-9])", r"\1", answer)
    if value == gold or (value == "-0" and gold == "0"):
        return Ruling("incorrect", f"not-canonical: {answer[:40]}", EXACT)
    return Ruling("incorrect", f"differs: {answer[:40]}", EXACT)


# --------------------------------------------------------------------------------------- formulas


def formulas(answer: str, gold: str, kind: AnswerType, referee: Referee) -> Ruling:
    """Compare two formulas by their text, exactly, or by two checkers that agree."""
    if _squeezed(answer) == _squeezed(gold):
        return RIGHT
    wanted, given = read(gold), read(answer)
    if wanted is None or given is None:
        return Ruling("unverifiable", "gold-not-read" if wanted is None else "answer-not-read")
    ordered = {"set": False, "tuple": True}.get(kind)
    if ordered is not None:
        wanted, given = _as_group(wanted), _as_group(given)
    found = equal(given, wanted, ordered)
    if found is None:
        return Ruling("unverifiable", "not-comparable")
    if found.is_exact:
        return RIGHT if found.is_equal else Ruling("incorrect", f"differs: {answer[:40]}", EXACT)
    second = referee.math(one_alphabet(answer), one_alphabet(gold))
    both = ("numeric", "math-verify")
    if second is None or isinstance(second, str):
        return Ruling("unverifiable", second or "math-verify-cannot-read", both)
    if second != found.is_equal:
        return Ruling("unverifiable", f"checkers-disagree: {both[second]} says equal", both)
    if found.is_equal:
        return Ruling("correct", "equal", both)
    return Ruling("incorrect", f"differs: {answer[:40]}", both)


def _squeezed(text: str) -> str:
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", plain(text))


def _as_group(node: Node) -> Node:
    return node if node.op in ("group", "union", "relation") else Node("group", (node,))


# ------------------------------------------------------------------------------- choices, strings


def choices(answer: str, gold: str) -> Ruling:
    """Compare the letters of two choices."""
    wanted, given = letters(gold), letters(answer)
    if not wanted or not given:
        return Ruling("unverifiable", "answer-not-read" if wanted else "gold-not-read")
    if wanted == given:
        return Ruling("correct", "equal", EXACT)
    return Ruling("incorrect", f"differs: {''.join(sorted(given))}", EXACT)


def letters(text: str) -> frozenset[str]:
    """Return the letters that a text chooses; none where it is no choice: C, (c), Option C, C) 42, A and C."""
    text = STYLED.sub(r"\1", text).replace("\\ ", " ")
    text = re.sub(r"^(?:option|choice|answer)s?\s+", "", text.strip("*_ "), flags=re.IGNORECASE)
    if named := re.match(r"\(?([A-Z])\s*[).:]\s*(.+)", text, re.DOTALL):
        is_alone = not re.search(r"\b[B-J]\b", named[2]) and not TAKEN_BACK.search(named[2])
        return frozenset(named[1] if is_alone else "")
    parts = re.split(r"\s*(?:,|;|&|\bor\b|\band\b)\s*", text)
    found = [re.fullmatch(r"\(?([A-Za-z])[).]?", part.strip()) for part in parts if part.strip()]
    return frozenset(each[1].upper() for each in found if each) if all(found) else frozenset()


STYLED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}")


def strings(answer: str, gold: str) -> Ruling:
    """Compare two texts."""
    if same_text(answer, gold):
        return RIGHT
    return Ruling("incorrect", f"differs: {answer[:40]}", EXACT)


def same_text(answer: str, gold: str) -> bool:
    """Tell whether two texts say the same; case counts in words of one or two letters, such as CO and Co."""
    one, other = _text(answer), _text(gold)
    if one == other:
        return bool(one)
    if all(len(word) > 2 for word in re.findall(r"[^\W\d_]+", other)):
        one, other = one.casefold(), other.casefold()
    if HEXADECIMAL.fullmatch(one) and HEXADECIMAL.fullmatch(other):
        return int(one, 16) == int(other, 16)
    first, second = _moment(one), _moment(other)
    return bool(other) and (one == other or (first is not None and first == second))


def _text(text: str) -> str:
    """Return a text without what carries no meaning: style commands, quotes' forms, runs of white space."""
    text = STYLED.sub(r"\1", stripped(_without_text(text)))
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[’‘`\"“”]", "'", text)  # noqa: RUF001
    text = re.sub(r"\s*,\s*", ", ", text)
    return " ".join(text.split()).strip("' ").removesuffix(".")


def _without_text(text: str) -> str:
    r"""Return what stands in \text{...}."""
    text = text.strip()
    while found := STYLED.fullmatch(text):
        text = found[1].strip()
    return text


MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905
CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?")
DAY_FIRST = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?(?: of)? ([a-z]{3,9})\.?,? (\d{4})")
MONTH_FIRST = re.compile(r"([a-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})")
ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")


def _moment(text: str) -> date | tuple[int, int, int, str] | None:
    """Return the date or the time of day that a text is; 03/04/2024 is none: nobody knows which."""
    text = text.strip().lower()
    if clock := CLOCK.fullmatch(text):
        hour = int(clock[1])
        return (hour, int(clock[2]), int(clock[3] or 0), clock[4] or "") if hour < 24 else None
    if found := ISO.fullmatch(text):
        year, month, day = found[1], int(found[2]), found[3]
    elif found := DAY_FIRST.fullmatch(text):
        day, month, year = found[1], _month(found[2]), found[3]
    elif found := MONTH_FIRST.fullmatch(text):
        month, day, year = _month(found[1]), found[2], found[3]
    else:
        return None
    try:
        return date(int(year), month, int(day))
    except ValueError:
        return None


def _month(name: str) -> int:
    return MONTHS.index(name[:3]) + 1 if name[:3] in MONTHS else 0
