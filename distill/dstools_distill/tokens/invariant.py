"""What training on a row of ids and labels means, read back from the ids, and what is wrong with it.

A row is good where: what is before the first label is what serving shows for the prompt; the labels
decode to trace, delimiters, answer and end token, byte for byte; one think block is open and closed; the
end token is the last label, and the only one of its kind. Masking goes by position: that the end token
is also the pad token changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dstools_distill.records import CLOSE, OPEN

IGNORED = -100  # a label that is not trained on
SHOWN = 60  # characters of a text in a message
NEEDLE = 32  # characters of a trace that are searched for in what was cut
CHECKS = (
    "the prompt is what serving shows, and is not trained on",
    "the labels decode to trace, delimiters, answer and end token, byte for byte",
    "one think block is opened and closed",
    "the end token is the last label, and the only one",
    "nothing is cut off",
)


class Target(NamedTuple):
    """What a row is to train on."""

    prompt: Sequence[int]  # ids that serving shows
    text: str  # trace, delimiters and answer, without the end token
    trace: str  # within `text`; "" where there is none
    end: int  # the token that ends an answer


class Violation(NamedTuple):
    """One way in which a row is not what it should be."""

    code: str  # stable
    message: str


def violations(
    decode: Callable[[list[int]], str], ids: list[int], labels: list[int], target: Target
) -> list[Violation]:
    """Return all that is wrong with a row [n] and its labels [n], the worst first; [] for a good row.

    `decode` keeps special tokens. Codes: no-labels, labels-differ, trace-lost, truncated, wrong-end,
    end-missing, end-inside, trained-behind-end, doubled-think, broken-think, labels-gap, prompt-trained,
    prompt-differs, text-changed.
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
        block = _think_block(decode(ids[:first]) + wanted, is_wanted=bool(target.trace))
        return [block] if block else []
    trained = [n for n, label in enumerate(labels) if label != IGNORED]
    if not trained:
        return [Violation("no-labels", "nothing of the row is trained on")]
    if len(ids) != len(labels) or any(ids[n] != labels[n] for n in trained):
        return [Violation("labels-differ", "the labels are not the ids in their places")]
    behind = trained[-1] + 1
    found = [ids[n] for n in trained]
    said = decode(found)
    wrong = [
        *_of_text(said, target),
        *_of_end(found, said, decode, target, whole=first < len(target.prompt)),
    ]
    block = _think_block(decode(ids), is_wanted=bool(target.trace))
    if block and not any(each.code in ("trace-lost", "truncated") for each in wrong):
        wrong.append(block)
    if behind - first != len(trained):
        wrong.append(Violation("labels-gap", "some tokens within the target are not trained on"))
    if list(ids[:first]) != list(target.prompt):
        wrong.append(_of_prompt(ids, first, decode, target))
    if said != wanted and not wrong:
        at = next((n for n, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), 0)
        message = (
            f"at character {at} the labels decode to {shown(said, at)}, not {shown(wanted, at)}"
        )
        wrong.append(Violation("text-changed", message))
    assert wrong or said == wanted, "a row that is not right has nothing wrong with it"
    return wrong


def _of_text(said: str, target: Target) -> list[Violation]:
    """Return whether the target is cut, or lacks the trace."""
    if target.text in said:
        return []
    needle = (target.trace or target.text)[:NEEDLE]
    at, place = target.text.find(needle), said.find(needle)
    if target.text.startswith(said):
        at = place = 0
    rest = target.text[at:]
    if place >= 0 and rest.startswith(said[place:]):
        kept = len(said) - place
        message = (
            f"the target is cut after {kept} of {len(rest)} characters, {shown(said, len(said))}"
        )
        return [Violation("truncated", message)]
    trace = target.trace.strip()
    if trace and trace[:NEEDLE] not in said and trace[-NEEDLE:] not in said:
        message = f"the trace of {len(trace)} characters is not trained on, only {shown(said)}"
        return [Violation("trace-lost", message)]
    return []


def _of_end(
    found: list[int], said: str, decode: Callable[[list[int]], str], target: Target, *, whole: bool
) -> list[Violation]:
    """Return whether the end token is missing behind the answer, or is not the last, or comes before.

    whole: the prompt is trained on too, where end tokens of other turns may stand.
    """
    end = decode([target.end])
    at = len(found) - 1
    while at >= 0 and found[at] != target.end:
        at -= 1
    answer = target.text.rpartition(CLOSE)[2].rstrip()[-NEEDLE:]
    if at < 0 or not decode(found[:at]).rstrip().endswith(answer):
        behind = said.rpartition(target.text)[2].strip() if target.text in said else ""
        if behind:
            message = f"the answer ends with {shown(behind)}, the template with {end}"
            return [Violation("wrong-end", message)]
        message = f"{end} is not trained on behind the answer: the student would not stop"
        return [Violation("end-missing", message)]
    if at < len(found) - 1:
        message = f"behind {end} something is trained on, {shown(decode(found[at + 1 :]))}"
        return [Violation("trained-behind-end", message)]
    if target.end in found[:at] and not whole:
        return [Violation("end-inside", f"{end} stands within trace or answer, too")]
    return []


def _think_block(text: str, *, is_wanted: bool) -> Violation | None:
    """Return what is wrong with the think blocks of a row: one, or where none is wanted at most one."""
    opened, closed = text.count(OPEN), text.count(CLOSE)
    if opened == closed and (opened == 1 or (opened == 0 and not is_wanted)):
        return None
    code = "doubled-think" if max(opened, closed) > 1 else "broken-think"
    return Violation(code, f"{OPEN} comes {opened} times, {CLOSE} {closed} times")


def _of_prompt(
    ids: list[int], first: int, decode: Callable[[list[int]], str], target: Target
) -> Violation:
    if first == 0 or list(ids[: len(target.prompt)]) == list(target.prompt):
        return Violation(
            "prompt-trained", f"the prompt is trained on, {shown(decode(ids[first:]))}"
        )
    said, wanted = decode(ids[:first]), decode(list(target.prompt))
    message = f"before the first label stands {shown(said, len(said))}, serving shows {shown(wanted, len(wanted))}"
    return Violation("prompt-differs", message)


def shown(text: str, at: int = 0) -> str:
    """Return the part of a text around a character, escaped."""
    start = max(0, min(at, len(text)) - SHOWN // 2)
    part = text[start : start + SHOWN]
    left, right = "..." if start else "", "..." if start + SHOWN < len(text) else ""
    return f"{left}{part!r}{right}"
