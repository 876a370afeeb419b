"""The finished stages of a recipe, as a card reads them: from their manifests."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dstools_distill import records
from dstools_distill.recipe.recipe import PHASE
from dstools_distill.recipe.settings import Student
from dstools_distill.recipe.stages import TRAINED
from dstools_distill.store.stage import read_manifest

Told = TypeVar("Told")
SEEDED = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True)
class Stage:
    """What a finished stage says of itself."""

    folder: Path
    settings: dict[str, Any]
    report: dict[str, Any]
    versions: dict[str, str]

    @property
    def dropped(self) -> dict[str, int]:
        """Return the rows dropped, by reason."""
        found: dict[str, int] = self.report.get("dropped") or {}
        return found

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return a training's steps, and what it logged there: "loss", "reward"."""
        path = self.folder / "curve.jsonl"
        rows = records.read(path) if path.exists() else ()
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Return of each problem the share of right answers of the last model of an evaluation."""
        found = json.loads((self.folder / "scores.json").read_bytes())
        return {problem: right / answers for problem, (right, answers) in _last(found).items()}

    @property
    def figures(self) -> dict[str, Any]:
        """Return the figures of the last model of an evaluation."""
        found: dict[str, Any] = _last(self.report["models"])
        return found


def _last(by_model: dict[str, Any]) -> Any:
    return by_model[list(by_model)[-1]]


@dataclass(frozen=True)
class Run:
    """One chain of stages."""

    name: str  # "", a phase's or an arm's, or arm and seed
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
        """Return the runs by arm and seed; {} where they are no arms with seeds."""
        found: dict[str, dict[int, Run]] = {}
        for run in self.all:
            match = SEEDED.fullmatch(run.name)
            seeds = {run.stages[stage].settings["seed"] for stage in TRAINED if stage in run.stages}
            if match is None or seeds != {int(match[2])}:
                return {}
            found.setdefault(match[1], {})[int(match[2])] = run
        return found

    def distinct(self, stage: str) -> list[tuple[str, Stage]]:
        """Return what a stage made, each folder once, with the runs it belongs to: "" for all."""
        groups = self.alike(stage, lambda each: each.folder)
        return [(self.label(runs), runs[0].stages[stage]) for _, runs in groups]

    def alike(self, stage: str, tell: Callable[[Stage], Told]) -> list[tuple[Told, list[Run]]]:
        """Return the runs with a stage, those together of which it tells the same."""
        found: list[tuple[Told, list[Run]]] = []
        for run in self.all:
            if stage in run.stages:
                said = tell(run.stages[stage])
                runs = next((runs for other, runs in found if other == said), None)
                if runs is None:
                    found.append((said, runs := []))
                runs.append(run)
        return found

    def label(self, runs: list[Run]) -> str:
        """Return the name of some runs: "" for all, an arm for all of its seeds."""
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
        """Yield the runs that were evaluated."""
        for run in self.all:
            if "eval" in run.stages:
                yield run, run.stages["eval"]

    def lineage(self, run: Run) -> list[Run]:
        """Return the phases whose students a run's came from, the first one first, and the run itself."""
        found = [run]
        while found[0].student.model.startswith(PHASE):
            name = found[0].student.model.removeprefix(PHASE).partition("/")[0]
            found.insert(0, next(each for each in self.all if each.name == name))
        return found

    def sources(self, stages: Iterable[str] = ("prompts", "eval")) -> set[str]:
        """Return the names of the places that problems come from."""
        found: set[str] = set()
        for stage in stages:
            for _, each in self.distinct(stage):
                found |= set(each.report.get("sources") or {})
        return found


def _read(folder: Path) -> Stage:
    manifest = read_manifest(folder)
    versions = dict(manifest.get("versions") or {})
    if "dstools" in manifest:
        versions["dstools-llm"] = manifest["dstools"]
    return Stage(folder, manifest["settings"], manifest["report"], versions)
