"""Tests of the data card: rows of the stages, licences."""

import json
from typing import Any

from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import MANIFEST


def test_arms_that_share_a_stage_share_its_row(made: Any) -> None:
    runs = made.arms()
    other = made.data()["select"]
    for seed in range(3):
        runs[f"unfiltered-{seed}"]["select"] = other
    data = made.cards(runs)["DATA.md"]
    rows = [line for line in data.split("\n") if line.startswith(("| select", "| verify"))]
    assert rows == [
        "| verify |  | 11 | 11 | none |",
        "| select | verified | 10 | 9 | 1 incorrect |",
        "| select | unfiltered | 10 | 9 | 1 incorrect |",
    ]
    assert "## Selection: unfiltered" in data


def test_every_unknown_licence_is_warned_of(made: Any) -> None:
    student = Student(model="Qwen/Qwen2.5-Math-1.5B")
    cards = made.cards(made.one_run(), Card(name="mine"), student)
    for card in cards.values():
        assert "**Warning: the licence of Qwen/Qwen2.5-Math-1.5B, mine is unknown." in card
        assert "| Student's base | Qwen/Qwen2.5-Math-1.5B | unknown |" in card
    assert 'license: "unknown"\nbase_model: ["Qwen/Qwen2.5-Math-1.5B"]' in cards["README.md"]


def test_known_licences_are_not_warned_of(made: Any) -> None:
    assert "Warning" not in "".join(made.cards(made.one_run()).values())


def test_rows_that_held_no_question_are_told(made: Any) -> None:
    stages = made.one_run()
    path = stages[""]["prompts"] / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["report"]["sources"]["rg:chain_sum"]["bad_rows"] = 1200
    path.write_text(json.dumps(manifest))
    card = made.cards(stages)["DATA.md"]
    assert "| 8, and 1,200 left out that held no question |" in card


def test_the_teachers_that_a_replayed_file_names_are_told_with_its_licence(made: Any) -> None:
    stages = made.one_run()
    path = stages[""]["generate"] / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["settings"] |= {"model": "given.jsonl", "licence": "mit"}
    manifest["report"]["teachers"] = {"deepseek-r1": 8, "replay of given.jsonl": 2}
    path.write_text(json.dumps(manifest))
    card = made.cards(stages)["DATA.md"]
    for name, count in manifest["report"]["teachers"].items():
        assert f"| Teacher | {name} | mit |" in card
        assert f"| teachers.{name} | {count} |" in card
    assert "| Teacher | given.jsonl" not in card


def test_a_teacher_that_was_told_by_a_path_is_shown_without_its_folders(made: Any) -> None:
    stages = made.one_run()
    path = stages[""]["generate"] / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["report"]["teachers"] = {"/home/me/models/r1": 8, "~/r1": 2, "deepseek-r1": 1}
    path.write_text(json.dumps(manifest))
    cards = made.cards(stages)
    assert "| teachers.r1 | 10 |" in cards["DATA.md"]
    for card in cards.values():
        assert "| Teacher | r1 |" in card
        assert "/home/me" not in card
        assert "~/" not in card
