"""LLaMA-Factory's rows have templates of its own, whatever the template of the tokenizer."""

from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens.invariant import IGNORED, Trained
from dstools_distill.tokens.llama_factory_rows import llama_factory_row, shares

ASK = {"role": "user", "content": "3+4?"}
THOUGHT = {"role": "assistant", "content": "<think>\n3+4=7\n</think>\n\n7"}
PLAIN = {"role": "assistant", "content": "7"}
TURN = "<｜User｜>3+4?<｜Assistant｜>"
BOS, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def masked(tokenizer: Any, row: Trained) -> str:
    """Return the text of a row with # for each token that is not trained on."""
    assert all(label in (token, IGNORED) for token, label in zip(row.ids, row.labels, strict=True))
    texts = ["#" if label == IGNORED else tokenizer.decode([label]) for label in row.labels]
    return "".join(texts).lstrip("#")


def test_a_row_is_prompt_trace_answer_and_end_with_the_prompt_masked(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("sample-v3")
    row = llama_factory_row(tokenizer, {"template": "deepseek3"}, [ASK, THOUGHT])
    prompt = tokenizer.encode(BOS + TURN, add_special_tokens=False)
    target = tokenizer.encode(THOUGHT["content"] + END, add_special_tokens=False)
    assert row == (prompt + target, [IGNORED] * len(prompt) + target)


@pytest.mark.parametrize(
    ("system", "config", "shown"),
    [
        (None, {}, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        (None, {"default_system": "Be brief."}, "Be brief."),
        ("Be kind.", {"default_system": "Be brief."}, "Be kind."),
    ],
)
def test_the_system_message_is_the_conversations_or_the_configs_or_the_templates(
    tokenizer_of: Any, system: str | None, config: dict[str, str], shown: str
) -> None:
    tokenizer = tokenizer_of("qwen2.5")
    first = [] if system is None else [{"role": "system", "content": system}]
    row = llama_factory_row(tokenizer, config | {"template": "qwen"}, [*first, ASK, PLAIN])
    assert tokenizer.decode(row.ids) == (
        f"<|im_start|>system\n{shown}<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({}, "7" + END + "#" * 9 + "7" + END),
        ({"mask_history": True}, "7" + END),
        ({"train_on_prompt": True}, BOS + TURN + "7" + END + TURN + "7" + END),
    ],
)
def test_which_turns_are_trained_on(
    tokenizer_of: Any, config: dict[str, bool], trained: str
) -> None:
    tokenizer = tokenizer_of("sample-v3")
    turns = [ASK, PLAIN, ASK, PLAIN]
    row = llama_factory_row(tokenizer, {"template": "deepseek3"} | config, turns)
    width = len(tokenizer.encode(TURN, add_special_tokens=False))
    assert masked(tokenizer, row) == trained.replace("#" * 9, "#" * width)
    assert tokenizer.decode(row.ids) == BOS + (TURN + "7" + END) * 2


@pytest.mark.parametrize(
    ("answer", "config", "target"),
    [
        (THOUGHT, {}, THOUGHT["content"]),
        (THOUGHT, {"enable_thinking": False}, "<think>\n\n</think>\n\n7"),
        (PLAIN, {}, "<think>\n\n</think>\n\n7"),
    ],
)
def test_a_template_that_thinks_writes_a_block_around_the_trace_or_an_empty_one(
    tokenizer_of: Any, answer: dict[str, str], config: dict[str, bool], target: str
) -> None:
    tokenizer = tokenizer_of("sample-v3")
    row = llama_factory_row(tokenizer, {"template": "deepseekr1"} | config, [ASK, answer])
    assert masked(tokenizer, row) == target + END


def test_turns_beyond_cutoff_len_are_cut_or_left_out(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("sample-v3")
    whole = llama_factory_row(tokenizer, {"template": "deepseek3"}, [ASK, PLAIN])
    twice = [ASK, PLAIN, ASK, PLAIN]
    for cutoff in (len(whole.ids), len(whole.ids) + 3):
        row = llama_factory_row(tokenizer, {"template": "deepseek3", "cutoff_len": cutoff}, twice)
        assert len(row.ids) == cutoff
        assert row.ids[: len(whole.ids)] == whole.ids


def test_a_template_that_is_not_known_is_refused_with_the_known_ones(tokenizer_of: Any) -> None:
    with pytest.raises(DstoolsError, match="template: None of LLaMA-Factory is not known") as error:
        llama_factory_row(tokenizer_of("sample-v3"), {}, [ASK, PLAIN])
    assert error.value.hint == (
        "known are chatml, qwen, qwen3, qwen3_nothink, llama3, deepseek3, deepseekr1"
    )


@pytest.mark.parametrize(
    ("source", "target", "left"),
    [
        (10, 5000, (10, 2038)),  # the prompt is short: the target is cut
        (2000, 100, (1948, 100)),  # the target is short: the prompt is cut
        (3000, 3000, (1024, 1024)),  # both, in proportion
        (10, 10, (10, 10)),
    ],
)
def test_shares_of_a_cutoff_of_2048(source: int, target: int, left: tuple[int, int]) -> None:
    assert shares(source, target, 2048) == left
