"""Tests of choices: options are asked, and the right one is a letter or refused, never guessed."""

from typing import Any

import pytest

from dstools_distill.data.choices import (
    BASES,
    Options,
    UnknownBaseError,
    asked_with,
    index_bases,
    lacks_options,
    read_options,
    right_label,
)
from dstools_distill.data.columns import BadRowError, Columns

FROM_0, FROM_1 = frozenset({0}), frozenset({1})
FOUR = ["one", "two", "three", "four"]


def right(row: dict[str, Any], bases: frozenset[int] = BASES) -> str | None:
    columns = Columns(row)
    options = read_options(columns)
    assert options is not None
    return right_label(columns, options, "", lambda: bases)


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["4", "7"]},
        {"options": {"A": "4", "B": "7"}},
        {"options": {"a": "4", "b": "7"}},
        {"choices": {"text": ["4", "7"], "label": ["A", "B"]}},
        {"choices": {"text": ["4", "7"], "label": ["1", "2"]}},  # rows of ARC
        {"options": ["A) 4", "B) 7"]},
        {"A": "4", "B": "7"},
        {"opa": "4", "opb": "7"},
        {"option_a": "4", "option_b": "7"},
        {"Option A": "4", "Option B": "7"},
        {"optionA": "4", "optionB": "7", "optionC": ""},
        {"option1": "4", "option2": "7"},  # MILU
        {"option_0": "4", "option_1": "7"},
        {"choices": "['4', '7']"},  # MuSR
        {"choices": '["4", "7"]'},
        {"choices": "{'A': '4', 'B': '7'}"},
        {"options": "a ) 4 , b ) 7"},  # MathQA
        {"options": "A. 4\nB. 7"},
        {"options": "(A) 4; (B) 7"},
        {"Correct Answer": "7", "Incorrect Answer 1": "4"},
        {"correct_answer": "7", "distractor1": "4"},
    ],
)
def test_options_come_in_many_forms(row: dict[str, Any]) -> None:
    options = read_options(Columns(row))
    assert options is not None
    assert (options.labels, options.texts) == (["A", "B"], ["4", "7"])


def test_options_in_one_text_are_told_apart_by_their_letters() -> None:
    options = read_options(Columns({"options": "a ) 1 / 2 , b ) none ( of ) these , c ) $ 1,600"}))
    assert options is not None
    assert options.texts == ["1 / 2", "none ( of ) these", "$ 1,600"]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["option_{}", "Option{}", "choice_{}", "choice{}"])
def test_columns_with_numbers_are_options_from_the_first_of_them(form: str, first: int) -> None:
    row = {form.format(n): text for n, text in enumerate(FOUR, first)}
    options = read_options(Columns(row))
    assert options is not None
    assert (options.texts, options.first) == (FOUR, first)
    assert index_bases([row | {"answer": 2}]) == {first}
    assert right(row | {"answer": first}, frozenset({first})) == "A"


@pytest.mark.parametrize(
    "text",
    [
        *("4, 7", "b ) 4 , a ) 7", "a ) 4 , b ) 7 , b ) 9", "['4' '7']", "['4'"),
        *("x a ) 4 , b ) 7", "a ) 4 , b ) 7 , c ) a . s . b"),
    ],
)
def test_a_text_that_is_not_surely_options_is_refused(text: str) -> None:
    with pytest.raises(BadRowError, match="options is not a list of options"):
        read_options(Columns({"options": text}))


def test_columns_a_and_b_are_no_options() -> None:
    assert read_options(Columns({"a": 4, "b": 7})) is None


def test_options_are_asked_once() -> None:
    options = Options(["A", "B"], ["4", "7"])
    asked = asked_with("Which is prime?", options)
    assert asked == "Which is prime?\n\nA. 4\nB. 7"
    assert asked_with(asked, options) == asked


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"answer": "B"}, "B"),
        ({"answer": "b"}, "B"),
        ({"answer": "(B)"}, "B"),
        ({"answer": "B."}, "B"),
        ({"answer": "7"}, "B"),
        ({"answer": "1"}, "B"),
        ({"answerKey": "B", "answer": "7"}, "B"),
        ({"cop": 0}, "A"),
        ({"correct_answer": "B"}, "B"),
        ({"target": "B"}, "B"),
        ({}, None),
    ],
)
def test_the_gold_of_a_choice_is_its_letter(row: dict[str, Any], label: str | None) -> None:
    assert right({"choices": ["4", "7"], **row}, FROM_0) == label


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "1"}, "A"),
        ({"options": {"0": "one", "1": "two"}, "answer": "1"}, "B"),
        ({"option1": "one", "option2": "two", "target": "option2"}, "B"),
        ({"Option A": "one", "Option B": "two", "answer": "Option B"}, "B"),
        ({"option_a": "one", "option_b": "two", "answer": "A"}, "A"),
    ],
)
def test_what_a_row_calls_an_option_is_its_letter_whatever_indices_count_from(
    row: dict[str, Any], label: str
) -> None:
    assert right(row, FROM_0) == right(row, FROM_1) == label


