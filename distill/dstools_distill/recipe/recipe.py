"""A recipe: one TOML file, read into the settings of every stage that is to run.

    preset = "toy-cpu"              # its tables come first, those below over them
    seeds = [0, 1, 2]               # the training once with each

    [select]
    keep = "all-correct"

    [arms.unfiltered]               # and again with other settings; what they share is done once
    select = { keep = "all" }

A table runs its stage, `stage = false` takes one of the preset's away. Instead of arms there may be phases,
which run one after the other, each with the tables that it names; `phase:cold-start/sft` is a path to what an
earlier one left. Tables outside of them are what theirs begin with. There is one card, of everything.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dstools_converters.errors import DstoolsError, printable
from dstools_distill.recipe import settings
from dstools_distill.recipe.presets import preset_text
from dstools_distill.recipe.settings import check_settings
from dstools_distill.recipe.stages import STAGES, TRAINED

TABLES = {name: stage.settings for name, stage in STAGES.items() if name != "card"}
PHASE = "phase:"  # begins a path to what an earlier phase left
TOP_KEYS = ("preset", "student", *STAGES, "seeds", "arms", "phase")
AT_LEAST_ONE = {
    "samples",
    "concurrency",
    "batch_size",
    "micro_batch_size",
    "max_tokens",
    "processes",
}
AT_LEAST_ONE |= {"max_completion_tokens", "max_length", "size", "log_steps", "rank"}
AT_MOST_ONE = {"top_p", "near_duplicates", "min_difficulty", "max_difficulty", "min_language"}
AT_MOST_ONE |= {
    "max_repetition",
    "min_pass_rate",
    "max_pass_rate",
    "reasoning_share",
    "max_dropped",
}
AT_MOST_ONE |= {"at_least", "ema", "min_learning_rate_ratio", "dropout", "max_failed"}
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Chain:
    """One run through stages, each with its settings."""

    name: str  # "", a phase's, or arm and seed: "unfiltered-2"
    student: settings.Student
    stages: dict[str, Any]  # by name, in the order data flows
    index: tuple[str, ...]  # benchmarks of the chain's [decontaminate], or of the recipe's
    judge: settings.Verify  # how the chain's right answers are told: its [verify], or the recipe's

    def data_before(self, stage: str) -> str | None:
        """Return the last stage before this one that leaves samples or rows."""
        found = [name for name in self._before(stage) if name not in (*TRAINED, "prompts")]
        return found[-1] if found else None

    def trained_before(self, stage: str) -> str | None:
        """Return the last stage before this one that leaves a model."""
        found = [name for name in self._before(stage) if name in TRAINED]
        return found[-1] if found else None

    def _before(self, stage: str) -> list[str]:
        names = list(STAGES)
        return [name for name in names[: names.index(stage)] if name in self.stages]


@dataclass(frozen=True)
class Recipe:
    """All that a file asks for."""

    path: Path
    chains: tuple[Chain, ...]
    is_phased: bool  # the chains run one after the other, each on what earlier ones left
    card: settings.Card | None


def read_recipe(path: Path) -> Recipe:
    """Return what the file asks for, with its preset's and every default filled in.

    Raises DstoolsError, naming file and key, for what is no TOML, no key, of the wrong type or out of range.
    """
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", INIT_HINT) from None
    except IsADirectoryError:
        raise DstoolsError(f"{path}: is a folder", INIT_HINT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DstoolsError(f"{path}: is no TOML: {error}", INIT_HINT) from None
    if "preset" in table:
        table = _merge(tomllib.loads(preset_text(_text(table.pop("preset"), path))), table)
    _refuse_unknown(table, TOP_KEYS, str(path))
    card = table.pop("card", False)
    shared = {name: table.get(name) or {} for name in ("decontaminate", "verify")}
    is_phased = bool(table.get("phase"))
    chains = tuple(_chain(path, name, each, shared) for name, each in _expand(table, path))
    if not any(chain.stages for chain in chains):
        raise DstoolsError(f"{path}: names no stage", INIT_HINT)
    said = None if card is False else _read(settings.Card, card, path, "card")
    return Recipe(path, chains, is_phased, said)


INIT_HINT = "`dstools distill init --preset toy-cpu` prints one to begin with"


def _expand(table: dict[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of each chain: of phases, of arms and seeds, or the one there is."""
    seeds, arms = table.pop("seeds", None), table.pop("arms", {})
    phases = table.pop("phase", [])
    if phases and (seeds is not None or arms):
        raise DstoolsError(f"{path}: has phases, and arms or seeds", "keep one of them")
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise DstoolsError(f"{path}: phase: is no list of tables", "write [[phase]]")
    chains: list[tuple[str, dict[str, Any]]] = []
    for number, phase in enumerate(phases, start=1):
        name = _name(phase.pop("name", None), path, f"phase {number}: name")
        _refuse_unknown(phase, ("student", *TABLES), f"{path}: phase {name}")
        shared = {key: table[key] for key in table if key == "student" or key in phase}
        chains.append((name, _merge(shared, phase)))
    if phases:
        _refuse_equal([name for name, _ in chains], path)
        return chains
    if seeds is None and not arms:
        return [("", table)]
    if not isinstance(arms, dict):
        raise DstoolsError(f"{path}: arms: is no table", "write [arms.NAME]")
    for number in seeds if isinstance(seeds, list) else [0] if seeds is None else [seeds]:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise DstoolsError(f"{path}: seeds: {number!r} is no seed", "as in seeds = [0, 1, 2]")
    for arm, changes in arms.items() if arms else [("seed", {})]:
        name = _name(arm, path, "arms")
        if not isinstance(changes, dict):
            raise DstoolsError(f"{path}: arms.{name}: is no table", "write [arms.NAME]")
        _refuse_unknown(changes, ("student", *TABLES), f"{path}: arms.{name}")
        tables = _merge(table, changes)
        for seed in seeds if seeds is not None else [None]:
            trained = [stage for stage in TRAINED if tables.get(stage, False) is not False]
            seeded = {} if seed is None else {stage: {"seed": seed} for stage in trained}
            chains.append((name if seed is None else f"{name}-{seed}", _merge(tables, seeded)))
    return chains


