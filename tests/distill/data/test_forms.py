"""Tests of row forms: each gives its question, or the reason why it has none."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dstools_distill.data import forms as module
from dstools_distill.data.choices import BASES, OPTIONS
from dstools_distill.data.columns import BadRowError
from dstools_distill.data.forms import QUESTIONS, Question
from dstools_distill.data.golds import CODE_CASES, GOLD_KEYS
from dstools_distill.data.replies import REPLIES
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Form, Verify
from dstools_distill.records import TRACES

FOLDER = Path(__file__).parents[2] / "cases" / "distill"
CASES = [
    json.loads(line)
    for name in ("forms.jsonl", "variants/forms.jsonl")
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()
]

TEXTS = ["2+2", "4", "off", " ", "so\n#### 4", "\\boxed{4", "<think>x</think>4", '["4"]', "user"]
USER = {"role": "user", "content": "What is 2 + 2?"}
ASKED = [USER]
ANSWER = "<think>\nTwo and two.\n</think>\n\n4"


REFEREE = Referee(Verify.timeout_seconds)


@pytest.fixture(scope="module", autouse=True)
def ended_process() -> Iterator[None]:
    with closing(REFEREE):
        yield


def convert(row: dict[str, Any], form: Form = "auto", bases: frozenset[int] = BASES) -> Question:
    return module.convert(row, form, REFEREE, lambda: bases)


def judged(row: dict[str, Any], bases: frozenset[int]) -> Question:
    """Return the question in a row, as a source gives it whose golds are needed."""
    question = convert(row, bases=bases)
    if question.doubt is not None:
        raise question.doubt
    return question


def reply(content: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": [USER, reply(ANSWER)]}),
        ("messages", {"messages": [USER, reply("4", reasoning_content="Two and two.")]}),
        ("messages", {"messages": [USER, reply("4", reasoning="Two and two.\n")]}),
        ("messages", {"messages": [USER, reply("\n\n4", thinking="\nTwo and two.\n")]}),
        ("messages", {"messages": [USER, reply("\n\n4", thinking="Two and two.")]}),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "What is 2 + 2?"},
                    {"from": "gpt", "value": ANSWER},
                ]
            },
        ),
        ("problem", {"problem": "What is 2 + 2?", "solution": ANSWER, "answer": "4"}),
        ("problem", {"question": "What is 2 + 2?", "thinking": "Two and two.", "answer": "4"}),
        ("alpaca", {"instruction": "What is 2 + 2?", "input": "", "output": ANSWER}),
        ("prompt-completion", {"prompt": "What is 2 + 2?", "completion": ANSWER}),
        ("prompt-completion", {"prompt": "What is 2 + 2?", "response": ANSWER}),
        ("prompt-completion", {"prompt": ASKED, "completion": [reply(ANSWER)]}),
        ("prompt-completion", {"prompt": ASKED, "completion": ANSWER}),
        (
            "prompt-completion",
            {"prompt": "What is 2 + 2?", "completion": "4", "reasoning": "Two and two."},
        ),
    ],
)
def test_every_form_gives_the_same_question_and_answer(form: Any, row: dict[str, Any]) -> None:
    question = convert(row)
    assert (question.form, question.messages, question.first_reply) == (form, ASKED, ANSWER)
    assert convert(row, form) == question


@pytest.mark.parametrize(
    ("row", "gold", "reference"),
    [
        ({"problem": "?!"}, None, None),
        ({"problem": "2+2", "answer": "4"}, "4", None),
        ({"problem": "2+2", "gold": "4", "answer": " 4"}, "4", None),
        ({"problem": "2+2", "expected": "4"}, "4", None),
        ({"problem": "2+2", "solution": "4"}, "4", None),
        ({"problem": "2+2", "solution": r"It is \boxed{4}."}, "4", r"It is \boxed{4}."),
        ({"problem": "2+2", "solution": "Four.", "answer": "4"}, "4", "Four."),
        ({"question": "2+2", "answer": "Two and two.\n#### 4"}, "4", "Two and two."),
        ({"messages": ASKED, "answer": "4"}, "4", None),
        ({"problem": "2+2", "answer": " 007 "}, " 007 ", None),
    ],
)
def test_gold_and_worked_solution_are_told_apart(
    row: dict[str, Any], gold: str | None, reference: str | None
) -> None:
    question = convert(row)
    assert (question.gold, question.first_reply) == (gold, reference)


def test_a_conversation_is_asked_up_to_its_last_question() -> None:
    system, more = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And 3?"}
    question = convert(
        {"messages": [system, USER, reply("4"), more, reply("9", thinking="cubed?")]}
    )
    assert question.messages == [system, USER, {"role": "assistant", "content": "4"}, more]
    assert question.first_reply == "<think>\ncubed?\n</think>\n\n9"
    assert convert({"messages": [system, USER]}).first_reply is None
    assert convert(
        {"conversations": [{"from": "human", "value": "2+2"}], "system": "Be brief."}
    ) == (Question("sharegpt", [system, {"role": "user", "content": "2+2"}], None, "", None, ()))


def test_existing_line_feeds_next_to_tags_are_kept() -> None:
    question = convert({"messages": [USER, reply("\n4", thinking="\n\nTwo and two. \n")]})
    assert question.first_reply == "<think>\n\nTwo and two. \n</think>\n4"


def test_an_instruction_comes_before_its_input() -> None:
    question = convert({"instruction": "Add.", "input": "2, 2", "output": "4"})
    assert question.messages[0]["content"] == "Add.\n\n2, 2"


@pytest.mark.parametrize(
    ("row", "difficulty"),
    [
        ({"pass_rate": 0.25}, 0.75),
        ({"difficulty": 0.3}, 0.3),
        ({"difficulty": 0}, None),
        ({"difficulty": 1.0}, None),  # the easiest of 1 to 10?
        ({"pass_rate": 1, "difficulty": 0.3}, 0.0),
        ({"difficulty": "hard"}, None),
        ({"difficulty": 8}, None),  # of ten, or of what?
        ({"difficulty": True}, None),
        ({}, None),
    ],
)
def test_difficulty_is_a_share_or_unknown(row: dict[str, Any], difficulty: float | None) -> None:
    assert convert({"problem": "2+2", **row}).difficulty == difficulty


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "2+2"}, "has none of the keys messages, conversations, problem, question"),
        ({"problem": " \n"}, "problem is empty"),
        ({"problem": None}, "problem is missing"),
        ({"problem": 5}, "problem is not a string: int"),
        ({"problem": "2+2", "answer": ["4", "5"]}, "answer holds 2 answers"),
        ({"problem": "2+2", "reasoning": ["a b", "b c"]}, "reasoning holds 2 traces"),
        ({"query": "2+2", "history": [["1+1"]]}, r"history\[0\] is not a pair of a question and"),
        ({"query": "2+2", "history": 1.5}, r"history\[0\] is not a pair of a question and"),
        ({"problem": "2+2", "answer": {"value": 4}}, "answer is not a string: dict"),
        ({"problem": "2+2", "answer": "so\n#### "}, "answer has nothing after ####"),
        ({"problem": "2+2", "answer_type": "nubmer"}, "answer_type is 'nubmer', not one of"),
        ({"problem": "2+2", "images": [{"path": "f.png"}]}, "images holds a picture"),
        ({"problem": "2+2", "tools": [{"name": "add"}]}, "tools are not rendered"),
        ({"problem": "2+2", "tools": '[{"function": {"name": "add"}}]'}, "tools are not rendered"),
        ({"problem": "-"}, "problem is '-', which is not a question"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            r"messages\[1\] calls a tool",
        ),
        ({"messages": []}, "messages is not a list of turns"),
        ({"messages": "2+2"}, "messages is not a list of turns"),
        ({"messages": ["2+2"]}, r"messages\[0\] is not an object"),
        ({"messages": [{"role": "tool", "content": "4"}]}, r"messages\[0\].role is 'tool'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
        ({"messages": [USER, reply("")]}, r"messages\[1\].content is empty"),
        ({"messages": [{**USER, "content": [{"type": "text"}]}]}, r"content is not a string: list"),
        ({"messages": [reply("4")]}, "has no turn of a user"),
        ({"messages": [USER, reply("4"), reply("5")]}, "has 2 answers to its last question"),
        (
            {"messages": [USER, {"role": "system", "content": "x"}]},
            "system message after its first",
        ),
        (
            {"messages": [USER, reply(ANSWER, reasoning="so it is")]},
            r"reasoning holds a think block",
        ),
        (
            {"prompt": [USER, reply("4")], "completion": "4"},
            "answer both in prompt and in completion",
        ),
        ({"conversations": [{"from": "tool", "value": "4"}]}, r"conversations\[0\].from is 'tool'"),
        ({"instruction": "Add.", "output": 4}, "output is not a string: int"),
    ],
)
def test_a_row_without_a_question_is_refused_with_the_reason(
    row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadRowError, match=reason):
        convert(row)


def test_a_form_that_was_asked_for_is_not_guessed() -> None:
    row = {"messages": ASKED, "problem": "2+3"}
    with pytest.raises(
        BadRowError, match=r"problem is '2\+3': either may be the question"
    ) as caught:
        convert(row)
    ways = "form = 'messages' to ask messages or form = 'problem' to ask problem"
    assert caught.value.hint == f"keep only the one that is asked, or set {ways}"
    assert convert(row, "messages").messages == ASKED
    assert convert(row, "problem").messages[0]["content"] == "2+3"
    with pytest.raises(BadRowError, match="conversations is not a list of turns"):
        convert(row, "sharegpt")


def test_two_columns_of_one_form_are_not_told_apart_by_naming_it() -> None:
    row = {"problem": "2+3", "question": "2+2"}
    with pytest.raises(
        BadRowError, match=r"problem is '2\+3' and question is '2\+2': either"
    ) as auto:
        convert(row)
    assert auto.value.hint.endswith("asked: rename question in the file, or problem")
    with pytest.raises(BadRowError) as named:
        convert(row, "problem")
    assert named.value.hint == auto.value.hint
    assert convert({"question": "2+2", "other": "2+3"}).messages[0]["content"] == "2+2"


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["kind"]))
def test_a_row_of_a_public_data_set_is_read_or_refused(case: dict[str, Any]) -> None:
    row = case["row"]
    bases = frozenset({case["first_option"]}) if "first_option" in case else BASES
    if case.get("refused"):
        with pytest.raises(BadRowError):
            judged(row, bases)
        return
    try:
        question = judged(row, bases)
    except BadRowError:
        assert case.get("or_refused")
        return
    prompt = "\n".join(message["content"] for message in question.messages)
    reference = question.first_reply or ""
    assert case.get("prompt_has", "") in prompt
    assert case.get("reference_has", "") in reference
    assert "prompt_has_not" not in case or case["prompt_has_not"] not in prompt
    assert "reference_has_not" not in case or case["reference_has_not"] not in reference
    assert "gold_is" not in case or question.gold == case["gold_is"]
    assert "gold_is_not" not in case or question.gold != case["gold_is_not"]
    assert "difficulty_is" not in case or question.difficulty == case["difficulty_is"]
    if "difficulty_is_not" in case:
        assert question.difficulty != case["difficulty_is_not"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.floats(0, 1) | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "label", "role", "content"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [*QUESTIONS, *REPLIES, *TRACES, *GOLD_KEYS, *OPTIONS, *CODE_CASES, "A", "B", "history"]


@examples(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([*NAMES, "reward_model", "difficulty"]), VALUES, max_size=6))
def test_any_row_is_a_question_or_refused(row: dict[str, Any]) -> None:
    try:
        question = convert({"problem": "2+2"} | row)
    except BadRowError:
        return
    assert question.messages[-1]["role"] == "user"
    assert all(isinstance(message["content"], str) for message in question.messages)
    assert isinstance(question.gold, str | None)
    assert isinstance(question.first_reply, str | None)


def test_an_answer_type_of_null_is_the_type_that_the_gold_looks_like() -> None:
    row = {"problem": "2+2", "answer": "4"}
    assert convert(row | {"answer_type": None}).answer_type == ""
    assert convert(row | {"answer_type": "none"}).answer_type == "none"
    assert convert(row | {"Answer Type": "Set"}).answer_type == "set"


def test_columns_that_nothing_is_taken_from_are_named() -> None:
    row = {"problem": "2+2", "answer": "4", "reasoning": "off", "source": "x", "cot": None}
    assert convert(row).unread == ("reasoning", "source")


def test_what_belongs_to_a_question_is_asked_with_it() -> None:
    row = {"system": "Be brief.", "history": [["1+1?", "2"]], "passage": "P.", "query": "2+2?"}
    assert [turn["content"] for turn in convert(row).messages] == [
        "Be brief.",
        "1+1?",
        "2",
        "P.\n\n2+2?",
    ]
    assert convert({"problem": "P. 2+2?", "passage": "P."}).messages == [
        {"role": "user", "content": "P. 2+2?"}
    ]


def test_a_body_is_a_passage_beside_a_question_alone() -> None:
    row = {"title": "Sums", "body": "I have 2 and 2."}
    asked = convert(row | {"question": "How many?"}).messages[0]["content"]
    assert asked == "I have 2 and 2.\n\nHow many?"
    question = convert(row | {"prompt": "2+2?"})
    assert (question.messages[0]["content"], question.unread) == ("2+2?", ("body", "title"))


def test_a_description_is_asked_where_test_cases_come_with_it() -> None:
    cases = [{"input": "2 3", "output": "5"}]
    row = {"description": "Two integers.", "output_format": "Print the sum.", "title": "A"}
    question = convert(row | {"official_tests": cases, "input_format": "a and b."})
    asked = "Two integers.\n\n## Input Format\na and b.\n\n## Output Format\nPrint the sum."
    assert (question.messages[0]["content"], question.answer_type) == (asked, "code")
    with pytest.raises(BadRowError, match="question_content, but description, output_format"):
        convert(row)
    with pytest.raises(BadRowError, match="official_tests are missing: nothing judges a program"):
        judged(row | {"official_tests": []}, BASES)
    with pytest.raises(BadRowError, match="examples are not inputs and outputs: 'x'"):
        convert(row | {"official_tests": cases, "examples": "x"})
    row = {"problem": "2+2", "description": "Of a school.", "test_cases": cases}
    assert convert(row).unread == ("description",)


def test_one_word_beside_an_answer_may_be_a_setting_or_a_trace() -> None:
    row = {"problem": "2+2", "answer": "4"}
    assert convert(row | {"reasoning": "No_think"}).gold == "4"
    with pytest.raises(BadRowError, match="reasoning is 'so': a setting, or a trace of one word"):
        convert(row | {"reasoning": "so"})
    assert (
        convert(row | {"reasoning": "二加二等于四"}).first_reply
        == "<think>\n二加二等于四\n</think>\n\n4"
    )


def test_a_question_that_holds_the_others_is_asked() -> None:
    row = {"question": "2+2?", "prompt": "Think. 2+2?", "response": "4"}
    question = convert(row)
    assert (question.form, question.messages[0]["content"]) == ("prompt-completion", "Think. 2+2?")
    assert question.unread == ()


@pytest.mark.parametrize(
    "tools", [[], "[]", [{"name": "add"}], '[{"type": "function", "function": {"name": "add"}}]']
)
def test_tools_that_the_system_prompt_describes_are_as_good_as_none(tools: Any) -> None:
    asked = [{"role": "system", "content": "<tools>add(a, b)</tools>"}, USER]
    assert convert({"messages": asked, "tools": tools}).messages == asked
