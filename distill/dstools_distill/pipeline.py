"""Runs the stages of a recipe, each on what the ones before it left.

OUT/store/sft-1a2b3c4d5e6f/      what was made, see stage.py; nothing in there is ever changed
OUT/sft -> store/sft-...         what the recipe, as it stands, makes; or OUT/CHAIN/sft
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_distill.data.contamination import EVAL_INDEX
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import PHASE, STAGES, TRAINED, Chain, Recipe
from dstools_distill.recipe.settings import Eval, Prompts, Student
from dstools_distill.store.ranks import is_launched, world_size
from dstools_distill.store.stage import (
    MANIFEST,
    Bar,
    Done,
    Report,
    Work,
    digest,
    find,
    identify,
    read_manifest,
    run_stage,
)
from dstools_distill.training.launch import launch

log = logging.getLogger(__name__)
# one up when a stage's code gives other bytes for the same
REVISIONS = dict.fromkeys(STAGES, 2) | {"generate": 3, "kd": 3, "eval": 3, "card": 3}
JUDGE = ("latex2sympy2_extended", "math-verify", "mpmath", "reasoning_gym", "sympy")
TRAINING = ("accelerate", "peft", "torch", "transformers", "trl")
PACKAGES: dict[str, tuple[str, ...]] = {  # whose versions decide a stage's bytes
    "prompts": ("numpy", *JUDGE),
    "generate": (),  # too dear to be done again for a new version of anything
    "verify": JUDGE,
    "decontaminate": (),
    "select": ("numpy",),
    "render": ("tokenizers", "transformers"),
    "sft": TRAINING,
    "kd": TRAINING,
    "grpo": (*TRAINING, *JUDGE),
    "eval": ("torch", "transformers", *JUDGE),
    "card": (),
}
PATHS = {"model", "teacher", "non_reasoning", "pass_rates"}
# settings of `generate` that say how, not what: with others, what was begun is gone on with
HOW = {"base_url", "api_key_env", "concurrency", "retries", "timeout_seconds", "max_failed"}


@dataclass(frozen=True)
class Pipeline:
    """A recipe, where its results lie, and what stages work with."""

    places: Places
    workers: int
    bar: Bar

    @property
    def recipe(self) -> Recipe:
        """Return what is to be run."""
        return self.places.recipe

    @property
    def _store(self) -> Path:
        return self.places.out / "store"

    def run(self, start: str, tell: Callable[[str, str, Done], None]) -> None:
        """Run every stage from `start` on, "" for all, "sft" or "chain/sft"; `tell` of each.

        What comes before `start` is taken as it lies there, whatever the recipe says of it.
        """
        begun = not start
        chain_name, _, stage_name = start.rpartition("/")
        if start and not any(
            stage_name == stage and chain_name in ("", chain.name)
            for chain in self.recipe.chains
            for stage in (*chain.stages, "card" if self.recipe.card else stage_name)
        ):
            raise DstoolsError(f"--from {start}: the recipe has no such stage", STAGE_HINT)
        if not start:
            self.places.require()
            if unknown := self.places.unknown_licences():
                log.warning(
                    "unknown licences: %s. They stand in the samples: name them later, and the teacher is "
                    "asked again",
                    ", ".join(unknown),
                )
        for chain in self.recipe.chains:
            if not (chain_name or self.recipe.is_phased):
                begun = not start  # "sft" means that of each arm
            for stage in chain.stages:
                begun = begun or (stage == stage_name and chain_name in ("", chain.name))
                if begun:
                    tell(chain.name, stage, self.run_one(chain, stage))
                else:
                    self.places.finished(chain, stage)
        if self.recipe.card:
            tell("", "card", self.run_card())

    def chain(self, name: str, stage: str) -> Chain:
        """Return the chain of that name, which must have the stage."""
        names = [chain.name for chain in self.recipe.chains]
        if name not in names:
            if not name:
                raise DstoolsError(f"{self.recipe.path}: has several chains", f"--chain {names[0]}")
            hint = f"--chain is one of {', '.join(names)}" if any(names) else "it has no chains"
            raise DstoolsError(f"{self.recipe.path}: no chain {name}", hint)
        chain = self.recipe.chains[names.index(name)]
        if stage not in chain.stages:
            raise DstoolsError(f"{self.recipe.path}: has no [{stage}]", "add that table, if empty")
        return chain

    def run_one(self, chain: Chain, stage: str) -> Done:
        """Run one stage on what lies there of those before it."""
        if world_size() > 1 and stage not in TRAINED:
            raise DstoolsError(
                f"{stage}: runs in one process, and a launcher started {world_size()}",
                f"launch {', '.join(TRAINED)} alone: `dstools distill sft RECIPE`",
            )
        settings = chain.stages[stage]
        inputs, body = self._prepare(chain, stage)
        identity = identify(
            stage, REVISIONS[stage], self._settings(chain, stage), inputs, PACKAGES[stage]
        )
        done = find(self._store, identity)
        wants_launch = stage in TRAINED and (settings.processes, settings.parallel) != (1, "single")
        if done is None and wants_launch and not is_launched():
            self._launch(chain, stage)
            done = find(self._store, identity)
            assert done is not None, "the launched processes ended well and left nothing"
            done = replace(done, is_reused=False)
        if done is None:
            done = run_stage(self._store, identity, body, self._work)
        self.places.link(chain.name, stage, done.folder)
        if stage == "eval":
            _require_score(done, settings.at_least)
        return done

    def _launch(self, chain: Chain, stage: str) -> None:
        """Run one training stage in several processes, each of which comes here again."""
        from dstools_distill.training.trainer import require_machine

        require_machine(chain.stages[stage])
        words = [stage, os.fspath(self.recipe.path), "--out", os.fspath(self.places.out)]
        words += ["--chain", chain.name] if chain.name else []
        launch(chain.stages[stage], words)

    def _settings(self, chain: Chain, stage: str) -> dict[str, Any]:
        """Return all settings that decide a stage's bytes."""
        said = asdict(chain.stages[stage])
        for name in ("at_least", "save_steps"):  # they change nothing
            said.pop(name, None)
        for name in PATHS & said.keys():  # an input counts by its content, wherever it lies
            if not said[name].startswith(PHASE) and self.places.path(said[name]).exists():
                said[name] = Path(said[name]).name
        if stage == "generate":
            said = {key: value for key, value in said.items() if key not in HOW}
        if stage in ("render", *TRAINED, "eval"):
            said["template"] = chain.student.template
        if stage == "sft":
            said["init"] = chain.student.init
        if stage in ("grpo", "eval"):
            said["verify"] = asdict(chain.judge)
        return said

    def _work(self, folder: Path) -> Work:
        return Work(folder, self.workers, self.bar)

    def run_card(self) -> Done:
        """Write the card of everything that is finished."""
        from dstools_distill.cards.card import card

        settings = self.recipe.card
        if settings is None:
            raise DstoolsError(f"{self.recipe.path}: has no [card]", "add that table, if empty")
        stages = {
            chain.name: {
                stage: self.places.finished(chain, stage)
                for stage in chain.stages
                if (self.places.place(chain.name, stage) / MANIFEST).exists()
            }
            for chain in self.recipe.chains
        }
        for chain in self.recipe.chains:
            self._require_lineage(chain, stages[chain.name])
        inputs = {  # a card tells of settings, too, those that changed no byte included
            f"{name}/{stage}" if name else stage: folder / MANIFEST
            for name, folders in stages.items()
            for stage, folder in folders.items()
        }
        students = {chain.name: self._told(chain.student) for chain in self.recipe.chains}
        said = asdict(settings) | {"students": {k: asdict(v) for k, v in students.items()}}
        identity = identify("card", REVISIONS["card"], said, inputs, PACKAGES["card"])
        done = run_stage(
            self._store,
            identity,
            lambda work: card(settings, students, stages, work),
            self._work,
        )
        self.places.link("", "card", done.folder)
        return done

    def _require_lineage(self, chain: Chain, folders: dict[str, Path]) -> None:
        """Raise DstoolsError where a stage was not made from what lies there of the one before it."""
        for stage, folder in folders.items():
            made_from = read_manifest(folder)["inputs"]
            for name, earlier in _read_from(chain, stage).items():
                if earlier in folders and made_from.get(name) != digest(folders[earlier]):
                    where = f"{chain.name}/{stage}" if chain.name else stage
                    raise DstoolsError(
                        f"{folder}: {where} was made from another {earlier} than lies there now: "
                        "a card of both would tell of a run that never was",
                        self.places.command("run", "--from", where),
                    )

    def _told(self, student: Student) -> Student:
        """Return a student whose model is org/name, or the name of a folder: no path is told."""
        is_folder = bool(student.model) and self.places.path(student.model).is_dir()
        if not is_folder or student.model.startswith(PHASE):
            return student
        return replace(student, model=Path(student.model).name)

    def _prepare(
        self, chain: Chain, stage: str
    ) -> tuple[dict[str, Path], Callable[[Work], Report]]:
        """Return what a stage reads, and the call that does it."""
        settings, student, places = chain.stages[stage], chain.student, self.places
        match stage:
            case "prompts":
                from dstools_distill.data.prompts import prompts

                files = places.sources(settings)
                rates = places.file(settings.pass_rates)
                inputs = _numbered("source", files)
                return _given(inputs, pass_rates=rates), lambda work: prompts(
                    settings, files, rates, work
                )
            case "generate":
                from dstools_distill.teachers.generate import generate

                asked = places.finished(chain, "prompts")
                teacher = None
                if settings.backend == "hf":
                    teacher = places.model(settings.model, "generate.model")
                elif settings.backend == "replay":
                    teacher = places.file(settings.model)
                return _given({"prompts": asked}, model=teacher), lambda work: generate(
                    settings, asked, teacher, work
                )
            case "verify":
                from dstools_distill.judge.verify import verify

                samples = places.before(chain, stage)
                return {"samples": samples}, lambda work: verify(settings, samples, work)
            case "decontaminate":
                from dstools_distill.data.decontaminate import decontaminate

                samples, index = places.before(chain, stage), self._indexes(chain)
                inputs = {"samples": samples, **_numbered("index", index)}
                return inputs, lambda work: decontaminate(samples, index, work)
            case "select":
                from dstools_distill.data.select import select

                samples, mixed = places.before(chain, stage), places.file(settings.non_reasoning)
                index = self._indexes(chain) if mixed else []
                inputs = _given({"samples": samples, **_numbered("index", index)}, mixed=mixed)
                return inputs, lambda work: select(settings, samples, mixed, index, work)
            case "render":
                from dstools_distill.tokens.render import render

                samples, tokenizer = places.before(chain, stage), places.tokenizer(chain)
                inputs = {"samples": samples, "tokenizer": tokenizer}
                return inputs, lambda work: render(
                    settings, samples, tokenizer, student.template, work
                )
            case "sft":
                from dstools_distill.training.sft import sft

                rows, tokenizer = places.finished(chain, "render"), places.tokenizer(chain)
                model = places.student(chain)
                inputs = {"rows": rows, "tokenizer": tokenizer}
                return _given(inputs, model=model), lambda work: sft(
                    settings, rows, model, student.init, tokenizer, student.template, work
                )
            case "kd":
                from dstools_distill.training.kd import kd

                asked, tokenizer = places.finished(chain, "prompts"), places.tokenizer(chain)
                model = places.trained(chain, before=stage)
                master = places.model(settings.teacher, "kd.teacher")
                index = self._indexes(chain)
                inputs = {"prompts": asked, "model": model, "tokenizer": tokenizer}
                inputs |= {"teacher": master, **_numbered("index", index)}
                return inputs, lambda work: kd(
                    settings, asked, model, tokenizer, student.template, master, index, work
                )
            case "grpo":
                from dstools_distill.training.grpo import grpo

                asked, tokenizer = places.finished(chain, "prompts"), places.tokenizer(chain)
                model = places.trained(chain, before=stage)
                index = self._indexes(chain)
                inputs = {"prompts": asked, "model": model, "tokenizer": tokenizer}
                inputs |= _numbered("index", index)
                return inputs, lambda work: grpo(
                    settings, asked, model, tokenizer, student.template, chain.judge, index, work
                )
            case _:
                return self._prepare_eval(chain, settings)

    def _prepare_eval(
        self, chain: Chain, settings: Eval
    ) -> tuple[dict[str, Path], Callable[[Work], Report]]:
        from dstools_distill.evaluation.evaluate import evaluate

        models = {}
        if settings.baseline and chain.student.model:
            models["before"] = self.places.model(chain.student.model, "student.model")
        if any(stage in chain.stages for stage in TRAINED):
            models["after"] = self.places.trained(chain, before="eval")
        if not models:
            raise DstoolsError(
                f"{self.recipe.path}: eval has no model", "eval.baseline = true, or train one"
            )
        problems = self._problems(settings)
        tokenizer = self.places.tokenizer(chain)
        inputs = {"problems": problems, "tokenizer": tokenizer, **models}
        return inputs, lambda work: evaluate(
            settings, problems, models, tokenizer, chain.student.template, chain.judge, work
        )

    def _indexes(self, chain: Chain) -> list[Path]:
        """Return the indexes of what must not be trained on, the problems of every [eval] included."""
        named = [self.places.path(name) for name in chain.index]
        exams = [each.stages["eval"] for each in self.recipe.chains if "eval" in each.stages]
        return named + [self._index(each) for each in dict.fromkeys(map(self._problems, exams))]

    def _index(self, problems: Path) -> Path:
        """Return the index of an evaluation's problems."""
        from dstools_distill.data.decontaminate import index_problems

        identity = identify("index", 1, {}, {"problems": problems}, ("numpy",))
        made = run_stage(
            self._store, identity, lambda work: index_problems(problems, work.folder), self._work
        )
        return made.folder / EVAL_INDEX

    def _problems(self, settings: Eval) -> Path:
        """Return the problems of an evaluation, made like any prompts."""
        from dstools_distill.data.prompts import prompts

        asked = Prompts(source=settings.source, limit=settings.limit)
        files = self.places.sources(asked)
        inputs = _numbered("source", files)
        identity = identify(
            "prompts", REVISIONS["prompts"], asdict(asked), inputs, PACKAGES["prompts"]
        )
        return run_stage(
            self._store,
            identity,
            lambda work: prompts(asked, files, None, work),
            self._work,
        ).folder


