"""A reply becomes one text, with the trace in it once, wherever the server put it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.model.reasoning import split
from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers.reply import NoCompletionError, UnreadError, answer, tokens
from dstools_distill.teachers.teacher import Answer

FOLDER = Path(__file__).parents[2] / "cases" / "distill"
CASES = [
    json.loads(line)
    for name in ("responses.jsonl", "variants/responses.jsonl")
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()
]
PLAIN = Generate(backend="openai", model="m", seed=5, max_tokens=9)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("reasoning", "content", "prefill", "raw", "prefilled"),
    [
        ("\nwhy\n", "\n\n4", False, "<think>\nwhy\n</think>\n\n4", False),
        ("why\n", "\n\n4", True, "why\n</think>\n\n4", True),
        ("why", "4", False, "<think>\nwhy\n</think>\n\n4", False),  # DeepSeek's API strips
        ("why", "4", True, "why\n</think>\n\n4", True),
        ("why\n", "\n\n4", False, "<think>\nwhy\n</think>\n\n4", False),  # the template opened it
        ("\n\n", "\n\n4", False, "<think>\n\n</think>\n\n4", False),
        (" \nwhy \r\n", "\n4", False, "<think> \nwhy \r\n</think>\n4", False),
        (None, "<think>why</think>4", False, "<think>why</think>4", False),
        (None, "why</think>4", False, "why</think>4", True),  # the server's template opened it
        (None, "<think>\nwhy</think>4", True, "why</think>4", True),  # llama.cpp repeats it
        ("never closed", None, False, "<think>\nnever closed", False),
        ("never closed", "", False, "<think>\nnever closed", False),
        (None, "4", False, "4", False),
        ("", "4", False, "4", False),
        (None, "a</think>b</think>c", False, "a</think>b</think>c", False),
    ],
)
def test_a_trace_that_the_servers_parser_moved_is_put_back(
    field: str, reasoning: str | None, content: str | None, prefill: bool, raw: str, prefilled: bool
) -> None:
    message = {"role": "assistant", "content": content, field: reasoning}
    body = {"choices": [{"message": message, "finish_reason": "length"}]}
    sample = answer(body, replace(PLAIN, prefill_think=prefill))
    assert sample == Answer(raw, "length", prefilled, None)


@pytest.mark.parametrize("body", ["text", None, {}, {"choices": []}, {"choices": [{"text": "x"}]}])
def test_a_body_that_is_not_a_chat_completion_is_refused(body: Any) -> None:
    is_paid = isinstance(body, dict) and "choices" in body
    with pytest.raises(UnreadError if is_paid else NoCompletionError):
        answer(body, PLAIN)


def test_more_choices_than_were_asked_for_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    body = {"choices": [{"message": {"content": text}} for text in "4567"]}
    assert [answer(body, PLAIN).raw for _ in range(3)] == ["4"] * 3
    assert caplog.text.count("a reply holds 4 choices, and one was asked for") == 1


def test_a_completion_that_came_as_text_is_read_as_one_that_did_not() -> None:
    body = {"choices": [{"message": {"content": "4"}}]}
    assert answer(json.dumps(body), PLAIN) == answer(body, PLAIN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["kind"]))
def test_a_reply_of_a_public_server_is_read(case: dict[str, Any]) -> None:
    settings = Generate(backend="openai")
    if case.get("error"):
        with pytest.raises((NoCompletionError, UnreadError)):
            answer(case["body"], settings)
        return
    sample = answer(case["body"], settings)
    parts = split(sample.raw, sample.prefilled_think)
    assert sample.finish_reason == case.get("finish", "stop")
    assert case.get("reasoning_has", "") in (parts.reasoning or "")
    assert case.get("answer_has", "") in parts.answer


@pytest.mark.parametrize("content", [{"text": "4"}, [{"type": "image_url"}], 4])
def test_a_completion_whose_content_is_of_no_known_form_is_told_apart(content: Any) -> None:
    with pytest.raises(UnreadError, match="the content is not a string"):
        answer({"choices": [{"message": {"content": content}}]}, PLAIN)


def test_half_a_character_is_the_end_of_a_cut_answer_and_damage_elsewhere() -> None:
    def body(reason: str | None) -> Any:
        choice = {"message": {"content": "4 \ud83d"}, "finish_reason": reason}
        return json.loads(json.dumps({"choices": [choice]}))

    assert answer(body("length"), PLAIN).raw == "4 \N{REPLACEMENT CHARACTER}"
    for reason in ("stop", None):
        with pytest.raises(UnreadError, match="the content holds half of a character"):
            answer(body(reason), PLAIN)


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (
            {"content": "4", "reasoning_content": "a", "reasoning": "b"},
            "reasoning_content and reasoning",
        ),
        (
            {"content": [{"type": "thinking", "thinking": "a"}], "reasoning": "b"},
            "content and reasoning",
        ),
    ],
)
def test_traces_that_differ_are_not_chosen_from(message: Any, where: str) -> None:
    with pytest.raises(UnreadError, match=f"the content comes with traces that differ, in {where}"):
        answer({"choices": [{"message": message}]}, PLAIN)
    message["reasoning"] = "low"  # a mode
    assert answer({"choices": [{"message": message}]}, PLAIN).raw.startswith("<think>\na")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "<think>\nwhy\n</think>\n\n4", "reasoning_content": "because"},
        {"content": "<think>\nwhy", "reasoning": "because"},
        {"content": "why</think>4", "reasoning_content": "because"},  # the template opened it
        {
            "content": "<think>\nwhy\n</think>\n\n4",
            "reasoning_details": [{"type": "reasoning.text", "text": "because"}],
        },
    ],
)
def test_a_trace_beside_another_one_in_the_content_is_not_chosen(message: Any) -> None:
    where = list(message)[-1]
    with pytest.raises(UnreadError, match=f"a trace of its own, and another one in {where}"):
        answer({"choices": [{"message": message}]}, PLAIN)


@pytest.mark.parametrize("tagged", ["<think>\nwhy\n</think>", "<think>why</think>\n", "<think>why"])
@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "parts", "reasoning_details"])
def test_think_tags_around_a_whole_trace_are_written_once(form: str, tagged: str) -> None:
    message: dict[str, Any] = {"content": "4", form: tagged}
    if form == "parts":
        parts = [{"type": "thinking", "thinking": tagged}, {"type": "text", "text": "4"}]
        message = {"content": parts}
    elif form == "reasoning_details":
        message[form] = [{"type": "reasoning.text", "text": tagged}]
    body = {"choices": [{"message": message | {"thinking": "why"}}]}
    raws = {answer(body, PLAIN).raw, answer({"choices": [{"message": message}]}, PLAIN).raw}
    assert raws == {"<think>\nwhy\n</think>\n\n4"}


def test_a_trace_in_details_alone_is_read_and_neither_summary_nor_ciphertext() -> None:
    pieces = [
        {"type": "reasoning.text", "text": "w", "signature": None},
        {"type": "reasoning.text", "text": "hy"},
        {"type": "reasoning.summary", "summary": "It thought."},
        {"type": "reasoning.encrypted", "data": "xx"},
    ]
    message = {"content": "4", "reasoning": None, "reasoning_details": pieces}
    assert answer({"choices": [{"message": message}]}, PLAIN).raw == "<think>\nwhy\n</think>\n\n4"
    message["reasoning_details"] = pieces[2:]
    assert answer({"choices": [{"message": message}]}, PLAIN).raw == "4"


@pytest.mark.parametrize("opener", ["<think>\n", "<think>", "\n<think>\n"])
def test_a_prefilled_opener_that_the_server_repeats_is_removed(opener: str) -> None:
    body = {"choices": [{"message": {"content": f"{opener}why</think>4"}}]}
    sample = answer(body, replace(PLAIN, prefill_think=True))
    assert (sample.raw, sample.prefilled_think) == ("why</think>4", True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"choices": ["\udce9"]}', "is not UTF-8"),
        ("data: {}", "is a stream"),
        (": keep-alive\n\ndata: {}", "is a stream"),
        ("event: message\ndata: {}", "is a stream"),
    ],
)
def test_the_text_of_a_reply_that_was_kept_says_again_why_it_was_not_read(
    text: str, kind: str
) -> None:
    with pytest.raises(UnreadError, match=f"the answer {kind}"):
        answer(text, PLAIN)


def test_an_answer_that_names_the_tags_is_not_a_second_trace() -> None:
    message = {"content": "Between <think> and </think>.", "reasoning_content": "why"}
    raw = answer({"choices": [{"message": message}]}, PLAIN).raw
    assert raw == "<think>\nwhy\n</think>\n\nBetween <think> and </think>."


def test_a_refusal_is_an_answer_that_ended_so() -> None:
    message = {"content": None, "refusal": "I cannot help with that."}
    sample = answer({"choices": [{"message": message, "finish_reason": "stop"}]}, PLAIN)
    assert (sample.raw, sample.finish_reason) == ("I cannot help with that.", "refusal")


def test_a_trace_that_a_server_says_twice_is_put_there_once() -> None:
    message = {"content": "<think>\nwhy\n</think>\n\n4", "reasoning_content": "why"}
    assert answer({"choices": [{"message": message}]}, PLAIN).raw == message["content"]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, None),
        ({}, None),
        ({"total_tokens": 7}, None),
        ({"prompt_tokens": "3"}, None),
        ({"completion_tokens": 4, "cached_tokens": 2}, {"completion_tokens": 4}),
    ],
)
def test_a_usage_keeps_prompt_and_completion_tokens_alone(usage: Any, counts: Any) -> None:
    assert tokens(usage) == counts


def test_a_token_that_a_server_leaves_at_the_end_is_cut_off() -> None:
    message = {"role": "assistant", "content": "4<|eot_id|>\n", "reasoning_content": "why"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    sample = answer(body, PLAIN)
    assert sample == Answer(
        "<think>\nwhy\n</think>\n\n4", "stop", False, None, end_token="<|eot_id|>"
    )
