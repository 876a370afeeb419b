r"""Finds the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41"; a short text
that is nothing but its answer; the one number of the last line. A text that settles on several, or takes
one back, settles on none.
"""

import re
from typing import NamedTuple

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
    announced = [
        each for each in ANNOUNCED.finditer(text) if not NEGATED.search(text, 0, each.end())
    ]
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
    r"|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution)\b(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
    r"(?:\s*[*_]{0,2}\s*[:：]\s*[*_]{0,2}|\s+(?:is|are|equals|would be|will be|should be|=)\b:?)\s*"  # noqa: RUF001
    r"|(?:答案|结果)(?:是|为|[:：])+\s*",  # noqa: RUF001
    re.IGNORECASE,
)
NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever)\s+(?:be\s+|equal(?:\s+to)?\s+|the\s+)*[^\w\\]*$", re.IGNORECASE
)
TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|correction|instead|alternatively|maybe|perhaps|sorry|mistake|wrong|incorrect"
    r"|or|no|not|hmm|recheck|reconsider|unsure|could(?: also)? be|might)\b|n't\b|等等|不对",
    re.IGNORECASE,
)
PROSE = re.compile(r"[a-z]{2,} [a-z]+ [a-z]+|[.!?]\s+\S", re.IGNORECASE)


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
        found.append(stripped(inner))
    announced = (_said(text, mark) for mark in ANNOUNCED.finditer(text))
    if all(PLAIN_NUMBER.fullmatch(each) for each in found):
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
    sentence = re.split(r"(?<=\S)\.\s+(?=[A-Z])|[。；]", line)  # noqa: RUF001
    if len(sentence) > 1 and TAKEN_BACK.search(line[len(sentence[0]) :]):
        return line  # what follows takes it back, and cannot be read
    return stripped(sentence[0])


def _last_number(text: str) -> Found:
    """Return the one number of the last line, or the one behind its last equals sign."""
    line = stripped(text.strip().rpartition("\n")[2])
    if (
        TAKEN_BACK.search(line)
        or "?" in line
        or re.search(r"\b(?:if|either|between|about)\b", line)
    ):
        return Found("", "no-answer")
    head, equals, behind = line.rpartition("=")
    numbers = re.findall(r"[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?", behind if equals else line)  # noqa: RUF001
    if len(numbers) != 1 or (equals and re.search(r"[a-z]{3,}", behind, re.IGNORECASE)):
        return Found("", "no-answer")
    if equals and head.count("=") > 3:
        return Found("", "no-answer")
    return Found(numbers[0].rstrip(","))


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
    r"|(?:\\text\s*\{[^{}]{3,40}\}|(?:[A-Za-z]{3,}[ ]?){1,4})\s*=(?!=)\s*)",
    re.IGNORECASE,
)
