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
from functools import lru_cache
from typing import NamedTuple

from dateutil.parser import parse

from dstools_distill.judge.equality import Comparison
from dstools_distill.judge.extract import final_answer, stripped
from dstools_distill.judge.quantities import Value
from dstools_distill.judge.reader import MAX_CHARS, read
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.remarks import DENIED
from dstools_distill.judge.spelling import SPACING, STYLED, squeezed
from dstools_distill.recipe.settings import AnswerType


class Ruling(NamedTuple):
    """The result of a comparison."""

    verdict: str  # "correct", "incorrect" or "unverifiable"
    reason: str  # a stable word, or "word: detail"
    checkers: tuple[str, ...] = ()


INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,3999})")
DIGITS = re.compile(r"[+-]?[0-9]{1,4000}")
BLANKS = re.compile(r"([ \t\n])\1{2,}|([^\w\s])\2{40,}")
OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # Arabic, Devanagari, full-width
EXACT = ("exact",)
LIBRARY = ("math-verify",)
EQUAL = Ruling("correct", "equal", EXACT)
NO_ANSWER = Ruling("incorrect", "no-answer")
NO_GOLD, GOLD_NOT_READ = (Ruling("unverifiable", why) for why in ("no-gold", "gold-not-read"))


def compare(text: str, gold: str | None, kind: AnswerType, referee: Referee) -> Ruling:
    """Rule on the answer in `text`, which is what a model wrote after its reasoning."""
    if gold is None or kind == "none":
        return NO_GOLD
    text, wanted = BLANKS.sub(r"\1\1\2\2", _in_digits(text)).strip(), _wanted(gold.strip(), kind)
    if not wanted:
        return GOLD_NOT_READ
    if kind == "auto":
        kind = looks_like(wanted)
    if ruling := _plainly(text, wanted, kind):
        return ruling
    answer, problem, parts = final_answer(text)
    if not problem:
        return _ruling(answer, wanted, kind, referee)
    if parts and _may_be_joined(parts, kind):
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


def _in_digits(text: str) -> str:
    """Return a text with its digits of other scripts as 0 to 9."""
    return text if text.isascii() else OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text)


def _may_be_joined(parts: tuple[str, ...], kind: AnswerType) -> bool:
    """Return whether parts of a text may be one answer: of a tuple, if each has its own name."""
    if kind in ("set", "math", "string"):
        return True
    names = {part.partition("=")[0].strip() for part in parts if "=" in part}
    is_tuple = kind == "tuple" and len(names) == len(parts)
    return is_tuple or (kind in ("tuple", "choice") and len(parts) == 1)


@lru_cache(64)  # the samples of a prompt follow each other
def _wanted(gold: str, kind: AnswerType) -> str:
    """Return the answer in a gold, which may be a solution; "" if it cannot be read."""
    gold = _in_digits(gold)
    gold = final_answer(gold).text or gold
    gold = stripped(gold) if kind != "string" else gold
    braces = re.sub(r"\\.|[^{}]", "", gold)
    return gold if braces.count("{") == braces.count("}") else ""


def _plainly(text: str, gold: str, kind: AnswerType) -> Ruling | None:
    """Rule on digits, letters or words; None where the text is none, or other words."""
    if kind == "integer":
        return integers(text, gold)
    if kind == "choice" and not SEVERAL.search(text):
        (given, words), (wanted, its) = choice(text), choice(gold)
        if given and not wanted:
            return GOLD_NOT_READ
        if given and words and its and _words(words) != _words(its):
            return Ruling("unverifiable", "other-words", EXACT)
        if given:
            return EQUAL if wanted == given else _differs(given, EXACT)
    is_formula = kind == "string" and len(text) <= MAX_CHARS and "**" not in text + gold
    if is_formula and squeezed(text) == squeezed(gold):  # 1s² for 1s^2
        return EQUAL
    is_text = kind == "string" or _words(gold) in MEANT.values()
    if is_text and not SEVERAL.search(text) and same_words(text, gold):
        return EQUAL
    one, other = _compound(text), _compound(gold)
    if one and other and one != other and re.search(r"\d", text + gold):  # CO2 is not a product
        return Ruling("unverifiable", "not-comparable", EXACT)
    return EQUAL if one == other != "" else None


