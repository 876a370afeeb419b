"""Tests of golds: an answer is one, a worked solution or a teacher's answer is not."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dstools_distill.data import golds as module
from dstools_distill.data.choices import BASES
from dstools_distill.data.columns import BadRowError, Columns
from dstools_distill.data.golds import Gold, is_worked
from dstools_distill.judge.program import MAX_CASES, read_cases
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Verify

REFEREE = Referee(Verify.timeout_seconds)


@pytest.fixture(scope="module", autouse=True)
def ended_process() -> Iterator[None]:
    with closing(REFEREE):
        yield


def read_gold(columns: Columns, taken: str = "") -> Gold:
    return module.read_gold(columns, None, taken, REFEREE, lambda: BASES)


@pytest.mark.parametrize(
    ("row", "gold", "worked"),
    [
        ({"answer": "4"}, "4", None),
        ({"answer": 4}, "4", None),
        ({"answer": "so\n#### 4"}, "4", "so"),
        ({"answer": "So it is \\boxed{\\{4\\}}."}, "\\{4\\}", "So it is \\boxed{\\{4\\}}."),
        ({"answer": "<answer>4</answer>"}, "4", None),
        ({"answer": "proof"}, None, None),
        ({"gold": "proof"}, "proof", None),
        ({"answer": "4", "solution": "Four."}, "4", "Four."),
        ({"answer": "proof", "solution": "$n$ is even."}, None, "$n$ is even."),
        ({"answer": "N/A"}, None, None),
        ({"answer": "4", "solution": ["Four.", "2+2."]}, "4", None),
        ({"final_answer": ["4"], "solution": ["Four."]}, "4", "Four."),
        ({"solution": "It is DOG because that fits three letters."}, None, "It is DOG because th"),
        ({"solution": "60 km/h"}, "60 km/h", None),
        ({"correct_answer": "carbon dioxide", "support": "Plants."}, "carbon dioxide", None),
        (
            {"solution": "Two is even. So is four, as it is twice two."},
            None,
            "Two is even. So is f",
        ),
        ({"reward_model": {"ground_truth": '["4"]'}}, "4", None),
        ({"reward_model": {"ground_truth": "4"}, "answer": "4"}, "4", None),
        ({"verification_info": '{"ground_truth": "4"}'}, "4", None),
        ({"messages": [{"role": "user", "info": {"reference_answer": "4"}}]}, "4", None),
        ({"reference_answer": "4"}, "4", None),
        (
            {"reference_answer": "First, add 2. Then it is even, as 2 is."},
            None,
            "First, add 2. Then i",
        ),
        ({"ground_truth": "\\frac{1}{2}", "answer": "1/2"}, "\\frac{1}{2}", None),
        ({"answer": "<think>x</think>4"}, None, None),
        ({"answer": "1/2", "solution": r"\boxed{0.5}"}, "1/2", r"\boxed{0.5}"),
        ({"answer": "033", "solution": r"\boxed{33}"}, "033", r"\boxed{33}"),
        ({"answer": "B", "solution": r"\boxed{5}"}, "B", r"\boxed{5}"),  # of options not there
        ({"answer": "43", "solution": r"\boxed{42}, \boxed{43}"}, "43", r"\boxed{42}, \boxed{43}"),
        ({"solution": r"\boxed{0.5} = \boxed{1/2}"}, "1/2", r"\boxed{0.5} = \boxed{1/2}"),
        ({"ground_truth": "33", "answer": "033"}, "33", None),  # 33 is 033, but 033 is not 33
    ],
)
def test_the_gold_is_what_is_settled_on(
    row: dict[str, Any], gold: str | None, worked: str | None
) -> None:
    found = read_gold(Columns(row))
    assert (found.gold, (found.worked or "")[:20]) == (gold, (worked or "")[:20])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"answer": "2", "solution": r"So \boxed{4}."},
            "answer is '2' and the box of solution is '4':",
        ),
        (
            {"gold": r"2\sqrt{3}", "solution": r"\boxed{\sqrt{13}}"},
            r"gold is '2\\sqrt{3}' and the box of solution is '\\sqrt{13}':",
        ),
        (
            {"solution": r"\boxed{42} or \boxed{43}"},
            """solution has 2 boxed answers: '["42", "43"]'""",
        ),
        (
            {"answer": "2", "solution": r"\boxed{4}", "gold_standard_solution": r"\boxed{2}"},
            "answer is '2' and the box of solution is '4':",
        ),
        ({"answer": r"Either \boxed{2}. Or else \boxed{3}."}, "answer has 2 boxed answers"),
    ],
)
def test_two_statements_of_the_gold_that_differ_are_a_doubt(row: Any, problem: str) -> None:
    doubt = read_gold(Columns(row)).doubt
    assert str(doubt).startswith(problem)
    assert doubt is not None
    assert doubt.hint


def test_golds_that_no_one_needs_are_not_compared() -> None:
    row = {"answer": "2", "gold": "5", "solution": r"\boxed{4}"}
    with pytest.raises(BadRowError, match="gold is '5' and answer is '2'"):
        read_gold(Columns(row))
    assert module.read_gold(Columns(row), None, "", None, lambda: BASES) == Gold("5", r"\boxed{4}")


def test_a_column_that_is_the_teachers_is_no_gold() -> None:
    assert read_gold(Columns({"answer": "4", "gold": "5"}), "answer").gold == "5"
    assert read_gold(Columns({"answer": "4"}), "answer").gold is None


def test_test_cases_are_a_gold_of_code() -> None:
    cases = [{"input": "1", "output": "2"}]
    assert read_gold(Columns({"official_tests": cases})).answer_type == "code"
    text = '{"inputs": ["1"], "outputs": ["2"]}'
    assert read_gold(Columns({"input_output": text})).gold == text
    text = '[{"input": "1", "output": "2", "testtype": "stdin"}]'
    row = Columns({"public_test_cases": text, "private_test_cases": "eJxrYJmaz8gABhE9"})
    assert read_gold(row) == Gold(text, None, "code")
    assert row.unread() == ("private_test_cases",)  # a pickle


def test_the_tests_of_a_contest_are_joined_up_to_the_number_that_is_run() -> None:
    row = {
        "public_tests": {"input": ["1", "2"], "output": ["2", "4"]},
        "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": ["3"] * 200, "output": ["6"] * 200},
    }
    gold = read_gold(Columns(row))
    cases = read_cases(gold.gold or "") or []
    assert (len(cases), gold.answer_type) == (MAX_CASES, "code")
    assert [case["stdout"] for case in cases[:3]] == ["2", "4", "6"]
    with pytest.raises(BadRowError, match="private_tests does not have as many inputs as outputs"):
        read_gold(Columns(row | {"private_tests": {"input": ["1"], "output": []}}))


@pytest.mark.parametrize(
    "judge",
    [
        {"input_file": "input.txt"},
        {"input_mode": "file"},
        {"interaction_format": "Print a guess and flush."},
        {"generated_checker": "import sys"},
    ],
)
def test_cases_that_equal_output_does_not_judge_are_not_a_gold(judge: dict[str, str]) -> None:
    row = {"official_tests": [{"input": "1", "output": "2"}], "input_mode": "stdio"}
    assert read_gold(Columns(row)).gold is not None
    assert read_gold(Columns(row | judge)).gold is None


@pytest.mark.parametrize(
    ("text", "explains"),
    [
        ("J. R. R. Tolkien", False),
        ("2 hours. 30 minutes.", False),
        ("$x$ is even. So $x+1$ is odd, which was to be shown.", True),
        (r"\left(-\infty, -\frac{3}{2}\right) \cup \left(\frac{5}{2}, \infty\right)", False),
        ('[{"stdin": "a b c d e f g h i j k l m n", "stdout": ""}]', False),
        ("设两个奇数为2a+1和2b+1。其和为2(a+b+1)。", True),
        ("长方形", False),
        ("```python\nprint(12*14)\n```", True),
        ("import sys\nprint(12)", True),
        ("class I and class II", False),
        ("from 3 to 5", False),
    ],
)
def test_an_explanation_is_told_from_an_answer(text: str, explains: bool) -> None:
    assert is_worked(text) is explains


def test_the_tests_of_synthetic_1_are_a_gold_of_programs_that_read_stdin() -> None:
    test = {"fn_name": None, "input": "1\r\n", "output": "2\n", "type": "stdin_stdout"}
    info: dict[str, Any] = {"language": "python", "test_cases": [test] * 101}
    for text in (str(info), json.dumps(info)):
        columns = Columns({"verification_info": text})
        gold = read_gold(columns)
        assert (gold.answer_type, columns.unread()) == ("code", ())
        assert read_cases(gold.gold or "") == [{"stdin": "1\r\n", "stdout": "2\n"}] * MAX_CASES
    for other in (
        info | {"language": "rust"},
        info | {"test_cases": [test, test | {"type": "function_call"}]},
        info | {"test_cases": [test | {"input": [1]}]},
        info | {"test_cases": [None]},
        info | {"test_cases": []},
    ):
        assert read_gold(Columns({"verification_info": str(other)})).gold is None