def _chain(path: Path, name: str, tables: dict[str, Any], shared: dict[str, Any]) -> Chain:
    """Return the settings of one chain, checked; shared: tables that count where it has none of its own."""
    where = f"{path}: {name}" if name else str(path)
    student = _read(settings.Student, tables.pop("student", {}), where, "student")
    stages = {
        stage: _read(TABLES[stage], tables[stage], where, stage)
        for stage in TABLES
        if tables.get(stage, False) is not False
    }
    needs = [stage for stage in stages if stage in ("render", *TRAINED, "eval")]
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
    for stage in TRAINED:
        training = stages.get(stage)
        if training:
            check_settings(training, f"{where}: {stage}: ")
    if {"verify", "render"} <= stages.keys() and "select" not in stages:
        raise DstoolsError(
            f"{where}: has [verify] and [render], and no [select] between them: "
            "wrong answers would be trained on",
            'add [select]; keep = "all" says that they are wanted',
        )
    index, judge = (
        stages.get(stage) or _read(TABLES[stage], shared[stage], path, stage)
        for stage in ("decontaminate", "verify")
    )
    return Chain(name, student, stages, index.index, judge)


def _read(cls: type[Settings], table: Any, path: Path | str, where: str) -> Settings:
    """Return a dataclass filled from a table."""
    if not isinstance(table, dict):
        raise DstoolsError(f"{path}: {where}: is no table", f"write [{where}]")
    hints = get_type_hints(cls)
    _refuse_unknown(table, tuple(hints), f"{path}: {where}")
    found = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in table:
            key = f"{where}.{field.name}"
            found[field.name] = _convert(table[field.name], hints[field.name], path, key)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DstoolsError(f"{path}: {where}.{field.name}: is missing", "it has no default")
    return cls(**found)


def _convert(value: Any, kind: Any, path: Path | str, where: str) -> Any:
    """Return a value of TOML as the type of a field."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in args:
            raise DstoolsError(
                f"{path}: {where}: {value!r} is not known", f"one of {', '.join(args)}"
            )
        return value
    if origin in (Union, UnionType):
        if value is False:  # takes away what a preset or the shared tables say
            return None
        return _convert(value, next(arg for arg in args if arg is not type(None)), path, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise DstoolsError(f"{path}: {where}: is no list", "put it into [ ]")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise DstoolsError(f"{path}: {where}: has not {len(kinds)} items", "see the default")
        return tuple(
            _convert(item, each, path, f"{where}[{n}]")
            for n, (item, each) in enumerate(zip(value, kinds, strict=True))
        )
    if isinstance(kind, type) and is_dataclass(kind):
        return _read(kind, value, path, where)
    if kind is float and type(value) is int:
        value = float(value)
    wanted = dict if origin is dict else kind
    if type(value) is not wanted:
        raise DstoolsError(
            f"{path}: {where}: {value!r} is no {NAMES[wanted]}", f"give it {NAMES[wanted]}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(value, path, where)
    return value


NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "table"}


def _check_range(value: float, path: Path | str, where: str) -> None:
    key = where.rpartition(".")[2].partition("[")[0]
    low = 1 if key in AT_LEAST_ONE else 0
    high = 1.0 if key in AT_MOST_ONE else float("inf")
    if not low <= value <= high or value == float("inf"):
        bounds = f"{low} or more" if high > 1 else f"between {low} and 1"
        raise DstoolsError(f"{path}: {where}: {value:g} is out of range", f"it must be {bounds}")


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with what `above` says over it, table by table; `below` stays as it is."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _refuse_unknown(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise DstoolsError(f"{where}: {printable(key)}: no such key", hint)


def _refuse_equal(names: list[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DstoolsError(f"{path}: two phases are called {name}", "give each its own name")


def _name(value: Any, path: Path, where: str) -> str:
    """Return a name that a folder can have."""
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        raise DstoolsError(
            f"{path}: {where}: {value!r} is no name", "letters, digits, - and _, as in cold-start"
        )
    if value in STAGES or value == "store":
        raise DstoolsError(f"{path}: {where}: {value} is a stage's name", "choose another")
    return value


def _text(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise DstoolsError(f"{path}: preset: {value!r} is no text", "name one preset")
    return value
