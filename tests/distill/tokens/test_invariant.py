"""A good row breaks no check, and each way in which a row can go wrong breaks one."""

from typing import Any, NamedTuple

import pytest

from dstools_converters.model.tokenizer import end_token_id, prompt_ids
from dstools_distill.tokens.invariant import CHECKS, IGNORED, Target, Trained, broken_check

MESSAGES = [{"role": "user", "content": "What is 12 + 29?"}]
TRACE = "2+9=11, carry 1\n"
TEXT = f"{TRACE}</think>\n\nThe answer is 41."
AT_PROMPT, AT_TEXT, AT_BLOCK, AT_END, _ = CHECKS


class Good(NamedTuple):
    """A good row of the R1 template, which opens the think block in the prompt."""

    tokenizer: Any
    ids: list[int]
    target: Target

    @property
    def start(self) -> int:
        return len(self.target.prompt)

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.start + self.ids[self.start :]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def broken(self, ids: list[int], labels: list[int]) -> str:
        return broken_check(self.tokenizer.decode, Trained(ids, labels), self.target)

    def broken_from(self, start: int, ids: list[int]) -> str:
        """Return the check that ids whose labels begin at `start` break."""
        return self.broken(ids, [IGNORED] * start + ids[start:])

    def broken_of(self, target: Target) -> str:
        """Return the check that the ids of a target break."""
        ids = [*target.prompt, *self.encode(target.text), target.end]
        row = Trained(ids, [IGNORED] * self.start + ids[self.start :])
        return broken_check(self.tokenizer.decode, row, target)


@pytest.fixture
def good(tokenizer_of: Any) -> Good:
    tokenizer = tokenizer_of("deepseek", "r1-distill")
    prompt, end = prompt_ids(tokenizer, MESSAGES), end_token_id(tokenizer)
    ids = [*prompt, *tokenizer.encode(TEXT, add_special_tokens=False), end]
    return Good(tokenizer, ids, Target(prompt, TEXT, TRACE, end))


def test_a_good_row_breaks_no_check(good: Good) -> None:
    assert good.broken(good.ids, good.labels) == ""
    assert good.broken_of(good.target) == ""


def test_a_prompt_that_is_trained_on_or_is_not_what_serving_shows_is_caught(good: Good) -> None:
    opener_gone = good.ids[: good.start - 2] + good.ids[good.start :]
    assert good.broken_from(0, good.ids) == AT_PROMPT
    assert good.broken_from(good.start + 1, good.ids) == AT_PROMPT
    assert good.broken_from(good.start - 2, opener_gone) == AT_PROMPT
    assert good.broken_from(good.start, [*good.ids[: good.start - 1], *good.ids[-9:]]) == AT_PROMPT


@pytest.mark.parametrize("kept", [2, 9, -2, -1])
def test_a_cut_row_is_caught(good: Good, kept: int) -> None:
    cut = good.ids[: good.start + kept] if kept > 0 else good.ids[:kept]
    assert good.broken_from(good.start, cut) == AT_TEXT


def test_pad_tokens_masked_by_their_id_take_the_end_away(good: Good) -> None:
    labels = [IGNORED if label == good.target.end else label for label in good.labels]
    assert good.tokenizer.pad_token_id == good.target.end
    assert good.broken(good.ids, labels) == AT_TEXT


def test_labels_with_a_hole_or_of_other_tokens_or_none_are_caught(good: Good) -> None:
    labels = good.labels
    labels[good.start + 3] = IGNORED
    assert good.broken(good.ids, labels) == AT_TEXT
    assert good.broken(good.ids, good.labels[:-1]) == AT_TEXT
    assert good.broken(good.ids, [*good.labels[:-1], good.target.end + 1]) == AT_TEXT
    assert good.broken(good.ids, [IGNORED] * len(good.ids)) == AT_PROMPT


def test_a_changed_character_and_a_line_feed_after_the_end_are_caught(good: Good) -> None:
    changed = good.encode(TEXT.replace("2+9", "2+8"))
    assert good.broken_from(good.start, [*good.target.prompt, *changed, good.target.end]) == AT_TEXT
    assert good.broken_from(good.start, good.ids + good.encode("\n")) == AT_TEXT


def test_an_end_token_within_the_answer_is_caught(good: Good) -> None:
    text = TEXT.replace("is 41", "is <｜end▁of▁sentence｜>41")
    assert good.broken_of(good.target._replace(text=text)) == AT_END


@pytest.mark.parametrize("text", [f"{TEXT}</think>", f"<think>\n{TEXT}", "The answer is 41."])
def test_a_target_without_exactly_one_think_block_is_caught(good: Good, text: str) -> None:
    """The prompt opens the block, and what the labels should be is no excuse."""
    assert good.broken_of(good.target._replace(text=text)) == AT_BLOCK


def test_an_answer_without_a_trace_needs_no_block_where_the_prompt_opens_none(good: Good) -> None:
    closed = good.target._replace(prompt=good.target.prompt[:-2], text="41", trace="")
    ids = [*closed.prompt, *good.encode("41"), closed.end]
    row = Trained(ids, [IGNORED] * len(closed.prompt) + ids[len(closed.prompt) :])
    assert broken_check(good.tokenizer.decode, row, closed) == ""
    with_a_trace = closed._replace(trace="4")
    assert broken_check(good.tokenizer.decode, row, with_a_trace) == AT_BLOCK
