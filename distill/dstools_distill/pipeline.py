"""The run of a recipe: each stage on the results of the earlier ones.

OUT/store/sft-1a2b3c4d5e6f/      a result, see store/stage.py; it never changes
OUT/sft -> store/sft-...         the result of the recipe as it is now; or OUT/CHAIN/sft
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_distill.inputs import gather, identity_of
from dstools_distill.lineage import gather_card
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import Chain, Recipe
from dstools_distill.recipe.stages import STAGES
from dstools_distill.store.ranks import is_launched, world_size
from dstools_distill.store.stage import Bar, Done, Identity, Report, Work, find, run_stage
from dstools_distill.training.launch import launch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """A recipe, the places of its results, and what stages work with."""

    places: Places
    workers: int
    bar: Bar

    @property
    def recipe(self) -> Recipe:
        """Return the recipe."""
        return self.places.recipe

    @property
    def store(self) -> Path:
        """Return the folder of all results."""
        return self.places.out / "store"

    def run(self, start: str, report: Callable[[str, str, Done], None]) -> None:
        """Run every stage from `start` on, "" for all, "sft" or "chain/sft", and report each.

        Earlier stages are used as they are in the folder, whatever the recipe says now.
        """
        plan = list(stages_from(self.recipe, start))
        if not start:
            self.places.require()
            if unknown := self.places.unknown_licences():
                log.warning(
                    "unknown licences: %s. Samples carry them: if you add one later, every stage "
                    "runs again (but a server is not asked again for what it has answered)",
                    ", ".join(unknown),
                )
        for chain, stage, is_run in plan:
            if is_run:
                report(chain.name, stage, self.run_one(chain, stage))
            else:
                self.places.finished(chain, stage)
        if self.recipe.card:
            report("", "card", self.run_card())

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
        self.places.require_free(chain.name, stage)
        if world_size() > 1 and not row.trains:
            several = (name for name, other in STAGES.items() if other.trains)
            raise DstoolsError(
                f"{stage}: runs in one process, and a launcher started {world_size()}",
                f"launch only {', '.join(several)}: `dstools distill sft RECIPE`",
            )
        inputs = gather(self.places, chain, stage, self._make)
        identity = identity_of(self.places, stage, settings, inputs)
        done = find(self.store, identity)
        wants_launch = row.trains and (settings.processes, settings.parallel) != (1, "single")
        if done is None and wants_launch and not is_launched():
            self._launch(chain, stage)
            done = find(self.store, identity)
            assert done is not None, "the launched processes ended well and left nothing"
            done = replace(done, is_reused=False)
        if done is None:
            done = self._run(identity, lambda work: row.load()(settings, inputs, work))
        self.places.link(chain.name, stage, done.folder)
        if stage == "eval":
            _require_score(done, settings.at_least)
        return done

    def run_card(self) -> Done:
        """Write the card of everything that is finished."""
        self.places.require_free("", "card")
        read = gather_card(self.places)

        def write(work: Work) -> Report:
            report: Report = STAGES["card"].load()(read.settings, read.students, read.stages, work)
            return report

        done = self._run(read.identity(), write)
        self.places.link("", "card", done.folder)
        return done

    def _run(self, identity: Identity, body: Callable[[Work], Report]) -> Done:
        return run_stage(self.store, identity, body, self._work)

    def _make(self, identity: Identity, body: Callable[[Work], Report]) -> Path:
        return self._run(identity, body).folder

    def _work(self, folder: Path) -> Work:
        return Work(folder, self.workers, self.bar)

    def _launch(self, chain: Chain, stage: str) -> None:
        """Run one training stage in several processes, each of which calls `run_one` again."""
        from dstools_distill.training.trainer import require_machine

        require_machine(chain.stages[stage])
        words = [stage, os.fspath(self.recipe.path), "--out", os.fspath(self.places.out)]
        words += ["--chain", chain.name] if chain.name else []
        launch(chain.stages[stage], words)


def stages_from(recipe: Recipe, start: str) -> Iterator[tuple[Chain, str, bool]]:
    """Yield every stage of every chain, and whether a run that starts at `start` runs it.

    Raises DstoolsError if the recipe has no stage `start`.
    """
    chain_name, _, stage_name = start.rpartition("/")
    if start and not any(
        stage_name == stage and chain_name in ("", chain.name)
        for chain in recipe.chains
        for stage in (*chain.stages, *(["card"] if recipe.card else []))
    ):
        raise DstoolsError(
            f"--from {start}: the recipe has no such stage",
            "name a stage that the recipe has a table for, or CHAIN/STAGE",
        )
    is_run = not start
    for chain in recipe.chains:
        if not (chain_name or recipe.is_phased):
            is_run = not start  # "sft" means that of each arm
        for stage in chain.stages:
            is_run = is_run or (stage == stage_name and chain_name in ("", chain.name))
            yield chain, stage, is_run


def _require_score(done: Done, at_least: float) -> None:
    """Raise ShortfallError if the last model of an evaluation scores too low."""
    name, last = list(done.report["models"].items())[-1]
    score = last["pass@1"]["value"]
    if score < at_least:
        unknown = last["unverifiable"]
        told = f" of the {1 - unknown:.1%} that could be judged" if unknown else ""
        reached = f"pass@1 is {score:.1%}{told}" if unknown < 1 else "no answer could be judged"
        raise ShortfallError(
            f"{done.folder}: {name}: {reached}, eval.at_least is {at_least:.1%}",
            "see the answers and their verdicts there",
        )
