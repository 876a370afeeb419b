"""Samples that someone else has made are read from a file, or from beside the prompts."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.replay import references, replay, replayed
from dstools_distill.teachers.teacher import Answer, Ask, Failed

PROMPTS: list[records.Record] = [
    {"id": f"{row:032x}", "messages": [{"role": "user", "content": f"What is {row} + 8?"}]}
    for row in range(5)
]
ASKS = [Ask(row * 2 + n, n, prompt) for row, prompt in enumerate(PROMPTS) for n in range(2)]


# ------------------------------------------------------------------------------------- references


def test_references_are_the_first_samples_of_their_prompt_and_the_others_are_counted(
    outcomes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ends = ["stop", "length", None]
    several = [{"raw": f"{n}</think>4", "finish_reason": end} for n, end in enumerate(ends)]
    prompts = [{"reference": "42"}, {"reference": several}, {"reference": None}]
    asks = [Ask(row * 2 + n, n, prompt) for row, prompt in enumerate(prompts) for n in range(2)]
    missing = Failed("no reference")
    assert outcomes(references(2), asks) == {
        0: Answer("42", "unknown", False, None),
        1: missing,
        2: Answer("0</think>4", "stop", True, None),
        3: Answer("1</think>4", "length", True, None),
        4: missing,
        5: missing,
    }
    assert (
        "1 answer of the prompts' own not used: one has 3, and generate.samples is 2" in caplog.text
    )
    assert outcomes(references(2), asks, logged=(0, 1, 2, 3)) == {4: missing, 5: missing}


# ----------------------------------------------------------------------------------------- replay


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    def start(rows: list[dict[str, Any]]) -> Path:
        records.write(tmp_path / "given.jsonl", rows)
        return tmp_path / "given.jsonl"

    return start


def test_samples_are_found_by_id_or_by_text_in_every_form(
    outcomes: Any, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    text = [prompt["messages"][0]["content"] for prompt in PROMPTS]
    counts = {"prompt_tokens": 3, "completion_tokens": 4}
    path = write(
        [
            {"prompt": f" {text[1]}\n", "reasoning": "a\n", "answer": "b", "usage": {"total": 3}},
            {"id": PROMPTS[0]["id"], "raw": "no trace", "finish_reason": "length"},
            {"prompt": text[1], "reasoning_content": "c", "content": "d", "usage": counts},
            {"prompt": text[2], "raw": "e</think>f", "prefilled_think": True},
            {"prompt": text[3], "reasoning_content": None, "content": "g"},
            {"prompt": text[3], "reasoning": "never closed", "answer": ""},
            {"prompt": "not a prompt of this run", "raw": "h"},
        ]
    )
    found = outcomes(replay(path), ASKS)
    details = {
        number: failed.detail for number, failed in found.items() if failed[0] == "not in the file"
    }
    assert details.keys() == {1, 5, 8, 9}
    assert details[1] == f"{path}, which has 1 for it"
    assert "given.jsonl: 1 answer not used, in line 7 first" in caplog.text
    assert {number: answer for number, answer in found.items() if number not in details} == {
        0: Answer("no trace", "length", False, None),
        2: Answer("<think>\na\n</think>\n\nb", "unknown", False, None),
        3: Answer("<think>\nc\n</think>\n\nd", "unknown", False, counts),
        4: Answer("e</think>f", "unknown", True, None),
        6: Answer("g", "unknown", False, None),
        7: Answer("<think>\nnever closed", "unknown", False, None),
    }
    assert outcomes(replay(path), ASKS, logged=(0, 1, 2, 3, 4, 5, 6, 8)).keys() == {7, 9}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"raw": "x"}', "line 3: does not name its prompt"),
        ('{"id": 7, "raw": "x"}', "line 3: does not name its prompt"),
        ('{"id": "a", "reasoning": "x"}', "line 3: has no answer"),
        ('{"id": "a", "raw": 7}', "line 3: has no answer"),
        ("{", "line 3: is n"),
    ],
)
def test_a_bad_line_is_named_before_any_sample_is_yielded(
    line: str, message: str, outcomes: Any, write: Any
) -> None:
    path = write([{"id": PROMPTS[0]["id"], "raw": "x"}])
    path.write_text(f"{path.read_text()}\n{line}\n")  # a blank line counts
    with (
        closing(SampleLog(path.parent / "log", len(ASKS))) as log,
        pytest.raises(DstoolsError, match=rf"given\.jsonl: {message}") as caught,
    ):
        next(replay(path)(iter(ASKS), log))
    names_sources = "name the file in [[prompts.source]] and no generate.model" in caught.value.hint
    assert names_sources == ("name its prompt" in message)


def test_a_trace_continues_a_prefilled_opener(tmp_path: Path) -> None:
    row = {"reasoning": "a", "answer": "b", "prefilled_think": True, "finish_reason": "length"}
    assert replayed(row, tmp_path, 1) == Answer("a\n</think>\n\nb", "length", True, None)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"raw": "a</think>b"}, Answer("a</think>b", "unknown", True, None)),
        ({"raw": "b", "finish_reason": "eos"}, Answer("b", "stop", False, None)),
        ({"raw": "b", "finish_reason": None}, Answer("b", "unknown", False, None)),
        ({"content": [{"type": "text", "text": "b"}]}, Answer("b", "unknown", False, None)),
        ({"content": None, "reasoning": "a"}, Answer("<think>\na", "unknown", False, None)),
        (
            {"reasoning": "<think>\na\n</think>", "answer": "b"},
            Answer("<think>\na\n</think>\n\nb", "unknown", False, None),
        ),
        (
            {"reasoning_details": [{"type": "reasoning.text", "text": "a"}], "content": "b"},
            Answer("<think>\na\n</think>\n\nb", "unknown", False, None),
        ),
        ({"answer": None, "reasoning": ""}, Answer("", "unknown", False, None)),
        (
            {"thinking": "a", "content": "b"},
            Answer("<think>\na\n</think>\n\nb", "unknown", False, None),
        ),
    ],
)
def test_a_file_is_read_as_an_endpoint_is(row: Any, answer: Answer, tmp_path: Path) -> None:
    assert replayed(row, tmp_path, 1) == answer


@pytest.mark.parametrize(
    ("row", "read", "advice"),
    [
        ({"content": None}, "content NoneType", 'add "raw"'),
        ({"raw": 7, "answer": None}, "raw int, answer NoneType", 'add "raw"'),
        ({"response": "41"}, "among response", 'add "raw"'),
        ({"custom_id": "0", "response": {}}, "among custom_id, response", "openai-batch"),
        ({"choices": [{"delta": {"content": "4"}}]}, "among choices", "pieces of a stream"),
        ({"choices": [{"message": {"content": "41"}}]}, "among choices", "choices[0].message"),
        ({"choices": [1]}, "among choices", 'add "raw"'),  # of a question
    ],
)
def test_a_line_without_an_answer_says_what_was_read_and_what_to_do(
    row: Any, read: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(DstoolsError) as caught:
        replayed(row, tmp_path / "a.jsonl", 3)
    assert str(caught.value).endswith(f"a.jsonl: line 3: has no answer: {read}")
    assert advice in caught.value.hint


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"reasoning": "add", "content": "<think>\nsum\n</think>\n\n5"},
            "content comes with a trace of its own, and another one in reasoning",
        ),
        (
            {"raw": "<think>\nsum\n</think>\n\n5", "prefilled_think": True},
            "raw opens a trace that the prompt has opened, as prefilled_think says",
        ),
        (
            {"reasoning": "add", "thinking": "sum", "content": "5"},
            "content comes with traces that differ, in reasoning and thinking",
        ),
    ],
)
def test_a_line_that_contradicts_itself_is_refused(row: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DstoolsError) as caught:
        replayed(row, tmp_path / "a.jsonl", 3)
    assert str(caught.value).endswith(f"a.jsonl: line 3: {problem}")
    assert caught.value.hint == "either may be the sample; keep one of them"


def test_the_id_of_another_recipe_does_not_hide_the_prompt(outcomes: Any, write: Any) -> None:
    text = PROMPTS[2]["messages"][0]["content"]
    found = outcomes(replay(write([{"id": "foreign", "prompt": text, "raw": "a</think>b"}])), ASKS)
    assert [n for n, answer in found.items() if isinstance(answer, Answer)] == [4]


@pytest.mark.parametrize(("key", "value"), [("answer", "6"), ("content", "6"), ("thinking", "c d")])
def test_what_is_beside_a_raw_sample_must_be_a_part_of_it(
    key: str, value: str, tmp_path: Path
) -> None:
    row = {"raw": "<think>\na and b\n</think>\n\n5", "answer": "\n\n5", "reasoning": "a and b\n"}
    assert replayed(row | {"thinking": "on"}, tmp_path, 1).raw == row["raw"]  # a mode
    with pytest.raises(DstoolsError, match=f"line 3: {key} is not a part of raw"):
        replayed(row | {key: value}, tmp_path, 3)


@pytest.mark.parametrize("key", records.TRACES)
def test_a_replayed_trace_is_found_under_every_name_of_data_sets(key: str, tmp_path: Path) -> None:
    answer = Answer("<think>\na\n</think>\n\nb", "unknown", False, None)
    assert replayed({key: "a", "answer": "b"}, tmp_path, 1) == answer
    assert replayed({key: ["a"], "content": "b"}, tmp_path, 1) == answer
    assert replayed({key: "Off", "content": "b"}, tmp_path, 1).raw == "b"
    with pytest.raises(DstoolsError, match=f"line 3: {key} holds 2 traces"):
        replayed({key: ["a", "c"], "answer": "b"}, tmp_path, 3)


def test_a_content_that_is_of_no_known_form_is_named_with_its_line(tmp_path: Path) -> None:
    row = {"content": [{"type": "poem"}]}
    with pytest.raises(DstoolsError, match="line 3: content is not a string: list with a part"):
        replayed(row, tmp_path, 3)
