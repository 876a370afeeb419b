r"""Finds the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41"; a short text
that is nothing but its answer; the one number of the last line. A text that settles on several, or takes
one back, settles on none.
"""

import re
from typing import NamedTuple

from dstools_distill.judge.spelling import NoUnit, unit_name

MAX_SHORT = 400  # characters of a text that may be nothing but its answer


class Found(NamedTuple):
    """What a text settles on."""

    text: str  # "" where it does not
    problem: str = ""  # then: "no-answer", "several-answers" or "taken-back"
    parts: tuple[str, ...] = ()  # where different things are boxed: each of them


def final_answer(text: str) -> Found:
    """Return the answer that a text settles on, without what marks or announces it."""
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed(text)
    if "<answer>" in text:
        inner = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return _one([stripped(each) for each in inner], text.rpartition("</answer>")[2])
    announced = _announcements(text)
    if announced:
        said = [_said(text, each) for each in announced]
        last = text[announced[-1].end() :].partition("\n")
        return _one(said, last[2])
    short = stripped(text)
    if not short:
        return Found("", "no-answer")
    if "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Found(short)
    return _last_number(text)


ANNOUNCED = re.compile(
    r"\#{4}\s*"
    r"|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution|option|choice)s?\b(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
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
    """Return what announces an answer; of two in a row, "Final answer: the answer is", the last."""
    found = list(ANNOUNCED.finditer(text))
    return [
        mark
        for n, mark in enumerate(found)
        if not NEGATED.search(text, 0, mark.end())
        and not (n + 1 < len(found) and LEAD_IN.fullmatch(text, mark.end(), found[n + 1].start()))
    ]


LEAD_IN = re.compile(r"\W*(?:the|so|my|our)?\W*", re.IGNORECASE)


def _boxed(text: str) -> Found:
    found, at = [], 0
    for mark in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        if mark.start() < at:
            continue  # a box in a box
        inner, at = _argument(text, mark.end())
        if inner is None:
            return Found("", "no-answer")
        if NEGATED.search(text, 0, mark.start()):
            return Found("", "taken-back")
        found.append(_boxed(inner).text if "\\boxed" in inner else stripped(inner))
    if all(PLAIN_NUMBER.fullmatch(each) for each in found):
        announced = [_said(text, mark) for mark in _announcements(text)]
        found += [said for said in announced if PLAIN_NUMBER.fullmatch(said)]
    return _one(found, text[at:])


PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _argument(text: str, at: int) -> tuple[str | None, int]:
    """Return what stands in braces at `at`, and the offset behind; None where they do not close."""
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


def _one(found: list[str], behind: str) -> Found:
    """Return what was found if it is one thing, and nothing behind takes it back."""
    different = tuple(dict.fromkeys(found))
    if not different or not any(different):
        return Found("", "no-answer")
    if TAKEN_BACK.search(behind):
        return Found("", "taken-back")
    if len(different) > 1:
        return Found("", "several-answers", different)
    return Found(different[0])


def _said(text: str, mark: re.Match[str]) -> str:
    """Return what an announcement announces: the rest of its line, up to the end of the sentence."""
    rest = text[mark.end() :].lstrip()
    line = rest.partition("\n")[0]
    if rest.startswith(("$$", "\\[")):
        line = " ".join(rest.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\S)\.\s+(?=[A-Z\\$])|[。；]", line)  # noqa: RUF001
    if len(sentence) > 1 and TAKEN_BACK.search(line[len(sentence[0]) :]):
        return line  # what follows takes it back, and cannot be read
    return stripped(sentence[0])


def _last_number(text: str) -> Found:
    """Return the one formula or number of the last line, or the number behind its last equals sign."""
    line = stripped(text.strip().rpartition("\n")[2])
    if TAKEN_BACK.search(line) or OPEN_END.search(line):
        return Found("", "no-answer")
    formulas = INLINE.findall(line)
    if formulas and (len(formulas) > 1 or re.search(r"\d", INLINE.sub("", line))):
        return Found("", "no-answer")
    if formulas:
        return Found(stripped(max(formulas[0])))
    _, equals, behind = line.rpartition("=")
    rest = behind if equals else line
    numbers = list(NUMBER.finditer(rest))
    if len(numbers) != 1 or not _is_unit(rest[numbers[0].end() :]):
        return Found("", "no-answer")
    return Found(numbers[0][0])


NUMBER = re.compile(r"[-−]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?[%°]?")  # noqa: RUF001
# a dollar that opens is not before a blank, one that closes not behind one nor before a digit; as in Pandoc
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
OPEN_END = re.compile(
    r"\?|\b(?:if|either|between|about|least|most|more|less|fewer|over|under|nearly|almost)\b",
    re.IGNORECASE,
)


def _is_unit(behind: str) -> bool:
    """Tell words that leave a number what it is."""
    words = behind.strip(" .,!;:*$")
    try:
        return not words or bool(unit_name(words))
    except NoUnit:
        return False


def stripped(text: str) -> str:
    """Return an answer without white space, emphasis, quotes, a closing point or what names it.

    Not: dollar signs, which may be money; brackets, which may be a tuple.
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
        text = NAMING.sub("", text.strip())
    return text


NAMING = re.compile(
    r"^(?:(?:so|thus|hence|therefore|we (?:get|have)|it is|it's|that is|approximately|exactly)[\s,:]+"
    r"|\\text\s*\{[^{}]*\b(?:is|are)\s*\}|(?:\\approx(?![a-z])|≈)\s*"
    r"|(?:\\text\s*\{[^{}]{3,40}\}|(?:[A-Za-z]{3,}[ ]?){1,4})\s*=(?!=)\s*)",
    re.IGNORECASE,
)