def _ruling(answer: str, gold: str, kind: AnswerType, referee: Referee) -> Ruling:
    """Rule on an answer by its digits, letters or words, or as a formula."""
    if ruling := _plainly(answer, gold, kind):
        return ruling
    if kind == "string":
        number = read(gold) if gold.isalpha() else None
        if number is not None and number.kind == "number":  # twelve
            ruling = formulas(answer, gold, kind, referee)
            if ruling.verdict == "correct":
                return ruling
        return _other_words(answer, gold)
    if kind == "choice":
        gold, kind = choice(gold)[1], "math"
        if not gold:
            return Ruling("unverifiable", "answer-not-read")
    return formulas(answer, gold, kind, referee)


@lru_cache(64)
def looks_like(gold: str) -> AnswerType:
    """Return the answer type that a gold looks like."""
    inner = _unstyled(gold) if STYLED.fullmatch(gold) else gold
    if INTEGER.fullmatch(inner):
        return "integer"
    letters, words = choice(gold)
    if (letters or words) and letters in _unstyled(gold):  # FACE is a word
        return "choice"
    is_words = WORDS.fullmatch(inner) and (len(inner) > 2 or inner.lower() in ("no", "ok"))
    return "string" if is_words or _moment(_unstyled(gold)) else "math"


SEVERAL = re.compile(r"\n|\w{2}[.!?;]\s")  # sentences
WORDS = re.compile(r"(?!inf(?:inity)?$)[^\W\d_][^\W\d_' -]*(?: [^\W\d_' -]+)*", re.IGNORECASE)


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
    if len(answer) > MAX_CHARS:
        return Ruling("unverifiable", "answer-not-read")
    if squeezed(answer) == squeezed(gold):
        return EQUAL
    gold, answer = (RATIO.sub(":", text) for text in (gold, answer))
    if RATIO.search(answer) and ":" not in gold:  # 2 to 3 may be a range
        return Ruling("unverifiable", "not-comparable")
    wanted, given = read(gold), read(answer)
    if wanted is None or given is None:
        return Ruling("unverifiable", "gold-not-read" if wanted is None else "answer-not-read")
    if kind == "number":  # 2,5
        wanted, given = (
            Value("number", number=v.number, name=v.name) if v.kind == "items" and v.number else v
            for v in (wanted, given)
        )
    brackets, own = {wanted.text, given.text}, {"set": "{}", "tuple": "()"}.get(kind)
    if own and wanted.items and given.items and brackets <= {"", "()", "[]", "{}"}:
        if kind == "set" and brackets == {"()", "[]"}:  # one may be an interval
            return Ruling("unverifiable", "not-comparable", EXACT)
        wanted, given = wanted._replace(text=own), given._replace(text=own)
    comparison = Comparison(referee)
    equal = comparison.same(given, wanted)
    checkers = LIBRARY if comparison.asked else EXACT
    if equal is None:
        return Ruling("unverifiable", comparison.problem or "not-comparable", checkers)
    return Ruling("correct", "equal", checkers) if equal else _differs(answer, checkers)


RATIO = re.compile(r"(?<=\d)\s*(?:\bto\b|:|\{:\}|\\colon)\s*(?=\d)")


def _compound(text: str) -> str:
    """Return a formula of chemistry without marks, H2SO4 or SO4^2-; "" for other text."""
    if len(text) > MAX_COMPOUND:
        return ""
    text = re.sub(r"\\(?:ce|text)(?![a-z])|[{}]|_(?=\{?\d)|\^(?=\{?[+-])", "", squeezed(text))
    return text if COMPOUND.fullmatch(text) else ""


