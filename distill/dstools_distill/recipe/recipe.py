"""A recipe: a TOML file, read into the settings of every stage that is to run.

    preset = "toy-cpu"              # its tables come first, those below override them
    seeds = [0, 1, 2]               # repeat the training with each seed

    [select]
    keep = "all-correct"

    [arms.unfiltered]               # and again with other settings; what arms share runs once
    select = { keep = "all" }

A table runs its stage; `stage = false` removes one of the preset's. Instead of arms there may be
phases, which run one after the other, each with the tables that it names; `phase:cold-start/sft` is
a path to the result of an earlier one. Tables outside of phases hold their defaults. There is one
card, of all chains.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError
from dstools_converters.tables import Reader, toml_table
from dstools_distill.recipe import settings
from dstools_distill.recipe.presets import preset_text
from dstools_distill.recipe.settings import check_bounds, check_length, check_settings
from dstools_distill.recipe.stages import STAGES, TRAINED

PHASE = "phase:"  # begins a path to a result of an earlier phase
OF_CHAINS = ("student", *(name for name in STAGES if name != "card"))
INIT_HINT = "`dstools distill init --preset toy-cpu` prints a recipe to start from"


@dataclass(frozen=True)
class Chain:
    """One run through stages, each with its settings."""

    name: str  # "", a phase's, or arm and seed: "unfiltered-2"
    student: settings.Student
    stages: dict[str, Any]  # by name, in the order data flows
    index: tuple[str, ...]  # benchmarks of the chain's [decontaminate], or of the recipe's
    judge: settings.Verify  # the chain's [verify], or the recipe's

    def data_before(self, stage: str) -> str | None:
        """Return the last stage before this one that leaves samples or rows."""
        names = [name for name in self._before(stage) if name not in (*TRAINED, "prompts")]
        return names[-1] if names else None

    def trained_before(self, stage: str) -> str | None:
        """Return the last stage before this one that leaves a model."""
        names = [name for name in self._before(stage) if name in TRAINED]
        return names[-1] if names else None

    def _before(self, stage: str) -> list[str]:
        order = list(STAGES)
        return [name for name in order[: order.index(stage)] if name in self.stages]


@dataclass(frozen=True)
class Recipe:
    """All that a file asks for."""

    path: Path
    chains: tuple[Chain, ...]
    is_phased: bool  # the chains run one after the other, each on what earlier ones left
    card: settings.Card | None


@dataclass(frozen=True)
class _File:
    """The keys of a recipe besides those of `STAGES`."""

    seeds: tuple[int, ...] | None = None
    arms: dict[str, dict[str, Any]] | None = None
    phase: tuple[dict[str, Any], ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Return what the file asks for, with the preset's values and every default filled in.

    Raises DstoolsError, naming file and key, for what is not TOML, and for a key that is unknown,
    of the wrong type or out of range.
    """
    table, reader = toml_table(path, INIT_HINT), Reader(str(path))
    if "preset" in table:
        preset = reader.convert(table.pop("preset"), str, "preset")
        table = _merge(tomllib.loads(preset_text(preset)), table)
    own = ("seeds", "arms", "phase")
    reader.refuse_unknown(table, ("preset", *OF_CHAINS, "card", *own))
    if isinstance(table.get("seeds"), int):
        table["seeds"] = [table["seeds"]]
    file = reader.read(_File, {key: table.pop(key) for key in own if key in table})
    card = table.pop("card", False)
    chains = tuple(
        _chain(reader, name, tables, table) for name, tables in _expand(table, file, path)
    )
    if not any(chain.stages for chain in chains):
        raise DstoolsError(f"{path}: names no stage", INIT_HINT)
    of_card = None if card is False else reader.read(settings.Card, card, "card")
    return Recipe(path, chains, bool(file.phase), of_card)


