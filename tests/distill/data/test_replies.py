"""Tests of answers in a row: each comes with its trace and its end, the chosen one first."""

import json
from typing import Any

import pytest

from dstools_distill.data import forms
from dstools_distill.data.choices import BASES
from dstools_distill.data.columns import BadRowError
from dstools_distill.data.forms import Question
from dstools_distill.records import Reply

USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = "<think>\nTwo and two.\n</think>\n\n4"


def convert(row: dict[str, Any]) -> Question:
    return forms.convert(row, "auto", None, lambda: BASES)


OPEN_R1 = {  # the columns of OpenR1-Math-220k
    "problem": "What is 2 + 2?",
    "solution": r"It is $\boxed{4}$.",
    "answer": "4",
    "generations": ["<think>\n2 and 3.\n</think>\n\n5", ANSWER, "<think>\nTwo and"],
    "finish_reasons": ["stop", "stop", "length"],
    "messages": [USER, {"role": "assistant", "content": ANSWER}],
}


def test_all_answers_of_a_row_are_kept_with_their_ends_the_chosen_one_first() -> None:
    wrong, right, cut = OPEN_R1["generations"]
    question = convert(OPEN_R1)
    assert question.replies == (Reply(right, "stop"), Reply(wrong, "stop"), Reply(cut, "length"))
    assert (question.gold, question.unread) == ("4", ())
    alone = {name: OPEN_R1[name] for name in ("problem", "solution", "generations")}
    assert convert(alone).replies == tuple(Reply(text) for text in OPEN_R1["generations"])
    named = {"question": "What is 2 + 2?", "final_answer": "4"}
    numbered = named | {f"r1_solution_{n}": f"{n}</think>4" for n in (1, 2, 3)}
    assert [reply.raw for reply in convert(numbered).replies] == [
        f"{n}</think>4" for n in (1, 2, 3)
    ]
    listed = {"prompt": "What is 2 + 2?", "response": [right, None, wrong]}
    assert convert(listed).replies == (Reply(right), Reply(wrong))
    cut_row = {"prompt": "What is 2 + 2?", "response": cut, "finish_reason": "length"}
    assert convert(cut_row).replies == (Reply(cut, "length"),)
    chosen = alone | {"response": wrong, "finish_reason": "length"}  # and no word in the list
    assert convert(chosen).replies[0] == Reply(wrong, "length")
    assert convert(chosen | {"finish_reasons": ["stop"] * 3}).replies[0] == Reply(wrong, "stop")


def test_listed_answers_may_be_objects_or_json() -> None:
    asked = {"question": "What is 2 + 2?", "reference_answer": "4"}
    objects = [
        {"text": "<think>\n2 and 3.\n</think>\n\n5", "finish_reason": "stop"},
        None,
        {"response": "4", "model": "x", "reasoning": "Two and two."},
    ]
    wrong, _, right = (entry and entry.get("text", ANSWER) for entry in objects)
    for listed in (objects, json.dumps(objects)):
        question = convert(asked | {"responses": listed, "finish_reasons": ["length"] * 3})
        assert question.replies == (Reply(wrong, "stop"), Reply(right, "length"))
        assert (question.gold, question.unread) == ("4", ())
    texts = convert(asked | {"generations": json.dumps([wrong, right])})
    assert texts.replies == (Reply(wrong), Reply(right))
    for other in (
        [{"text": "4", "response": "5"}],
        "[1, 2]",
        "[cut",
        [{"role": "user", "content": "x"}],
    ):
        assert convert(asked | {"outputs": other}).unread == ("outputs",)
    assert convert({"prompt": "2+2?", "response": '["4", "5"]'}).replies == (Reply('["4", "5"]'),)


def test_the_columns_of_general_thought_are_read() -> None:
    row = {"question": "What is 2 + 2?", "reference_answer": "4", "prev_messages": None}
    row |= {"model_answer": "4", "model_reasoning": "Two and two."}
    question = convert(row)
    assert (question.replies, question.gold, question.unread) == ((Reply(ANSWER),), "4", ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finish_reasons": ["stop"]}, r"finish_reasons is '\[\"stop\"\]', for 3 answers"),
        ({"finish_reasons": "stop"}, "finish_reasons is 'stop', for 3 answers"),
        ({"responses": ["4"]}, "generations and responses are both lists of answers"),
        ({"reasoning": "Two and two."}, "has one trace and 3 answers"),
    ],
)
def test_several_answers_that_may_be_read_in_two_ways_are_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadRowError, match=reason):
        convert(OPEN_R1 | change)


@pytest.mark.parametrize("name", ["label", "correct", "Is Correct"])
def test_an_answer_that_is_marked_as_bad_is_refused_by_the_name_of_the_mark(name: str) -> None:
    row = {"prompt": "What is 2 + 2?", "completion": ANSWER}
    assert convert(row | {name: True}).unread == (name,)
    with pytest.raises(BadRowError, match=f"{name} is false"):
        convert(row | {name: False})
    assert convert({"prompt": "What is 2 + 2?", name: False}).first_reply is None


def test_the_answer_beside_a_trace_is_the_teachers() -> None:
    row = {"question": "6*7?", "reasoning": "6*7 is 41.", "answer": 41}
    question = convert(row)
    assert question.gold is None
    assert question.first_reply == "<think>\n6*7 is 41.\n</think>\n\n41"
    assert convert(row | {"response": "It is 42."}).gold == "41"
