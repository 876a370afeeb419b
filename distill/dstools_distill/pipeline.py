"""Runs the stages of a recipe, each on what the ones before it left.

OUT/store/sft-1a2b3c4d5e6f/      what was made, see stage.py; nothing in there is ever changed
OUT/sft -> store/sft-...         what the recipe, as it stands, makes; or OUT/CHAIN/sft
"""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_distill.inputs import gather, identity_of, read_from
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import PHASE, Chain, Recipe
from dstools_distill.recipe.settings import Student
from dstools_distill.recipe.stages import STAGES, TRAINED
from dstools_distill.store.ranks import is_launched, world_size
from dstools_distill.store.stage import (
    MANIFEST,
    Bar,
    Done,
    Identity,
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
        """Run one stage on the earlier ones as they are in the folder."""
        row, settings = STAGES[stage], chain.stages[stage]
        if world_size() > 1 and not row.trains:
            raise DstoolsError(
                f"{stage}: runs in one process, and a launcher started {world_size()}",
                f"launch only {', '.join(TRAINED)}: `dstools distill sft RECIPE`",
            )
        inputs = gather(self.places, chain, stage, self._make)
        identity = identity_of(self.places, stage, settings, inputs)
        done = find(self._store, identity)
        wants_launch = row.trains and (settings.processes, settings.parallel) != (1, "single")
        if done is None and wants_launch and not is_launched():
            self._launch(chain, stage)
            done = find(self._store, identity)
            assert done is not None, "the launched processes ended well and left nothing"
            done = replace(done, is_reused=False)
        if done is None:
            done = self._run(identity, lambda work: row.load()(settings, inputs, work))
        self.places.link(chain.name, stage, done.folder)
        if stage == "eval":
            _require_score(done, settings.at_least)
        return done

    def _run(self, identity: Identity, body: Callable[[Work], Report]) -> Done:
        return run_stage(self._store, identity, body, self._work)

    def _make(self, identity: Identity, body: Callable[[Work], Report]) -> Path:
        return self._run(identity, body).folder

    def _launch(self, chain: Chain, stage: str) -> None:
        """Run one training stage in several processes, each of which comes here again."""
        from dstools_distill.training.trainer import require_machine

        require_machine(chain.stages[stage])
        words = [stage, os.fspath(self.recipe.path), "--out", os.fspath(self.places.out)]
        words += ["--chain", chain.name] if chain.name else []
        launch(chain.stages[stage], words)

    def _work(self, folder: Path) -> Work:
        return Work(folder, self.workers, self.bar)

    def run_card(self) -> Done:
        """Write the card of everything that is finished."""
        row, settings = STAGES["card"], self.recipe.card
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
        identity = identify("card", row.revision, said, inputs, row.packages)
        done = self._run(identity, lambda work: row.load()(settings, students, stages, work))
        self.places.link("", "card", done.folder)
        return done

    def _require_lineage(self, chain: Chain, folders: dict[str, Path]) -> None:
        """Raise DstoolsError where a stage was not made from what lies there of the one before it."""
        for stage, folder in folders.items():
            made_from = read_manifest(folder)["inputs"]
            for name, earlier in read_from(chain, stage).items():
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
