"""What training can lose, and what to do about it: the codes of the doctor's findings."""

from typing import NamedTuple

from dstools_converters.errors import Finding, Level
from dstools_distill.tokens.invariant import IGNORED

SHOWN = 60  # characters of a text to quote in a message


class Violation(NamedTuple):
    """One fault of a row."""

    code: str  # of FAULTS, stable
    message: str


FAULTS: dict[Level, dict[str, str]] = {  # codes, with what to do; "": each has a hint of its own
    "error": {  # training loses something, or it was not checked
        "truncated": "raise the limit above your longest row, or drop long rows; never cut one",
        "trace-lost": "`dstools distill render` joins prompt and trace without the template",
        "start-missing": "train on the opening tag, or use a template that shows it when served",
        "end-missing": "keep the token that ends a turn in the template, and train on it",
        "wrong-end": "end answers with the token of the template that serves",
        "broken-think": "open and close one think block before the answer",
        "doubled-think": "keep one think block, before the answer",
        "no-labels": "set the role that answers in the trainer's configuration",
        "labels-gap": "give labels to all of an answer",
        "labels-differ": "labels are the ids in their own places, by the tokenizer that serves",
        "padding-trained": f"set labels to {IGNORED} where attention_mask is 0",
        "packing": "have the trainer mark where each conversation begins, or do not pack",
        "left-out": "raise the limit above your longest row, or be content with the others",
        "tokenizer": "",
        "not-checked": "give the rows it was made of with --data",
        "refused": "",
    },
    "warning": {
        "prompt-trained": "give labels to answers alone",
        "prompt-differs": "make everything before the first label what serving shows",
        "history-not-trained": "train on every answer, or be content with the last ones",
        "trained-after-end": "give labels to answers and their ends alone",
        "not-in-data": "give the whole file that this data set was made of",
        "no-trace": "give the rows it was made of with --data, to know whether one was lost",
        "mtp-dropped": "`dstools distill sft` carries them over, `dstools distill mtp` fits them",
        "packing-attention": "use flash attention",
        "unknown-key": "correct it, unless another version or a script of your own reads it",
    },
    "note": {"not-read": ""},
}


def finding(code: str, where: str, message: str, hint: str = "") -> Finding:
    """Return a finding of one of the codes, with the level and the hint of FAULTS."""
    level, hints = next(each for each in FAULTS.items() if code in each[1])
    return Finding(level, code, where, message, hint or hints[code])


def shown(text: str, at: int = 0) -> str:
    """Return up to SHOWN characters of a text around character `at`, escaped."""
    start = max(0, min(at, len(text)) - SHOWN // 2)
    part = text[start : start + SHOWN]
    left, right = "..." if start else "", "..." if start + SHOWN < len(text) else ""
    return f"{left}{part!r}{right}"


def differing(text: str, other: str, of_other: str) -> str:
    """Return a message that shows two texts where they first differ."""
    pairs = enumerate(zip(text, other, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
    return f"{shown(text, at)} is in the row, but {of_other} {shown(other, at)}"
