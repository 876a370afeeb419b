"""A good row has no fault, and each way in which a row can go wrong has its own code."""

from typing import Any, NamedTuple

import pytest

from dstools_converters.model.tokenizer import end_token_id, prompt_ids
from dstools_distill.tokens.invariant import IGNORED, Target, shown, violations

MESSAGES = [{"role": "user", "content": "What is 12 + 29?"}]
TRACE = "2+9=11, carry 1\n"
TEXT = f"{TRACE}</think>\n\nThe answer is 41."


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

    def codes(self, ids: list[int], labels: list[int]) -> list[str]:
        faults = violations(self.tokenizer.decode, ids, labels, self.target)
        return [fault.code for fault in faults]

    def codes_from(self, start: int, ids: list[int]) -> list[str]:
        """Return the faults of ids whose labels begin at `start`."""
        return self.codes(ids, [IGNORED] * start + ids[start:])


@pytest.fixture
def good(tokenizer_of: Any) -> Good:
    tokenizer = tokenizer_of("deepseek", "r1-distill")
    prompt, end = prompt_ids(tokenizer, MESSAGES), end_token_id(tokenizer)
    ids = [*prompt, *tokenizer.encode(TEXT, add_special_tokens=False), end]
    return Good(tokenizer, ids, Target(prompt, TEXT, TRACE, end))


def test_a_good_row_has_no_fault(good: Good) -> None:
    assert good.codes(good.ids, good.labels) == []


def test_padding_with_the_end_token_after_a_good_row_is_not_trained_on(good: Good) -> None:
    """pad = end token: the place decides, so the one that ends the answer is still trained."""
    end = good.target.end
    assert good.tokenizer.pad_token_id == end
    assert good.codes(good.ids + [end] * 3, good.labels + [IGNORED] * 3) == []


def test_pad_tokens_masked_by_their_id_take_the_end_away(good: Good) -> None:
    labels = [IGNORED if label == good.target.end else label for label in good.labels]
    assert good.codes(good.ids, labels) == ["end-missing"]


def test_a_template_that_drops_the_trace_is_caught(good: Good, trl_template: Any) -> None:
    reply = {"role": "assistant", "content": f"<think>\n{TEXT}"}
    ids = good.tokenizer.apply_chat_template(
        [*MESSAGES, reply], chat_template=trl_template("deepseek_r1_distill")
    )["input_ids"]
    start = good.start - 2  # <think> and the line feed are gone
    assert good.codes_from(start, ids) == ["trace-lost", "prompt-differs"]


def test_an_answer_alone_is_caught_where_a_trace_is_wanted(good: Good) -> None:
    answer = [*good.encode("\n\nThe answer is 41."), good.target.end]
    assert good.codes_from(good.start, [*good.target.prompt, *answer]) == ["trace-lost"]


@pytest.mark.parametrize("kept", [2, 9, -2])
def test_a_cut_row_is_caught(good: Good, kept: int) -> None:
    cut = good.ids[: good.start + kept] if kept > 0 else good.ids[:kept]
    assert good.codes_from(good.start, cut) == ["truncated", "end-missing"]


def test_a_missing_end_token_is_caught(good: Good) -> None:
    assert good.codes(good.ids[:-1], good.labels[:-1]) == ["end-missing"]


def test_an_end_token_that_is_not_the_templates_is_caught(good: Good) -> None:
    other = good.tokenizer.convert_tokens_to_ids("<|EOT|>")
    assert good.codes_from(good.start, [*good.ids[:-1], other]) == ["wrong-end"]


def test_an_end_token_within_the_answer_is_caught(good: Good) -> None:
    text = TEXT.replace("is 41", "is <｜end▁of▁sentence｜>41")
    target = good.target._replace(text=text)
    ids = [*good.target.prompt, *good.encode(text), good.target.end]
    labels = [IGNORED] * good.start + ids[good.start :]
    faults = violations(good.tokenizer.decode, ids, labels, target)
    assert [fault.code for fault in faults] == ["end-inside"]


