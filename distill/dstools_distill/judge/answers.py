# ruff: noqa: RUF001
r"""Comparison of an answer with the gold answer, by the type of answer that was asked for.

| type | correct is |
|---|---|
| integer | the same integer without leading zeros: 088 is not 88 |
| number, math | the same value, formula, interval, matrix or list of solutions |
| set, tuple | the same items, whatever the brackets; of a tuple in the same order |
| choice | the same letter or letters: C, (C), C) 42 |
| string | the same text, apart from white space and quotes; the same date or time |
| auto | as the type that the gold looks like |

Equal texts and exact values decide alone. Formulas are read by math-verify and compared at many
digits; what neither can read is unverifiable.
"""

import re
import unicodedata
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from dstools_distill.judge.equality import Comparison
from dstools_distill.judge.extract import ANNOUNCED, final_answer, stripped
from dstools_distill.judge.reader import read
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.spelling import SPACING, STYLED, squeezed
from dstools_distill.recipe.settings import AnswerType


class Ruling(NamedTuple):
    """The result of a comparison."""

    verdict: str  # "correct", "incorrect" or "unverifiable"
    reason: str  # a stable word, or "word: detail"
    checkers: tuple[str, ...] = ()


INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,3999})")
DIGITS = re.compile(r"[+-]?[0-9]{1,4000}")
EXACT = ("exact",)
LIBRARY = ("math-verify",)
EQUAL = Ruling("correct", "equal", EXACT)
NO_ANSWER = Ruling("incorrect", "no-answer")
NO_GOLD, GOLD_NOT_READ = (Ruling("unverifiable", why) for why in ("no-gold", "gold-not-read"))


def compare(text: str, gold: str | None, kind: AnswerType, referee: Referee) -> Ruling:
    """Rule on the answer in `text`, which is what a model wrote after its reasoning."""
    if gold is None or kind == "none":
        return NO_GOLD
    text, wanted = text.strip(), _wanted(gold.strip(), kind)
    if not wanted:
        return GOLD_NOT_READ
    if kind == "auto":
        kind = looks_like(wanted)
    if ruling := _plainly(text, wanted, kind):
        return ruling
    answer, problem, parts = final_answer(text)
    if not problem:
        return _ruling(answer, wanted, kind, referee)
    if parts and kind in ("set", "math", "string"):
        together = _ruling(", ".join(parts), wanted, kind, referee)
        if together.verdict == "correct":
            return together
    if problem == "several-answers":
        is_last_wrong = _ruling(parts[-1], wanted, kind, referee).verdict == "incorrect"
        is_known = is_last_wrong and "," not in wanted
        return Ruling("incorrect" if is_known else "unverifiable", problem)
    if problem == "no-answer":
        is_empty = not text or "\\boxed{}" in text
        return NO_ANSWER if is_empty else Ruling("unverifiable", "answer-not-found")
    return Ruling("unverifiable", problem)


def _wanted(gold: str, kind: AnswerType) -> str:
    """Return the answer in a gold, which may be a solution; "" if it cannot be read."""
    if "\\boxed" in gold or ANNOUNCED.search(gold):
        gold = final_answer(gold).text or ("" if "\\boxed" in gold else gold)
    gold = stripped(gold) if kind != "string" else gold
    braces = re.sub(r"\\.|[^{}]", "", gold)
    return gold if braces.count("{") == braces.count("}") else ""


def _plainly(text: str, gold: str, kind: AnswerType) -> Ruling | None:
    """Rule on digits, letters or words; None where the text is none, or other words."""
    if kind == "integer":
        return integers(text, gold)
    if kind == "choice" and not SEVERAL.search(text) and (given := letters(text)):
        if not (wanted := letters(gold)):
            return GOLD_NOT_READ
        options = [_text(LABEL.sub("", chosen)).casefold() for chosen in (text, gold)]
        if wanted == given and len(given) == 1 and all(options) and options[0] != options[1]:
            return Ruling("unverifiable", "other-words", EXACT)
        return EQUAL if wanted == given else _differs("".join(sorted(given)), EXACT)
    is_text = (kind == "string" or _text(gold) in MEANT) and not SEVERAL.search(text)
    if is_text and same_text(text, gold):
        return EQUAL
    return EQUAL if _compound(text) == _compound(gold) != "" else None


def _ruling(answer: str, gold: str, kind: AnswerType, referee: Referee) -> Ruling:
    """Rule on an answer by its digits, letters or words, or as a formula."""
    if ruling := _plainly(answer, gold, kind):
        return ruling
    if kind == "string":
        return _other_words(answer, gold)
    if kind == "choice":
        gold = _unstyled(gold)
        if not (label := LABELLED.match(gold)):
            return Ruling("unverifiable", "answer-not-read")
        gold, kind = gold[label.end() - 1 :], "math"
    return formulas(answer, gold, kind, referee)


