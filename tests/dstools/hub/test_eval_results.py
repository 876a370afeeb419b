"""Files of .eval_results: one score a benchmark, and nothing that the Hub would refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dstools.hub.eval_results import check_eval_results
from dstools.hub.yamltext import dump

CASES = Path(__file__).parents[2] / "cases" / "push" / "cards.jsonl"
WHERE = ".eval_results/a.yaml"
ENTRY = {"dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"}, "value": 0.412}


def cases() -> list[dict[str, Any]]:
    every = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [case for case in every if "eval" in case or "evalyaml" in case]


def faults(entries: Any) -> list[tuple[str, str]]:
    raw = entries if isinstance(entries, str) else dump(entries)
    return [(f.where, f.message) for f in check_eval_results(raw.encode(), WHERE)]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["id"])
def test_each_case_has_its_verdict(case: dict[str, Any]) -> None:
    raw = case.get("evalyaml") or yaml.safe_dump(case["eval"])
    found = check_eval_results(raw.encode(), WHERE)
    assert (not found) == case["ok"], case["why"]
    assert all(f.where.startswith(f"{WHERE}: [0].") and f.hint for f in found)


def test_an_entry_with_every_key_is_accepted() -> None:
    dataset = ENTRY["dataset"] | {"revision": "5503434"}  # type: ignore[operator]
    source = {"url": "https://huggingface.co/org/logs", "name": "logs", "user": "a", "org": "b"}
    entry = ENTRY | {"dataset": dataset, "date": "2026-11-28T10:30:00Z", "source": source}
    assert faults([entry | {"notes": "no-tools", "verifyToken": "x"}, ENTRY | {"value": 20}]) == []
    assert faults([ENTRY | {"value": 10**400}]) == [], "an integer of any size is finite"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("value", True, "value"),
        ("value", "0.4", "value"),
        ("value", None, "value"),
        ("value", float("nan"), "value"),
        ("value", float("-inf"), "value"),
        ("value", [0.4], "value"),
        ("date", "28.11.2026", "date"),
        ("date", "", "date"),
        ("date", 2026, "date"),
        ("source", "https://example.org", "source"),
        ("source", {"url": "logs/run-1"}, "source.url"),
        ("source", {"url": "file:///home/x"}, "source.url"),
        ("source", {"url": "https://a.b", "link": "x"}, "source.link"),
        ("source", {"url": "https://a.b", "name": 3}, "source.name"),
        ("notes", False, "notes"),
        ("dataset", "openai/gsm8k", "dataset"),
        ("dataset", {"id": "openai/gsm8k", "task_id": None}, "dataset.task_id"),
        ("dataset", {"id": "openai/gsm8k", "task_id": 1}, "dataset.task_id"),
        ("dataset", {"id": "openai/GSM8K", "task_id": "gsm8k"}, "dataset.id"),
        ("dataset", {"id": ["openai/gsm8k"], "task_id": "gsm8k"}, "dataset.id"),
        ("dataset", {"task_id": "gsm8k"}, "dataset.id"),
        ("dataset", {"id": "openai/gsm8k", "task_id": "x", "split": "test"}, "dataset.split"),
        ("task_id", "gsm8k", "task_id"),
        ("metric", "acc", "metric"),
    ],
)
def test_a_fault_is_named_by_its_key(key: str, value: Any, place: str) -> None:
    found = faults([ENTRY, ENTRY | {key: value}])
    assert [where for where, _ in found] == [f"{WHERE}: [1].{place}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {}\n", "is not a list of results"),
        ("", "is not a list of results"),
        ("- 3\n", "is not a table"),
        ("- value: 1\n  value: 2\n", "line 2: value is given twice; remove one of them"),
        ("- &a {value: 1}\n- *a\n", "line 2: an alias (*name); write it out"),
        ("- [\n", "line 2: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_file_of_another_form_is_one_fault(text: str, message: str) -> None:
    assert [m for _, m in faults(text)] == [message]


def test_a_file_that_is_not_utf8_is_refused() -> None:
    (found,) = check_eval_results(b"\xff\xfe-\x00", WHERE)
    assert (found.where, found.message) == (WHERE, "is not UTF-8")
