"""The reasoning in an answer's text: the think block of DeepSeek-R1, Qwen3 and others.

A prompt is what serving renders: the chat template with its generation prompt. An answer follows
it as the model generates it, and is not put through the template, because many templates cut the
reasoning out.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from dstools_converters.errors import printable

OPEN, CLOSE = "<think>", "</think>"
IN_TAGS = "begins with "  # and a tag: the name of a count of answers
OTHER_TAGS = re.compile(r"\s*<([^<>/\s]{1,40})>.*</\1>", re.DOTALL)


class Parts(NamedTuple):
    """The two parts of an answer's text: raw == join(parts, prefilled), but for leading blanks."""

    reasoning: str | None  # between the tags, verbatim; None: not one well-formed think block
    answer: str  # all after the closing tag, verbatim; the whole text if reasoning is None


def split(raw: str, prefilled: bool) -> Parts:
    """Divide a text at its one think block; `prefilled`: the opening tag is part of the prompt.

    A block is well formed if the text begins with the opening tag, a closing tag follows, and both
    occur once. White space before the opening tag does not count, and is left out; other spellings
    of the tags do not count.
    """
    opens, closes = raw.count(OPEN), raw.count(CLOSE)
    head, _, rest = ("", "", raw) if prefilled else raw.partition(OPEN)
    if opens != (0 if prefilled else 1) or closes != 1 or head.strip():
        return Parts(None, raw)
    reasoning, closer, answer = rest.partition(CLOSE)
    return Parts(reasoning, answer) if closer else Parts(None, raw)


def after_thought(raw: str, prefilled: bool) -> str:
    """Return all after the last closing tag; "" where a block is still open at the end."""
    _, closer, rest = raw.rpartition(CLOSE)
    return "" if OPEN in rest or (prefilled and not closer) else rest


def join(parts: Parts, prefilled: bool) -> str:
    """Return the text that `split` divided, without white space before the opening tag."""
    if parts.reasoning is None:
        return parts.answer
    return f"{'' if prefilled else OPEN}{parts.reasoning}{CLOSE}{parts.answer}"


def without_tags(trace: str) -> str:
    """Return a trace without the think tags around the whole of it, which some parsers keep.

    It is returned as it is where it has none there, or others inside.
    """
    inner = trace.strip().removeprefix(OPEN).removesuffix(CLOSE)
    has_tags = inner != trace.strip() and OPEN not in inner and CLOSE not in inner
    return inner if has_tags else trace


def thought(reasoning: Any, answer: str, prefilled: bool) -> str:
    """Return one text for reasoning and answer that a parser or a data set keeps separately.

    Many of them drop the line feeds next to the tags. Missing ones are added as in DeepSeek-R1,
    "<think>\\n...\\n</think>\\n\\n...", so that a trace is the same text wherever it comes from;
    existing ones are kept. `prefilled`: the opening tag and its line feed are part of the prompt.
    Without an answer the trace may be unfinished, so it is not closed. `reasoning` is a JSON value;
    anything but a non-empty string counts as no reasoning.
    """
    if not isinstance(reasoning, str) or not reasoning:
        return answer
    before = reasoning.removesuffix(reasoning.lstrip())
    after = reasoning.removeprefix(reasoning.rstrip())
    between = answer.removesuffix(answer.lstrip())
    opener = "" if prefilled else OPEN + "\n" * ("\n" not in before)
    closer = "\n" * ("\n" not in after) + CLOSE + "\n\n" * ("\n" not in between)
    return f"{opener}{reasoning}{closer if answer else ''}{answer}"


def other_tag(text: str) -> str:
    """Return the name of the tag other than think that a text begins with and closes, or ""."""
    found = OTHER_TAGS.match(text)
    return found[1] if found and found[1] != "think" else ""


def tag_hint(counts: Iterable[str]) -> str:
    """Return what to do about answers in other tags, by the names of their counts; "" if none."""
    tags = sorted(name.removeprefix(IN_TAGS) for name in counts if name.startswith(IN_TAGS))
    names = ", ".join(f"<{printable(tag)}>" for tag in tags[:3])
    return (
        f"answers begin with {names}: put their traces between {OPEN} and {CLOSE}" if tags else ""
    )


def opens_think(prompt: str) -> bool:
    """Return whether a prompt ends with an open think block."""
    return prompt.rstrip().endswith(OPEN)


def plain_opening(prompt: str, before: str) -> str:
    """Return what belongs between a prompt and an answer that has no reasoning.

    `before` is what the template writes before an answer: the prompt, and for Qwen3 an empty block
    as well. Where the prompt opens a block, the opening closes it.
    """
    if opens_think(prompt):
        return "\n</think>\n\n" if prompt.endswith("\n") else "\n\n</think>\n\n"
    return before.removeprefix(prompt) if before.startswith(prompt) else ""


class Answer(NamedTuple):
    """What follows a prompt, without the end token."""

    text: str
    trace: str  # the part of `text` before the closing tag, without the opening one; "" if none


def answer_after(prompt: str, parts: Parts, plain: str) -> Answer:
    """Return think block and answer as they follow `prompt`, which may open the block.

    plain: the `plain_opening` of the template, written where the answer has no reasoning.
    """
    reasoning, answer = parts
    if reasoning is None or not reasoning.strip():
        # the line feeds after </think> belong to the trace
        return Answer(plain + (answer if reasoning is None else answer.lstrip("\n")), "")
    if opens_think(prompt):
        trace = reasoning.removeprefix(prompt[prompt.rindex(OPEN) + len(OPEN) :])
        return Answer(f"{trace}{CLOSE}{answer}", trace)
    return Answer(f"{OPEN}{reasoning}{CLOSE}{answer}", reasoning)