def looks_like(gold: str) -> AnswerType:
    """Return the answer type that a gold looks like."""
    inner = _unstyled(gold) if STYLED.fullmatch(gold) else gold
    if INTEGER.fullmatch(inner):
        return "integer"
    if LABELLED.match(_unstyled(gold)) or LETTERS.fullmatch(inner):
        return "choice"
    is_words = WORDS.fullmatch(inner) and (len(inner) > 2 or inner.lower() in ("no", "ok"))
    is_quoted = re.search(r"(?<![\w)}])['\"]", gold)  # f' is a function
    return "string" if is_words or is_quoted or _moment(gold) else "math"


SEVERAL = re.compile(r"\n|\w{2}[.!?;]\s")  # sentences
LETTERS = re.compile(r"\(?[A-J]\)?|(?=[A-J]{2,6}$)A?B?C?D?E?F?G?H?I?J?")
WORDS = re.compile(r"(?!inf(?:inity)?$)[^\W\d_][^\W\d_' -]*(?: [^\W\d_' -]+)*", re.IGNORECASE)
LABEL = re.compile(r"(?i)^\W*(?:(?:option|choice|answer)\s+)?[A-J]\b\W*")
LABELLED = re.compile(r"\s*(?:\([A-J]\)[\s\\]*|[A-J][.)]\s+)\S")


# --------------------------------------------------------------------------------------- integers


def integers(answer: str, gold: str) -> Ruling | None:
    """Compare two runs of digits, the gold without leading zeros; return None for other texts."""
    if not (INTEGER.fullmatch(gold) and DIGITS.fullmatch(answer)):
        return None
    if int(answer) != int(gold):
        return _differs(answer, EXACT)
    is_plain = answer.removeprefix("+") == gold
    return EQUAL if is_plain else Ruling("incorrect", f"not-canonical: {answer[:40]}", EXACT)


def _differs(answer: str, checkers: tuple[str, ...]) -> Ruling:
    return Ruling("incorrect", f"differs: {answer[:40]}", checkers)


# --------------------------------------------------------------------------------------- formulas


def formulas(answer: str, gold: str, kind: AnswerType, referee: Referee) -> Ruling:
    """Compare two formulas by text, by exact arithmetic, or by math-verify's trees."""
    if squeezed(answer) == squeezed(gold):
        return EQUAL
    wanted, given = read(gold), read(answer)
    if wanted is None or given is None:
        return Ruling("unverifiable", "gold-not-read" if wanted is None else "answer-not-read")
    if brackets := {"set": "{}", "tuple": "()"}.get(kind):
        wanted, given = (
            v._replace(text=brackets) if v.kind == "items" else v for v in (wanted, given)
        )
    comparison = Comparison(referee)
    equal = comparison.same(given, wanted)
    checkers = LIBRARY if comparison.asked else EXACT
    if equal is None:
        return Ruling("unverifiable", comparison.problem or "not-comparable", checkers)
    return Ruling("correct", "equal", checkers) if equal else _differs(answer, checkers)


def _compound(text: str) -> str:
    """Return a formula of chemistry without marks, H2SO4 or SO4^2-; "" for other text."""
    text = re.sub(r"\\(?:ce|text)(?![a-z])|[{}]|_(?=\{?\d)|\^(?=\{?[+-])", "", squeezed(text))
    return text if COMPOUND.fullmatch(text) else ""


ATOM = r"(?:\(?[A-Z][a-z]?\d*(?:\)\d*)?)"
COMPOUND = re.compile(rf"{ATOM}{{2,}}|{ATOM}+(?:\^\d)?[+-]")


# ------------------------------------------------------------------------------- choices, strings


def letters(text: str) -> frozenset[str]:
    """Return the letters that a text chooses; an empty set if it is not a choice.

    Choices: C, (c), Option C, C) 42, A and C.
    """
    text = re.sub(r"(?i)^(?:option|choice|answer)s?\s+", "", _unstyled(text).strip("*_ "))
    if re.fullmatch(r"[A-J]{2,}", text):
        return frozenset(text)
    if named := NAMED.match(text):
        is_alone = not re.search(r"^is\b|\b[B-J]\b|\bis (?:wrong|false)", named[2])
        return frozenset(named[1] if is_alone else "")
    parts = re.split(r"\s*(?:,|;|&|\bor\b|\band\b)\s*", text)
    matches = [re.fullmatch(r"\(?([A-Za-z])[).]?", part.strip()) for part in parts if part.strip()]
    return frozenset(m[1].upper() for m in matches if m) if all(matches) else frozenset()


NAMED = re.compile(  # C) 42, C, as it is even
    r"\(?([A-Z])(?:\)?\s*[,，;—–-]*\s*(?:(?:because|since|as|not|is (?:right|correct))\b|因为)"
    r"|\s*(?:[).:]|,(?=\s*(?!and|or)[^\W\d]{2}))\s*(?=.))(.*)",
    re.DOTALL,
)


