"""Tests of the check of steps: correct traces pass, and no single change does."""

import json
import re
from pathlib import Path

import pytest

from dstools_converters.model.reasoning import split
from dstools_distill.judge.steps import Steps, check

TRACES = Path(__file__).parents[2] / "data" / "sample-v3-heldout.jsonl"


def traces(count: int) -> list[tuple[str, str, str]]:
    """Expression, reasoning and answer of conversations that the sample model learnt from."""
    conversations = []
    for line in TRACES.read_text().splitlines()[:count]:
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        asked = re.search(r": (\d.*\d) =", question)
        assert asked is not None
        parts = split(answer, prefilled=False)
        assert parts.reasoning is not None
        conversations.append((asked[1], parts.reasoning, parts.answer))
    return conversations


def test_the_traces_of_the_sample_model_pass() -> None:
    for expression, reasoning, answer in traces(1000):
        steps = check(expression, reasoning, answer)
        assert steps is not None
        assert steps.fault is None


def test_no_trace_passes_with_one_character_changed_missing_or_added() -> None:
    tried = 0
    for expression, reasoning, answer in traces(25):
        body = reasoning.strip("\n")
        for place, char in enumerate(body):
            other = str((int(char) + 1) % 10) if char.isdigit() else "7"
            for changed in (other, "", char + other):
                steps = check(expression, f"\n{body[:place]}{changed}{body[place + 1 :]}\n", answer)
                tried += 1
                assert steps is not None
                assert steps.fault is not None
    assert tried > 2500


@pytest.mark.parametrize(
    ("expression", "reasoning", "answer", "steps"),
    [
        ("57 + 68", "57+68|7+8+0=15,5+6+1=12|125", "125", Steps(3, None)),
        ("5 - 12", "5-12|12>5:2-5-0=17,1-0-1=00|-7", "-7", Steps(3, None)),
        ("57 + 68", "57+68|7+8+0=15,5+6+1=12|126", "126", Steps(2, "step: 126 for 125 in line 1")),
        (
            "57 + 68",
            "57+68|7+8+0=15,5+6+0=11|115",
            "115",
            Steps(1, "step: 5+6+0=11 for 5+6+1=12 in line 1"),
        ),
        ("57 + 68", "57+68|7+8+0=15|125", "125", Steps(1, "step: | for , in line 1")),
        (
            "57 + 68",
            "57+69|7+8+0=15,5+6+1=12|125",
            "125",
            Steps(0, "step: 57+69 for 57+68 in line 1"),
        ),
        (
            "5 - 12",
            "5-12|5>12:2-5-0=17,1-0-1=00|-7",
            "-7",
            Steps(0, "step: 5>12 for 12>5 in line 1"),
        ),
        (
            "5 - 12",
            "5-12|2-5-0=17,1-0-1=00|-7",
            "-7",
            Steps(0, "step: 2-5-0=17 for 12>5 in line 1"),
        ),
        ("57 + 68", "57+68|7+8+0=15,5+6+1=12|125", "152", Steps(3, "answer: 152 after 125")),
        (
            "57 + 68",
            "57+68|7+8+0=15,5+6+1=12|125\n125+0|5+0+0=05|125",
            "125",
            Steps(0, "lines: 2 for 1 terms"),
        ),
        (
            "1 + 1 + 1",
            "1+1|1+1+0=02|2\n1+1|1+1+0=02|2",
            "2",
            Steps(2, "step: 1+1 for 2+1 in line 2"),
        ),
        ("57 + 68", "57 and 68 make 125.", "125", None),
        ("57 + 68", "| a | b |\n|---|---|\n| 57 | 68 |", "125", None),
        ("57 + 68", "", "125", None),
    ],
)
def test_the_first_fault_is_named(
    expression: str, reasoning: str, answer: str, steps: Steps | None
) -> None:
    assert check(expression, f"\n{reasoning}\n", f"\n\n{answer}") == steps