MAX_COMPOUND = 100  # characters
ATOM = r"(?:\(?[A-Z][a-z]?\d*(?:\)\d*)?)"
COMPOUND = re.compile(rf"{ATOM}{{2,}}|{ATOM}+(?:\^\d)?[+-]")


# ------------------------------------------------------------------------------- choices, strings


def choice(text: str) -> tuple[str, str]:
    """Return the letters that a text chooses, sorted, and the words of the option; "" for none.

    Choices: C, (c), Option C, C) 42, C, as it is even, A and C, AC.
    """
    text = OPTION_WORD.sub("", _unstyled(text).replace("**", "").replace("、", ",").strip("*_ "))
    if named := NAMED.fullmatch(text):
        letter, is_remark, words = named.groups()
        is_denied = is_remark and not REASON.match(words) and DENIED.search(words)
        is_alone = not is_denied and not OTHER.search(words)
        return letter.upper() if is_alone else "", words
    if re.search(r"[^\w\s,;&().]", text):  # C++, B?
        return "", ""
    found = re.findall(r"\w+", re.sub(r"\band\b", "", text))
    letters = "".join(sorted("".join(found)))
    is_run = len(found) == 1 or len(found) == len(letters)
    return (letters.upper() if is_run and LETTERS.fullmatch(letters) else "", "")


def names_another_option(text: str, gold: str, question: str) -> bool:
    """Return whether the words beside the letter in an answer are those of a wrong option."""
    options = {letter: _words(words) for letter, words in OPTION.findall(question)}
    words = _words(choice(final_answer(text).text or text)[1]) if options else ""
    return words in options.values() and words != options.get(choice(gold)[0])


OPTION_WORD = re.compile(  # in the languages of extract.py
    r"(?i)^(?:(?:the|la|l'|die|der|il|a)\s?)?(?:option|choice|answer|lett(?:er|re)|réponse|letra"
    r"|opci[óo]n|respuesta|opção|resposta|alternativa|risposta|antwort|buchstabe|lösung)s?\s+"
)
OPTION = re.compile(r"(?m)^[ \t]*\(?([A-J])[).:][ \t]+(\S.*)$")  # of a question
NAMED = re.compile(  # C) 42, C, as it is even
    r"\(?([A-J]|[a-j](?=\)))\s*(?:[).:]|(,(?=\s*(?!and|or)[^\W\d]{2})"
    r"|\s[–—]\s|\s(?=because|since|is correct)))\s*(.+)",
    re.DOTALL,
)
REASON = re.compile(r"(?:because|since|as|which)\b")
OTHER = re.compile(  # another letter, but not the article; or what is said of the option
    r"\b(?:[B-J]|A(?!\s+[a-z]))\b|^is\b(?! correct)|\bis (?:wrong|false)"
)
LETTERS = re.compile(r"(?!$)A?B?C?D?E?F?G?H?I?J?|[a-j]")


def _other_words(answer: str, gold: str) -> Ruling:
    """Rule on another text: in another script, with figures or a word in common it may be right."""
    one, other = _words(answer).casefold(), _words(gold).casefold()
    is_alike = {*re.findall("[a-z]+|\\w", one)} & {*re.findall("[a-z]+|\\w", other)}
    is_part = len(one) == 1 or one in other or other in one
    is_known = one.isascii() or not other.isascii()
    is_known &= other not in ("yes", "no") or one in ("yes", "no")
    is_known &= bool(_compound(answer.partition(" (")[0])) == bool(_compound(gold))  # NaCl, or DVT
    is_known &= bool(DENIED.search(one)) == bool(DENIED.search(other))
    is_known &= one[:5] != other[:5] or len(one) < 5  # mitochondrion and mitochondria
    if is_alike or is_part or not is_known or re.search(r"[\d\\]", one + other):
        return Ruling("unverifiable", "other-words", EXACT)
    return _differs(answer, EXACT)