def test_an_opener_in_prompt_and_target_is_caught(good: Good) -> None:
    twice = [*good.target.prompt, *good.encode("<think>\n"), *good.ids[good.start :]]
    assert good.codes_from(good.start, twice) == ["doubled-think"]


def test_a_template_that_does_not_open_the_block_that_serving_opens_is_caught(good: Good) -> None:
    start = good.start - 2
    ids = good.ids[:start] + good.ids[start + 2 :]
    assert good.codes_from(start, ids) == ["broken-think", "prompt-differs"]


def test_a_good_row_for_another_text_is_still_checked_for_its_think_block(good: Good) -> None:
    """What the labels should be is no excuse: a target with two closers is broken too."""
    target = good.target._replace(text=f"{TEXT}</think>")
    ids = [*good.target.prompt, *good.encode(target.text), target.end]
    labels = [IGNORED] * good.start + ids[good.start :]
    [fault] = violations(good.tokenizer.decode, ids, labels, target)
    assert fault == ("doubled-think", "<think> comes 1 times, </think> 2 times")


def test_a_line_feed_trained_after_the_end_is_caught(good: Good) -> None:
    longer = good.ids + good.encode("\n")
    assert good.codes_from(good.start, longer) == ["trained-behind-end"]


def test_a_loss_on_the_prompt_is_caught(good: Good) -> None:
    assert good.codes_from(0, good.ids) == ["prompt-trained"]


def test_a_hole_in_the_labels_is_caught(good: Good) -> None:
    labels = good.labels
    labels[good.start + 3] = IGNORED
    assert good.codes(good.ids, labels) == ["trace-lost", "labels-gap"]


def test_labels_that_are_shifted_or_missing_are_caught(good: Good) -> None:
    assert good.codes(good.ids, [*good.labels[1:], IGNORED]) == ["labels-differ"]
    assert good.codes(good.ids, good.labels[:-1]) == ["labels-differ"]
    assert good.codes(good.ids, [IGNORED] * len(good.ids)) == ["no-labels"]


def test_changed_characters_are_named_with_their_place(good: Good) -> None:
    target = good.target._replace(text=TEXT.replace("2+9", "2+8"))
    [fault] = violations(good.tokenizer.decode, good.ids, good.labels, target)
    assert fault.code == "text-changed"
    # characters are counted from the first label; 60 are shown
    wanted = f"{TEXT.replace('2+9', '2+8')}<｜end▁of▁sentence｜>"
    assert fault.message == (
        f"at character 2 the labels decode to {shown(f'{TEXT}<｜end▁of▁sentence｜>')}, "
        f"not {shown(wanted)}"
    )


def test_a_prompt_that_serving_does_not_show_is_quoted_beside_the_one_that_it_shows(
    good: Good,
) -> None:
    # the last 30 characters of each
    other = prompt_ids(good.tokenizer, [{"role": "user", "content": "7"}])
    ids = [*other, *good.ids[good.start :]]
    labels = [IGNORED] * len(other) + ids[len(other) :]
    [fault] = violations(good.tokenizer.decode, ids, labels, good.target)
    assert fault == (
        "prompt-differs",
        "before the first label is ...'<｜User｜>7<｜Assistant｜><think>\\n', "
        "but serving shows ...' 12 + 29?<｜Assistant｜><think>\\n'",
    )


@pytest.mark.parametrize(
    ("at", "quoted"),
    [
        (0, f"{'a' * 50 + 'b' * 10!r}..."),
        (50, f"...{'a' * 30 + 'b' * 30!r}..."),
        (99, f"...{'b' * 31!r}"),
        (999, f"...{'b' * 30!r}"),
    ],
)
def test_sixty_characters_around_a_place_are_shown(at: int, quoted: str) -> None:
    assert shown("a" * 50 + "b" * 50, at) == quoted


def test_a_short_text_is_shown_whole_and_escaped() -> None:
    assert shown("a\n'b'\t") == "\"a\\n'b'\\t\""
