"""Tests of finished stages as a card reads them: arms, labels, groups, lineage, curves."""

from pathlib import Path
from typing import Any

from dstools_distill.cards.runs import Runs
from dstools_distill.recipe.settings import Student


def runs_of(stages: dict[str, dict[str, Path]], **students: Student) -> Runs:
    return Runs(stages, {name: students.get(name, Student()) for name in stages})


def test_arms_are_runs_named_by_the_seed_that_they_trained_with(made: Any) -> None:
    runs = runs_of({"a-0": {"sft": made.sft(0)}, "a-1": {"sft": made.sft(1)}})
    assert {arm: list(seeds) for arm, seeds in runs.arms.items()} == {"a": [0, 1]}
    other = runs_of({"a-0": {"sft": made.sft(0)}, "a-1": {"sft": made.sft(7)}})
    assert other.arms == {}


def test_all_seeds_of_an_arm_are_labelled_by_the_arm(made: Any) -> None:
    runs = runs_of({f"{arm}-{n}": {"sft": made.sft(n)} for arm in ("a", "b") for n in (0, 1)})
    by_name = {run.name: run for run in runs.all}
    assert runs.label(runs.all) == ""
    assert runs.label([by_name["a-0"], by_name["a-1"]]) == "a"
    assert runs.label([by_name["a-0"], by_name["b-0"], by_name["b-1"]]) == "a-0, b"


def test_runs_that_share_a_folder_share_a_stage(made: Any) -> None:
    prompts = made.data()["prompts"]
    runs = runs_of(
        {"x": {"prompts": prompts}, "y": {"prompts": prompts}, "z": made.data(), "none": {}}
    )
    assert [label for label, _ in runs.distinct("prompts")] == ["x, y", "z"]


def test_the_lineage_of_a_run_are_the_phases_before_it(made: Any) -> None:
    stages = {"cold": {"sft": made.sft()}, "rl": {"sft": made.sft()}}
    runs = runs_of(stages, cold=Student(model="org/base"), rl=Student(model="phase:cold/sft"))
    assert [run.name for run in runs.lineage(runs.all[1])] == ["cold", "rl"]


def test_a_curve_has_the_steps_where_its_value_was_logged(made: Any) -> None:
    lines = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "reward": 1.0}\n'
    stage = made.stage("grpo", {}, {}, curve_jsonl=lines)
    (run,) = runs_of({"": {"grpo": stage, "sft": made.data()["select"]}}).all
    assert run.stages["grpo"].curve("loss") == [(1, 2.0)]
    assert run.stages["grpo"].curve("reward") == [(3, 1.0)]
    assert run.stages["sft"].curve("loss") == []


def test_figures_and_scores_are_those_of_the_last_model(made: Any) -> None:
    stage = made.eval([4, 2], first=[1, 1], of=4)
    ((_, evaluation),) = runs_of({"": {"eval": stage}}).evaluated()
    assert evaluation.scores == {"p0": (4, 4), "p1": (2, 4)}
    assert evaluation.figures["pass@1"]["value"] == 0.75
