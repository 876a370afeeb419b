"""Tests of columns: values by plain names, what was never read, and values that disagree."""

from typing import Any

import pytest

from dstools_distill.data.columns import (
    BadRowError,
    Columns,
    agreeing,
    answer_text,
    from_json,
    from_repr,
    reasoning_and_text,
    shown,
)


def test_names_are_plain_and_what_nothing_was_taken_from_is_named_as_spelled() -> None:
    columns = Columns({"Correct Answer": "4", "Question": "2+2?", "uuid": "x", "cot": None})
    assert columns.text("correct_answer") == "4"
    assert columns.has("question")
    assert not columns.has("cot")
    assert columns.unread() == ("Question", "uuid")


@pytest.mark.parametrize("value", [None, "", " \n", [], {}])
def test_a_column_without_a_value_counts_as_missing(value: object) -> None:
    columns = Columns({"answer": value})
    assert "answer" in columns
    assert not columns.has("answer")
    assert columns.unread() == ()


def test_the_first_of_two_spellings_counts_and_the_other_is_unread() -> None:
    columns = Columns({"answer": "4", "Answer": "5"})
    assert columns.text("answer") == "4"
    assert columns.unread() == ("Answer",)


def test_columns_agree_but_for_white_space_and_dollar_signs() -> None:
    assert agreeing({}, "gold") is None
    assert agreeing({"answer": "$4$", "gold": " 4"}, "gold") == "$4$"
    with pytest.raises(BadRowError, match="answer is '4' and gold is '5': either may be the gold"):
        agreeing({"answer": "4", "gold": "5"}, "gold")


def test_an_answer_may_be_a_number_a_truth_value_or_the_one_entry_of_a_list() -> None:
    spelled = {4: "4", 0.5: "0.5", 60.0: "60", 1e300: "1e+300", False: "False"}
    assert {value: answer_text(value, "answer") for value in spelled} == spelled
    assert answer_text(["4"], "answer") == "4"
    with pytest.raises(BadRowError, match="answer holds 2 answers"):
        answer_text([3, -3], "answer")
    with pytest.raises(BadRowError, match="answer is not a string: dict"):
        answer_text({"value": 4}, "answer")


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}, {"text": "4"}]
    assert reasoning_and_text(parts, "content") == ("x", "4")
    with pytest.raises(BadRowError, match="content is not a string: list with a part of type 'im"):
        reasoning_and_text([{"type": "image_url"}], "content")


def test_a_message_shows_the_start_of_a_long_value() -> None:
    assert shown(["é"]) == "'[\"é\"]'"
    assert len(shown("x" * 1000)) == 62


def test_only_json_that_begins_as_asked_is_read() -> None:
    assert from_json(' ["4"]', ("{", '["')) == ["4"]
    for other in ("[4]", '{"a": 4', "4", None, ["4"]):
        assert from_json(other, ("{", '["')) == other


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': '4'}", {"a": "4"}),
        ('{"a": null}', {"a": None}),
        ("['4', 'x']", ["4", "x"]),
        ("{'a': '\\\\frac'}", {"a": "\\frac"}),
    ],
)
def test_what_python_writes_is_read_as_json_is(text: str, value: Any) -> None:
    assert from_repr(text) == value


@pytest.mark.parametrize("text", ["['4' 'x']", "{1, 2}", "{'a': '\\frac'}", "[cut", "4", ""])
def test_a_text_that_python_did_not_surely_write_is_left(text: str) -> None:
    assert from_repr(text) is text
