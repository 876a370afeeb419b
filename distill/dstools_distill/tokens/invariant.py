"""The check of a tokenized row: decode its labels, and compare them with what it should train on.

Masking is by position, so a row stays good where the end token is also the pad token.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think

IGNORED = -100  # the label of a token that is not trained on
OPENER_TOKENS = 16  # the last ones of a prompt, which hold "<think>" and line feeds
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


def broken_check(decode: Callable[[list[int]], str], row: Trained, target: Target) -> str:
    """Return the first of CHECKS that a row breaks; "" for a good one.

    `decode` must keep special tokens. No block is needed without a trace. Tags within the prompt,
    of earlier turns and of instructions, are those that serving shows; only an opener at its end
    belongs to the block. A row that is cut off lacks a part of the text.
    """
    ids, labels = row
    first = next((n for n, label in enumerate(labels) if label != IGNORED), len(ids))
    tail = ids[first:]
    at_prompt, at_text, at_block, at_end, _ = CHECKS
    if ids[:first] != list(target.prompt):
        return at_prompt
    if labels[first:] != tail or decode(tail) != target.text + decode([target.end]):
        return at_text
    if target.end not in tail or tail.index(target.end) != len(tail) - 1:
        return at_end
    is_open = opens_think(decode(list(target.prompt[-OPENER_TOKENS:])))
    opened, closed = target.text.count(OPEN) + is_open, target.text.count(CLOSE)
    is_one = opened == closed and (opened == 1 or (opened == 0 and not target.trace))
    return "" if is_one else at_block