def _read_from(chain: Chain, stage: str) -> dict[str, str]:
    """Return which stages of its own chain a stage reads, by the name of the input."""
    model, data = chain.trained_before(stage), chain.data_before(stage)
    match stage:
        case "prompts":
            found: dict[str, str | None] = {}
        case "generate":
            found = {"prompts": "prompts"}
        case "sft":
            found = {"rows": "render"}
        case "kd" | "grpo":
            found = {"prompts": "prompts", "model": model}
        case "eval":
            found = {"after": model}
        case _:
            found = {"samples": data}
    return {name: earlier for name, earlier in found.items() if earlier is not None}


def _numbered(name: str, paths: Sequence[Path | None]) -> dict[str, Path]:
    """Return inputs by name and number."""
    return {f"{name} {n}": path for n, path in enumerate(paths) if path}


def _given(inputs: dict[str, Path], **optional: Path | None) -> dict[str, Path]:
    """Return the inputs with those of the optional ones that there are."""
    return inputs | {name: path for name, path in optional.items() if path is not None}


STAGE_HINT = "name a stage that the recipe has a table for, or CHAIN/STAGE"


def _require_score(done: Done, at_least: float) -> None:
    """Raise ShortfallError where the last model of an evaluation scores less than was asked for."""
    name, last = list(done.report["models"].items())[-1]
    found = last["pass@1"]["value"]
    if found < at_least:
        raise ShortfallError(
            f"{done.folder}: {name}: pass@1 is {found:.1%}, eval.at_least is {at_least:.1%}",
            "the answers and their verdicts lie there",
        )