def same_words(answer: str, gold: str) -> bool:
    """Return whether two texts say the same, also "yes" and a reason for it."""
    if (short := ABBREVIATED.search(answer)) and short[1] == _initials(answer[: short.start()]):
        answer = answer[: short.start()]  # deep vein thrombosis (DVT)
    one, other = _words(answer), _words(gold)
    word = re.match(r"(\w+)\s*[,—–.;:]\s*(.*)", one, re.DOTALL)
    if word and YES_NO.fullmatch(other) and len(YES_NO.findall(one)) == 1:
        is_bound = not REASON.match(word[2]) and BOUND.search(word[2])
        one = one if is_bound else _words(word[1])
    return one == other != ""


def _initials(text: str) -> str:
    return "".join(word[0] for word in re.findall(r"\w+", text)).upper()


ABBREVIATED = re.compile(r"\s?\(([A-Z]{3,6})\)$")
MEANT = {
    **dict.fromkeys(("dne", "d.n.e"), "does not exist"),
    **dict.fromkeys(("none", r"\emptyset", r"\varnothing", "∅", r"\{\}"), "no solution"),
    "infinitely many solution": "infinitely many", "true": "yes", "false": "no",
}  # fmt: skip
BOUND = re.compile(
    rf"{DENIED.pattern}|\b(?:when|only|except|provided|maybe|perhaps|sometimes|always|depend\w*)\b"
)
# no solutions: no solution; but Mars is not Mar
NO_PLURAL = re.compile(r"(\b(?:no|infinitely many) \w{4,})s$")
# "no" before a word is not an answer: yes, there is no other
YES_NO = re.compile(r"(?i)\b(?:yes|no(?!\s+\w)|true|false|but|unless|oui|non|ja|nein|sí|да|нет)\b")


def _words(text: str) -> str:
    """Return a text in one spelling: one kind of quote, no article, one of the words for a meaning.

    The case of a word of one or two letters counts, and of those beside it: CO is not Co.
    """
    text = unicodedata.normalize("NFC", _unstyled(text))
    if moment := _moment(text):
        return moment
    text = re.sub(r"[’‘`\"“”]", "'", re.sub(r"(?<=[①-⑳])[、, ]+(?=[①-⑳])", "", text))
    text = re.sub(
        r"\s*,\s*", ", ", re.sub(r"(?i)^(?:an? |the (?:\w+ (?=does not))?)", "", text.strip("' "))
    )
    text = " ".join(re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text).split())
    if not re.search(r"\b(?!(?i:no|a|ja)\b)(?=\w?[A-Z])[^\W\d_]{1,2}(?:\d|\b)", text):
        text = NO_PLURAL.sub(r"\1", text.casefold())
    return MEANT.get(text, text)


def _unstyled(text: str) -> str:
    return stripped(STYLED.sub(r"\1", SPACING.sub(" ", text.replace("{:}", ":"))))


DATE = re.compile(r"(?i)(?=.*[a-z]{3})[^:]*\b\d{4}\b[^:]*|\d{4}-\d\d-\d\d")
TIME = re.compile(r"(?i)\d\d?(?::\d\d){1,2}\s*(?:[ap]\.?\s*m\.?)?")  # 1:2:30 is a ratio


def _moment(text: str) -> str:
    """Return the date or the time of day that a text is; "" for an ambiguous one: 03/04/2024."""
    text = re.sub(r"\s*:\s*", ":", text)
    is_time = TIME.fullmatch(text)
    if not is_time and not DATE.fullmatch(text):
        return ""
    with suppress(ValueError, OverflowError):
        one, other = (parse(text, default=datetime(day, day, day)) for day in (1, 2))
        if is_time:
            is_half = 0 < one.hour < 13 and text[-1].isdigit()  # of either half of the day
            return f"{one.time()}{' or later' if is_half else ''}"
        return f"{one}" if one == other else ""
    return ""