def test_a_number_beside_numbered_labels_is_one_of_them_or_refused() -> None:
    row = {"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "0"}
    with pytest.raises(BadRowError, match="answerKey is '0', which is none of the options"):
        right(row)


def test_an_index_that_may_count_from_0_or_from_1_is_not_guessed() -> None:
    for row in (
        {"answer": 1, "choices": FOUR},
        {"answer": "3", **dict(zip("ABCD", FOUR, strict=True))},
    ):
        with pytest.raises(UnknownBaseError, match="no row of the source tells") as caught:
            right(row)
        assert caught.value.hint.startswith("set first_option = 0 or 1 in the source")
        with pytest.raises(UnknownBaseError, match="rows of the source tell both"):
            right(row, frozenset())
    row = {"answer": 1, "choices": FOUR}
    assert (right(row, FROM_0), right(row, FROM_1)) == ("B", "A")
    assert (right({"answer": 0, "choices": FOUR}), right({"answer": 4, "choices": FOUR})) == (
        "A",
        "D",
    )
    assert right({"answer": "B", "answer_index": 1, "choices": FOUR}) == "B"  # MMLU-Pro


@pytest.mark.parametrize(
    ("rows", "bases"),
    [
        ([{"answer": 1}, {"answer": 3}], BASES),
        ([{"answer": 1}, {"answer": 0}], FROM_0),
        ([{"answer": "1"}, {"answer": "4"}], FROM_1),
        ([{"answer": 4}, {"answer": 0}], frozenset()),
        ([{"answer": 1}, {"answer": 5}], BASES),  # a bad row
        ([{"answer": "B", "answer_index": 1}], FROM_0),
        ([{"answer": "B", "answer_index": 2}], FROM_1),
        ([{"answer": "B"}, {"answer": "two"}, {}], BASES),
        ([{"answer": "2", "choices": ["1", "2", "3", "4"]}], BASES),  # the text of an option
        ([{"answer": "1", "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}}], BASES),
        ([{"answer": "1", "choices": None, "option1": "one", "option2": "two"}], FROM_1),
        (
            [
                {"answer": "1", "choices": None, "option1": "one", "option2": "two"},
                {"answer": "0", "choices": None, "option1": "one", "option2": "two"},
            ],
            frozenset(),
        ),
        ([{"answer": 0, "choices": "no options"}, {"answer": 4}], FROM_1),
    ],
)
def test_all_rows_of_a_source_tell_what_indices_count_from(
    rows: list[dict[str, Any]], bases: frozenset[int]
) -> None:
    assert index_bases({"choices": FOUR} | row for row in rows) == bases


def test_an_option_that_reads_none_is_an_option_like_others() -> None:
    lettered = {"A": "0", "B": "1", "C": "None", "D": "2"}
    assert right(lettered | {"answer": "A"}) == "A"
    assert right(lettered | {"correct_answer": "None"}) == "C"
    assert right(lettered) is None
    assert right({"correct_answer": "None", "distractor1": "0", "distractor2": "1"}) == "C"
    with pytest.raises(BadRowError, match="may be the text of one option and the index of another"):
        right({"A": "1", "B": "0", "correct_answer": "1"}, FROM_0)


@pytest.mark.parametrize(
    ("texts", "answer", "reason"),
    [
        (["4", "7"], "3", "answer is '3', which is none of the options"),
        (["1", "0"], "1", "may be the text of one option and the index of another"),
        (["1", "2", "3", "4"], "2", "may be the text of one option and the index of another"),
        (["4", "7"], "C", "is none of the options"),
    ],
)
def test_a_choice_that_nobody_can_read_is_refused(
    texts: list[str], answer: str, reason: str
) -> None:
    with pytest.raises(BadRowError, match=reason) as caught:
        right({"answer": answer, "choices": texts})
    assert caught.value.hint.startswith("write the label of the right option in answer: A, B")


def test_columns_that_name_different_options_are_refused() -> None:
    with pytest.raises(BadRowError, match="answer_index is '1' and answer is 'C': either may be"):
        right({"answer": "C", "answer_index": 1, "choices": FOUR}, FROM_0)


def test_a_bool_in_correct_marks_an_answer_and_names_no_option() -> None:
    assert right({"answer": "B", "correct": True, "choices": FOUR}) == "B"
    assert right({"answer": True, "choices": ["True", "False"]}) == "A"
    assert right({"correct": "two", "choices": FOUR}) == "B"
    assert index_bases([{"answer": 4, "correct": False, "choices": FOUR}]) == FROM_1


@pytest.mark.parametrize(
    ("gold", "asked", "is_blind"),
    [
        ("B", "Which is prime?", True),
        (r"\textbf{(B)}", "A car is blue. Which is it?", True),
        ("A", "A car is blue. Which is it?", True),
        ("B", "Which is prime?\nA. 4\nB. 7", False),
        ("B", r"Which? $\textbf{(A)}\ 1 \textbf{(B)}\ 2$", False),
        ("C", "Which of A, B and C is the largest?", False),
        ("x", "Which?", False),
        ("AB", "Which?", False),
        (None, "Which?", False),
    ],
)
def test_the_letter_of_an_option_is_not_asked_for_without_options(
    gold: str | None, asked: str, is_blind: bool
) -> None:
    messages = [{"role": "user", "content": asked}]
    assert (lacks_options(gold, messages) is not None) is is_blind