def _other_words(answer: str, gold: str) -> Ruling:
    r"""Rule on another text: unverifiable in another script, or with more or fewer words.

    Unverifiable are symbols, such as \emptyset or T for True, too, figures for words and words of
    one meaning.
    """
    if gold.isascii() and not answer.isascii():
        return Ruling("unverifiable", "another-script", EXACT)
    one, other = (
        {word.removesuffix("s") for word in _text(text).casefold().split()}
        for text in (answer, gold)
    )
    symbol = re.sub(r"\\[A-Za-z]+", "", _unstyled(answer)).strip().casefold()
    initials = "".join(word[0] for word in _text(gold).casefold().split())  # DNE
    # "no solutions", "there is no solution"
    is_part = one <= other or other <= one or _text(gold) in _text(answer)
    is_short = symbol.startswith(initials) or gold.casefold().startswith(symbol)
    meanings = [ALIKE.get(text, text) for text in (symbol, _text(gold).casefold())]
    has_figures = re.search(r"\d", answer + gold)
    if is_part or is_short or meanings[0] == meanings[1] or has_figures:
        return Ruling("unverifiable", "other-words", EXACT)
    return _differs(answer, EXACT)


def same_text(answer: str, gold: str) -> bool:
    """Return whether two texts say the same.

    If the gold has words of one or two letters, case counts: CO is not Co.
    """
    one, other = _text(answer), _text(gold)
    if one == other:
        return bool(one)
    word = re.match(r"(\w+)\s*[,—–.;:]", one)
    if word and YES_NO.fullmatch(other) and len(YES_NO.findall(one)) == 1:
        one = word[1]
    if all(
        len(word) > 2 or word.islower() or word == "No" for word in re.findall(r"[^\W\d_]+", other)
    ):
        one, other = (
            SUBJECT.sub("", NO_PLURAL.sub(r"\1", words.casefold())) for words in (one, other)
        )
        one, other = (MEANT.get(words, words) for words in (one, other))
    first, second = _moment(one), _moment(other)
    return bool(other) and (one == other or (first is not None and first == second))


ALIKE = {
    word: words[0]
    for words in (("yes", "true"), ("no", "false"), ("none", "no solution", "nothing", "undefined"))
    for word in words
}
# no solutions: no solution; but Mars is not Mar
NO_PLURAL = re.compile(r"(\b(?:no|infinitely many) \w{4,})s$")
SUBJECT = re.compile(  # the limit does not exist: does not exist
    r"^(?:(?:the|this) \w+|it|there)(?: (?:is|are|has|have))? (?=does not|no |infinitely)"
)
MEANT = {
    **dict.fromkeys(("dne", "d.n.e"), "does not exist"),
    **dict.fromkeys(("\\emptyset", "\\varnothing", "∅", "\\{\\}"), "no solution"),
    "infinitely many": "infinitely many solution",
}
# "no" before a word is not an answer: yes, there is no other
YES_NO = re.compile(r"(?i)\b(?:yes|no(?!\s+\w)|true|false|but|unless|oui|non|ja|nein|sí|да|нет)\b")


def _text(text: str) -> str:
    """Return a text without style commands, with one kind of quote and single blanks."""
    text = unicodedata.normalize("NFC", _unstyled(stripped(text)))
    text = re.sub(r"[’‘`\"“”]", "'", text)
    text = re.sub(r"\s*,\s*", ", ", text)
    text = re.sub(r"(?<=[①-⑳])[、, ]+(?=[①-⑳])", "", re.sub(r"^(?:an?|the) ", "", text.strip("' ")))
    return " ".join(text.split()).strip("' ").removesuffix(".")


def _unstyled(text: str) -> str:
    return stripped(STYLED.sub(r"\1", SPACING.sub(" ", text.replace("{:}", ":"))))


MOMENTS = (
    *("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p"),
    *("%Y-%m-%d", "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y"),
)
SPOKEN = (
    (re.compile(r"(?<=\d)(?:st|nd|rd|th)\b(?: of\b)?"), ""),
    (re.compile(r"\s*([ap])\s?m$"), r" \1m"),
    (re.compile(r"(?<=:)\s+|\s+(?=:|\s)"), ""),
)


def _moment(text: str) -> tuple[bool, datetime] | None:
    """Return the date or the time of day that a text is; None for an ambiguous one: 03/04/2024.

    First comes whether it may be of the other half of the day.
    """
    text = _unstyled(text).lower().replace(".", "").replace(",", " ")
    for pattern, simpler in SPOKEN:
        text = pattern.sub(simpler, text)
    if not re.match(r"(?!.*:\d\b).*(?::\d\d|\b\d{4}\b)", text):  # 1:2:30 is a ratio
        return None
    for form in MOMENTS:
        with suppress(ValueError):
            moment = datetime.strptime(text, form)
            return "%p" not in form and 0 < moment.hour < 13, moment
    return None
