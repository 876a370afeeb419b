"""Finished stages of a recipe as a card reads them, from their manifests."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dstools_distill import records
from dstools_distill.evaluation.tally import Scores
from dstools_distill.recipe.recipe import PHASE
from dstools_distill.recipe.settings import Student
from dstools_distill.recipe.stages import TRAINED
from dstools_distill.store.stage import read_manifest

Key = TypeVar("Key")
SEEDED = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True)
class Stage:
    """The manifest of a finished stage."""

    folder: Path
    settings: dict[str, Any]
    report: dict[str, Any]
    versions: dict[str, str]

    @property
    def dropped(self) -> dict[str, int]:
        """Return the number of rows dropped, by reason."""
        dropped: dict[str, int] = self.report.get("dropped") or {}
        return dropped

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return the steps of a training and the values of `key` logged there."""
        path = self.folder / "curve.jsonl"
        rows = records.read(path) if path.exists() else ()
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    @cached_property
    def scores(self) -> Scores:
        """Return the right and the judged answers of the last model of an evaluation."""
        scores = _last(json.loads((self.folder / "scores.json").read_bytes()))
        return {problem: (right, judged) for problem, (right, judged) in scores.items()}

    @property
    def figures(self) -> dict[str, Any]:
        """Return the figures of the last model of an evaluation."""
        figures: dict[str, Any] = _last(self.report["models"])
        return figures


def _last(by_model: dict[str, Any]) -> Any:
    return by_model[list(by_model)[-1]]


@dataclass(frozen=True)
class Run:
    """One chain of stages."""

    name: str  # "", or the name of a phase, an arm, or an arm and its seed
    student: Student
    stages: dict[str, Stage]


class Runs:
    """All runs of a recipe."""

    def __init__(self, stages: dict[str, dict[str, Path]], students: dict[str, Student]) -> None:
        self.all = [
            Run(name, students[name], {stage: _read(path) for stage, path in folders.items()})
            for name, folders in stages.items()
        ]

    @cached_property
    def arms(self) -> dict[str, dict[int, Run]]:
        """Return the runs by arm and seed; {} if any run is not an arm with its seed."""
        arms: dict[str, dict[int, Run]] = {}
        for run in self.all:
            match = SEEDED.fullmatch(run.name)
            seeds = {run.stages[stage].settings["seed"] for stage in TRAINED if stage in run.stages}
            if match is None or seeds != {int(match[2])}:
                return {}
            arms.setdefault(match[1], {})[int(match[2])] = run
        return arms

    def distinct(self, name: str) -> list[tuple[str, Stage]]:
        """Return the results of a stage, each folder once, with a label of their runs."""
        groups = self.alike(name, lambda stage: stage.folder)
        return [(self.label(runs), runs[0].stages[name]) for _, runs in groups]

    def alike(self, name: str, key_of: Callable[[Stage], Key]) -> list[tuple[Key, list[Run]]]:
        """Return the runs that have a stage, grouped by a key of that stage."""
        groups: list[tuple[Key, list[Run]]] = []
        for run in self.all:
            if name in run.stages:
                key = key_of(run.stages[name])
                runs = next((runs for other, runs in groups if other == key), None)
                if runs is None:
                    groups.append((key, runs := []))
                runs.append(run)
        return groups

    def label(self, runs: list[Run]) -> str:
        """Return the names of some runs: "" for all runs, an arm's name for all of its seeds."""
        if len(runs) == len(self.all):
            return ""
        names = [run.name for run in runs]
        for arm, seeds in self.arms.items():
            of_arm = [run.name for run in seeds.values()]
            if len(of_arm) > 1 and all(name in names for name in of_arm):
                names[names.index(of_arm[0])] = arm
                names = [name for name in names if name not in of_arm]
        return ", ".join(names)

    def evaluated(self) -> Iterator[tuple[Run, Stage]]:
        """Yield the runs that were evaluated, with their evaluation."""
        for run in self.all:
            if "eval" in run.stages:
                yield run, run.stages["eval"]

    def lineage(self, run: Run) -> list[Run]:
        """Return the phases that a run's student went through, ending with the run itself."""
        lineage = [run]
        while lineage[0].student.model.startswith(PHASE):
            name = lineage[0].student.model.removeprefix(PHASE).partition("/")[0]
            lineage.insert(0, next(other for other in self.all if other.name == name))
        return lineage

    def sources(self, stages: Iterable[str] = ("prompts", "eval")) -> set[str]:
        """Return the names of the sources of problems."""
        names: set[str] = set()
        for name in stages:
            for _, stage in self.distinct(name):
                names |= set(stage.report.get("sources") or {})
        return names


def _read(folder: Path) -> Stage:
    manifest = read_manifest(folder)
    versions = dict(manifest.get("versions") or {})
    if "dstools" in manifest:
        versions["dstools-llm"] = manifest["dstools"]
    return Stage(folder, manifest["settings"], manifest["report"], versions)
