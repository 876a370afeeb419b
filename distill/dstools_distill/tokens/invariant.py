"""The check of a tokenized row: decode its labels and report what training would lose.

A row is good if the ids before its first label are those that serving shows for the prompt; its
labels decode to trace, delimiters, answer and end token, byte for byte; one think block is opened
and closed, by the last words of the prompt or after it; and the end token is the last label and the
only one of its kind. Masking is by position, so a row stays good where the end token is also the
pad token.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think

IGNORED = -100  # the label of a token that is not trained on
SHOWN = 60  # characters of a text to quote in a message
OPENER_TOKENS = 16  # the last ones of a prompt, which hold "<think>" and line feeds
NEEDLE = 32  # characters of a trace or answer to search for in a decoded row
CHECKS = (  # written to the manifest of `render`: another wording raises its revision
    "the prompt is what serving shows, and is not trained on",
    "the labels decode to trace, delimiters, answer and end token, byte for byte",
    "one think block is opened and closed",
    "the end token is the last label, and the only one",
    "nothing is cut off",
)


class Target(NamedTuple):
    """What a row should train on."""

    prompt: Sequence[int]  # the ids that serving shows
    text: str  # trace, delimiters and answer, without the end token
    trace: str  # part of `text`; "" without one
    end: int  # the token that ends an answer


class Trained(NamedTuple):
    """A row as a trainer sees it."""

    ids: list[int]  # [n]
    labels: list[int]  # [n], IGNORED where the token is not trained on


class Violation(NamedTuple):
    """One fault of a row."""

    code: str  # stable
    message: str


def violations(
    decode: Callable[[list[int]], str], ids: list[int], labels: list[int], target: Target
) -> list[Violation]:
    """Return the faults of a row of `ids` [n] and `labels` [n], the worst first; [] for a good row.

    `decode` must keep special tokens. Codes: no-labels, labels-differ, trace-lost, truncated,
    wrong-end, end-missing, end-inside, trained-behind-end, doubled-think, broken-think, labels-gap,
    start-missing, prompt-trained, prompt-differs, text-changed.
    """
    first = next((n for n, label in enumerate(labels) if label != IGNORED), len(ids))
    wanted = target.text + decode([target.end])
    tail = ids[first:]
    if (
        ids[:first] == list(target.prompt)
        and labels[first:] == tail
        and target.end in tail
        and tail.index(target.end) == len(tail) - 1
        and decode(tail) == wanted
    ):
        block = _think_block("", wanted, target, decode)
        return [block] if block else []
    places = [n for n, label in enumerate(labels) if label != IGNORED]
    if not places:
        return [Violation("no-labels", "no token of the row is trained on")]
    if len(ids) != len(labels) or any(ids[n] != labels[n] for n in places):
        return [Violation("labels-differ", "a label differs from the id in its place")]
    trained = [ids[n] for n in places]
    text = decode(trained)
    faults = [
        *_of_text(text, target),
        *_of_end(trained, text, decode, target, whole=first < len(target.prompt)),
    ]
    block = _think_block(decode(list(target.prompt)), decode(ids), target, decode)
    if block and not any(fault.code in ("trace-lost", "truncated") for fault in faults):
        faults.append(block)
    if places[-1] + 1 - first != len(trained):
        faults.append(Violation("labels-gap", "some tokens within the target are not trained on"))
    if list(ids[:first]) != list(target.prompt):
        fault = _of_prompt(ids, first, decode, target)
        is_told = fault.code == "start-missing" and faults and faults[0].code == "trace-lost"
        faults += [] if is_told else [fault]
    if text != wanted and not faults:
        at = next((n for n, (a, b) in enumerate(zip(text, wanted, strict=False)) if a != b), 0)
        message = (
            f"at character {at} the labels decode to {shown(text, at)}, not {shown(wanted, at)}"
        )
        faults.append(Violation("text-changed", message))
    assert faults or text == wanted, "a row that is not right has no fault"
    return faults


# `render` can write the messages of the next three functions to dropped.jsonl: another wording
# raises its revision.


def _of_text(text: str, target: Target) -> list[Violation]:
    """Return the fault of a decoded target that is cut or lacks the trace."""
    if target.text in text:
        return []
    needle = (target.trace or target.text)[:NEEDLE]
    at, place = target.text.find(needle), text.find(needle)
    if target.text.startswith(text):
        at = place = 0
    rest = target.text[at:]
    if place >= 0 and rest.startswith(text[place:]):
        kept = len(text) - place
        message = (
            f"the target is cut after {kept} of {len(rest)} characters, {shown(text, len(text))}"
        )
        return [Violation("truncated", message)]
    trace = target.trace.strip()
    if trace and trace[:NEEDLE] not in text and trace[-NEEDLE:] not in text:
        message = f"the trace of {len(trace)} characters is not trained on, only {shown(text)}"
        return [Violation("trace-lost", message)]
    return []


def _of_end(
    trained: list[int],
    text: str,
    decode: Callable[[list[int]], str],
    target: Target,
    *,
    whole: bool,
) -> list[Violation]:
    """Return the fault of an end token that is missing after the answer, not last, or too early.

    whole: the prompt is trained on too, and may hold the end tokens of other turns.
    """
    end = decode([target.end])
    at = len(trained) - 1
    while at >= 0 and trained[at] != target.end:
        at -= 1
    answer = target.text.rpartition(CLOSE)[2].strip()[-NEEDLE:]
    if at < 0 or not decode(trained[:at]).rstrip().endswith(answer):
        after = text.rpartition(target.text)[2].strip() if target.text in text else ""
        if after:
            message = f"the answer ends with {shown(after)}, the template with {end}"
            return [Violation("wrong-end", message)]
        message = f"{end} is not trained on after the answer: the student would not stop"
        return [Violation("end-missing", message)]
    if at < len(trained) - 1:
        message = f"{shown(decode(trained[at + 1 :]))} is trained on after {end}"
        return [Violation("trained-behind-end", message)]
    if target.end in trained[:at] and not whole:
        return [Violation("end-inside", f"{end} is within trace or answer, too")]
    return []


def _think_block(
    prompt: str, text: str, target: Target, decode: Callable[[list[int]], str]
) -> Violation | None:
    """Return the fault of a row without exactly one think block; none is allowed without a trace.

    text: follows `prompt`, if that is empty, or should begin with it. Tags within the prompt, of
    earlier turns and of instructions, are those that serving shows; only an opener at its end
    belongs to the block.
    """
    is_open = opens_think(decode(list(target.prompt[-OPENER_TOKENS:])))
    opened = text.count(OPEN) - prompt.count(OPEN) + is_open
    closed = text.count(CLOSE) - prompt.count(CLOSE)
    if opened == closed and (opened == 1 or (opened == 0 and not target.trace)):
        return None
    code = "doubled-think" if max(opened, closed) > 1 else "broken-think"
    return Violation(code, f"{OPEN} comes {opened} times, {CLOSE} {closed} times")


def _of_prompt(
    ids: list[int], first: int, decode: Callable[[list[int]], str], target: Target
) -> Violation:
    """Return the fault of a row whose prompt is trained on, or is not what serving shows."""
    is_served = list(ids[: len(target.prompt)]) == list(target.prompt)
    if is_served and first > len(target.prompt):
        left_out = shown(decode(ids[len(target.prompt) : first]))
        return Violation("start-missing", f"{left_out}, which serving generates, is not trained on")
    if first == 0 or is_served:
        return Violation(
            "prompt-trained", f"the prompt is trained on, {shown(decode(ids[first:]))}"
        )
    text, wanted = decode(ids[:first]), decode(list(target.prompt))
    message = (
        f"before the first label is {shown(text, len(text))}, "
        f"but serving shows {shown(wanted, len(wanted))}"
    )
    return Violation("prompt-differs", message)


def shown(text: str, at: int = 0) -> str:
    """Return up to SHOWN characters of a text around character `at`, escaped."""
    start = max(0, min(at, len(text)) - SHOWN // 2)
    part = text[start : start + SHOWN]
    left, right = "..." if start else "", "..." if start + SHOWN < len(text) else ""
    return f"{left}{part!r}{right}"
