r"""Extraction of the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41"; a
short text that is only its answer; the one number of the last line. A text that settles on several
answers, or takes one back, settles on none.
"""

import re
from typing import NamedTuple

from dstools_distill.judge.spelling import NoUnitError, unit_name

MAX_SHORT = 400  # characters of a text that may be only its answer


class Extracted(NamedTuple):
    """The answer that a text settles on, or why there is none."""

    text: str  # "" if there is a problem
    problem: str = ""  # "", "no-answer", "several-answers" or "taken-back"
    parts: tuple[str, ...] = ()  # the different answers, if there are several


def final_answer(text: str) -> Extracted:
    """Return the answer that a text settles on, without what marks or announces it."""
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed(text)
    if "<answer>" in text:
        tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return _single([stripped(inner) for inner in tagged], text.rpartition("</answer>")[2])
    if marks := _announcements(text):
        after_last_line = text[marks[-1].end() :].partition("\n")[2]
        return _single([_announced(text, mark) for mark in marks], after_last_line)
    short = stripped(text)
    if not short:
        return Extracted("", "no-answer")
    if "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Extracted(short)
    return _last_number(text)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} or \fbox{...} of a text; braces may nest."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at].strip() or None
    return None


ANNOUNCED = re.compile(
    r"\#{4}\s*"
    r"|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution|option|choice)s?\b"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
    r"(?:\s*[*_]{0,2}\s*[:：]\s*[*_]{0,2}|\s+(?:is|are|equals|would be|will be|should be|=)\b:?)\s*"  # noqa: RUF001
    r"|(?:答案|结果)(?:是|为|[:：])+\s*",  # noqa: RUF001
    re.IGNORECASE,
)
NEGATED = re.compile(
    r"(?:not|n't|\bnever)\s+(?:be\s+|equal(?:\s+to)?\s+|the\s+)*[^\w\\]*$", re.IGNORECASE
)
TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|correction|instead|alternatively|maybe|perhaps|sorry|mistake|wrong|incorrect"
    r"|or|no|not|hmm|recheck|reconsider|unsure|could(?: also)? be|might)\b|n't\b|等等|不对",
    re.IGNORECASE,
)
PROSE = re.compile(
    r"^[a-z ]+:|[a-z]{2,} [a-z]+ [a-z]+|[a-z]{2,} [a-z]{2,} \S?\d|[.!?]\s+\S|\$.*[a-z]{3}.*\$",
    re.IGNORECASE,
)


def _announcements(text: str) -> list[re.Match[str]]:
    """Return the phrases that announce an answer; of adjacent ones only the last.

    Adjacent are for instance "Final answer:" and "the answer is".
    """
    marks = list(ANNOUNCED.finditer(text))
    return [
        mark
        for n, mark in enumerate(marks)
        if not NEGATED.search(text, 0, mark.end())
        and not (n + 1 < len(marks) and LEAD_IN.fullmatch(text, mark.end(), marks[n + 1].start()))
    ]


LEAD_IN = re.compile(r"\W*(?:the|so|my|our)?\W*", re.IGNORECASE)


def _boxed(text: str) -> Extracted:
    answers, at = [], 0
    for mark in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        if mark.start() < at:
            continue  # a box in a box
        inner, at = _argument(text, mark.end())
        if inner is None:
            return Extracted("", "no-answer")
        if NEGATED.search(text, 0, mark.start()):
            return Extracted("", "taken-back")
        answers.append(_boxed(inner).text if "\\boxed" in inner else stripped(inner))
    if all(PLAIN_NUMBER.fullmatch(answer) for answer in answers):
        announced = [_announced(text, mark) for mark in _announcements(text)]
        answers += [answer for answer in announced if PLAIN_NUMBER.fullmatch(answer)]
    return _single(answers, text[at:])


PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _argument(text: str, at: int) -> tuple[str | None, int]:
    """Return the content of the braces at `at`, and the offset after them; None: never closed."""
    if text[at : at + 1] != "{":
        word = re.compile(r"\S+").match(text, at)
        return (word[0], word.end()) if word else (None, len(text))
    depth = 0
    for place in range(at, len(text)):
        char = text[place]
        if char in "{}" and text[place - 1] != "\\":
            depth += 1 if char == "{" else -1
            if not depth:
                return text[at + 1 : place], place + 1
    return None, len(text)


def _single(answers: list[str], rest: str) -> Extracted:
    """Return the answer if all are the same and the rest of the text does not take it back."""
    different = tuple(dict.fromkeys(answers))
    if not different or not any(different):
        return Extracted("", "no-answer")
    if TAKEN_BACK.search(rest):
        return Extracted("", "taken-back")
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    return Extracted(different[0])


def _announced(text: str, mark: re.Match[str]) -> str:
    """Return what follows an announcement, up to the end of its sentence or line."""
    rest = text[mark.end() :].lstrip()
    line = rest.partition("\n")[0]
    if rest.startswith(("$$", "\\[")):
        line = " ".join(rest.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\S)\.\s+(?=[A-Z\\$])|[。；]", line)[0]  # noqa: RUF001
    if TAKEN_BACK.search(line[len(sentence) :]):
        return line  # the rest takes it back, and cannot be read
    return stripped(sentence)


def _last_number(text: str) -> Extracted:
    """Return the only formula or number of the last line, or the number after its last "="."""
    line = stripped(text.strip().rpartition("\n")[2])
    if TAKEN_BACK.search(line) or OPEN_END.search(line):
        return Extracted("", "no-answer")
    formulas = INLINE.findall(line)
    if formulas and (len(formulas) > 1 or re.search(r"\d", INLINE.sub("", line))):
        return Extracted("", "no-answer")
    if formulas:
        return Extracted(stripped(max(formulas[0])))
    right_side = line.rpartition("=")[2]
    numbers = list(NUMBER.finditer(right_side))
    if len(numbers) != 1 or not _is_unit(right_side[numbers[0].end() :]):
        return Extracted("", "no-answer")
    return Extracted(numbers[0][0])


NUMBER = re.compile(r"[-−]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?[%°]?")  # noqa: RUF001
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
OPEN_END = re.compile(
    r"\?|\b(?:if|either|between|about|least|most|more|less|fewer|over|under|nearly|almost)\b",
    re.IGNORECASE,
)


def _is_unit(rest: str) -> bool:
    """Return whether the text after a number is empty or its unit."""
    words = rest.strip(" .,!;:*$")
    try:
        return not words or bool(unit_name(words))
    except NoUnitError:
        return False


def stripped(text: str) -> str:
    """Return an answer without white space, emphasis, quotes, a final full stop or a lead-in.

    Dollar signs stay, as they may be money; so do brackets, as they may be a tuple.
    """
    text = text.strip()
    before = None
    while text != before:
        before = text
        text = text.strip("*_`\"“”'‘’ \n\t").removesuffix("。")  # noqa: RUF001
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        if text.endswith("\\"):
            text = text + " "
        for opener, closer in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$")):
            if text.startswith(opener) and text.endswith(closer) and len(text) > 4:
                text = text[2:-2]
        if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2:
            text = text[1:-1]
        text = LEAD.sub("", text.strip())
    return text


LEAD = re.compile(
    r"^(?:(?:so|thus|hence|therefore|we (?:get|have)|it is|it's|that is|approximately|exactly)"
    r"[\s,:]+"
    r"|\\text\s*\{[^{}]*\b(?:is|are)\s*\}|(?:\\approx(?![a-z])|≈)\s*"
    r"|(?:\\text\s*\{[^{}]{3,40}\}|(?:[A-Za-z]{3,}[ ]?){1,4})\s*=(?!=)\s*)",
    re.IGNORECASE,
)