def _expand(shared: dict[str, Any], file: _File, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of each chain by name: of phases, of arms and seeds, or the only one."""
    if file.phase and (file.seeds is not None or file.arms):
        raise DstoolsError(f"{path}: has phases, and arms or seeds", "keep one of them")
    if file.phase:
        return _phases(shared, file.phase, path)
    if file.seeds is None and not file.arms:
        return [("", shared)]
    chains = []
    for arm, changes in (file.arms or {"seed": {}}).items():
        _require_name(arm, f"{path}: arms")
        Reader(str(path)).refuse_unknown(changes, OF_CHAINS, f"arms.{arm}")
        tables = _merge(shared, changes)
        trained = [stage for stage in TRAINED if tables.get(stage, False) is not False]
        if file.seeds is None:
            chains.append((arm, tables))
        for seed in file.seeds or ():
            seeded = {stage: {"seed": seed} for stage in trained}
            chains.append((f"{arm}-{seed}", _merge(tables, seeded)))
    return chains


def _phases(
    shared: dict[str, Any], phases: tuple[dict[str, Any], ...], path: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of each phase by name: those that it names, over the shared ones."""
    chains: dict[str, dict[str, Any]] = {}
    for number, phase in enumerate(phases, start=1):
        name = phase.pop("name", None)
        _require_name(name, f"{path}: phase {number}: name")
        if name in chains:
            raise DstoolsError(f"{path}: two phases are called {name}", "rename one of them")
        Reader(f"{path}: phase {name}").refuse_unknown(phase, OF_CHAINS)
        own = {key: table for key, table in shared.items() if key == "student" or key in phase}
        chains[name] = _merge(own, phase)
    return list(chains.items())


def _chain(reader: Reader, name: str, tables: dict[str, Any], shared: dict[str, Any]) -> Chain:
    """Return the checked settings of one chain.

    shared: has the [decontaminate] and [verify] of a chain without its own.
    """
    own = Reader(f"{reader.file}: {name}") if name else reader
    student = own.read(settings.Student, tables.get("student", {}), "student")
    stages = {
        stage: own.read(STAGES[stage].settings, tables[stage], stage)
        for stage in OF_CHAINS[1:]
        if tables.get(stage, False) is not False
    }
    _check_student(student, stages, own.file)
    for stage in stages:
        check_bounds(stages[stage], f"{own.file}: {stage}.")
    for stage in TRAINED:
        if stage in stages:
            check_length(stages[stage], f"{own.file}: {stage}.")
            if STAGES[stage].trains:
                check_settings(stages[stage], f"{own.file}: {stage}: ")
    if {"verify", "render"} <= stages.keys() and "select" not in stages:
        raise DstoolsError(
            f"{own.file}: has [verify] and [render], but no [select] between them: "
            "wrong answers would be trained on",
            'add [select]; keep = "all" says that they are wanted',
        )
    index, judge = (
        stages.get(stage) or reader.read(STAGES[stage].settings, shared.get(stage) or {}, stage)
        for stage in ("decontaminate", "verify")
    )
    return Chain(name, student, stages, index.index, judge)


def _check_student(student: settings.Student, stages: dict[str, Any], where: str) -> None:
    """Raise DstoolsError if a stage needs a student that is missing or described twice."""
    needs = [stage for stage in stages if "template" in STAGES[stage].reads]
    if needs and not student.model and student.init is None:
        raise DstoolsError(
            f"{where}: student.model: is missing, and {needs[0]} needs it",
            'name a folder or org/name, or give `init = { model_type = "qwen2", ... }`',
        )
    if student.model and student.init is not None:
        raise DstoolsError(f"{where}: student: has both model and init", "keep one of them")
    if needs and student.init is not None and not student.tokenizer:
        raise DstoolsError(
            f"{where}: student.tokenizer: is missing",
            "a new model does not bring one: name a folder",
        )


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` overridden by `above`, table by table; `below` is not changed."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _require_name(value: Any, where: str) -> None:
    """Raise DstoolsError for a name that a folder of a chain cannot have."""
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        hint = "letters, digits, - and _, as in cold-start"
        raise DstoolsError(f"{where}: {value!r} is not a name", hint)
    if value in STAGES or value == "store":
        raise DstoolsError(f"{where}: {value} is the name of a stage", "choose another")
