"""Conversations: turns in the roles of chat templates, and the traces of their answers."""

import json

import pytest

from dstools_distill.data.columns import BadRowError, Columns
from dstools_distill.data.conversations import (
    content_of,
    conversation,
    own_trace,
    refuse_rendered,
    role_of,
    split_last_question,
    user_turn,
    with_trace,
)

WHOLE = "<think>\nTwo and two.\n</think>\n\n4"
IN_SECTIONS = (
    "<|begin_of_thought|>\n\nTwo and two.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>"
)


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": WHOLE},
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
        {
            "role": "model",
            "content": [{"type": "thinking", "thinking": "Two and two."}, {"text": "4"}],
        },
        {"from": "gpt", "value": WHOLE},
        {"from": "assistant", "value": IN_SECTIONS},
        {"from": "assistant", "value": IN_SECTIONS.removesuffix("<|end_of_solution|>")},
    ],
)
def test_an_answer_is_read_with_its_trace_wherever_that_is(answer: dict[str, object]) -> None:
    turns = conversation([{"from": "human", "value": "2+2?"}, answer], "conversations")
    assert turns == [user_turn("2+2?"), {"role": "assistant", "content": WHOLE}]
    assert split_last_question(turns) == ([user_turn("2+2?")], WHOLE)


def test_think_tags_around_a_whole_trace_are_written_once() -> None:
    assert with_trace("4", "<think>\nTwo and two.\n</think>\n", "x") == WHOLE


def test_sections_that_are_cut_are_left_as_they_are() -> None:
    cut = IN_SECTIONS.partition("<|begin_of_solution|>")[0]
    assert with_trace(cut, None, "x") == cut


def test_parts_and_roles_are_found_under_the_keys_of_either_form() -> None:
    assert [content_of(turn) for turn in ({"value": "a"}, {"text": "b"}, "c", {})] == [
        *("a", "b", "c", "")
    ]
    assert [role_of(turn) for turn in ({"from": "gpt"}, {"role": "user"}, "c")] == [
        "gpt",
        "user",
        "",
    ]


def test_a_conversation_may_be_json() -> None:
    turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": WHOLE}]
    assert conversation(json.dumps(turns), "x") == conversation(turns, "x")
    with pytest.raises(BadRowError, match="x is not a list of turns"):
        conversation("[cut", "x")


def test_a_last_answer_of_no_weight_is_refused() -> None:
    user = {"role": "user", "content": "2+2?"}
    turns = [user, {"role": "assistant", "content": "5", "weight": 0}, user]
    answer = {"role": "assistant", "content": "4", "weight": 1}
    assert len(conversation([*turns, answer], "x")) == 4  # what is in the prompt is never trained
    with pytest.raises(BadRowError, match=r"x\[3\]\.weight is 0: .*") as caught:
        conversation([*turns, answer | {"weight": 0}], "x")
    assert "leave such rows out" in caught.value.hint


def test_two_traces_of_one_answer_are_refused() -> None:
    assert own_trace(Columns({"thinking": "a b", "reasoning": "a  b"})) == "a  b"
    with pytest.raises(BadRowError, match="either may be the trace"):
        own_trace(Columns({"thinking": "a b", "reasoning": "b c"}))


def test_a_rendered_prompt_is_refused_by_the_mark_that_tells_it() -> None:
    user = {"role": "user", "content": "<s>[INST] 6*7? [/INST]"}
    with pytest.raises(BadRowError, match=r"the question is rendered: it has '\[INST\]'"):
        refuse_rendered([user])
    refuse_rendered([user | {"role": "assistant"}, user | {"content": "What is [INST]?"}])
