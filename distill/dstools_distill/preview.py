"""A preview of a run: what is done, what would run, how many rows, and how much disk it takes.

Nothing is run and nothing is written.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dstools_converters.errors import DstoolsError
from dstools_distill.estimate import CARD_BYTES, Size, Sizes, expected, measured
from dstools_distill.inputs import Make, gather, identity_of
from dstools_distill.lineage import gather_card
from dstools_distill.machine import Fault, lack
from dstools_distill.pipeline import stages_from
from dstools_distill.places import PendingError, Places
from dstools_distill.preflight import preflight
from dstools_distill.recipe.recipe import Chain
from dstools_distill.store.stage import Identity, Report, Work, find

State = Literal["done", "kept", "would run"]


@dataclass(frozen=True)
class Step:
    """A stage in a preview. None: not known."""

    chain: str
    stage: str
    state: State  # kept: before --from, so used as it is
    folder: str | None  # of its result
    rows: int | None  # that it leaves; where it would run, at most so many
    tokens: int | None  # in the rows, or to be generated
    disk_bytes: int | None  # needed to run it, at most; 0 where it is done


@dataclass(frozen=True)
class Preview:
    """What a run of a recipe would do."""

    out: str
    steps: tuple[Step, ...]
    disk_needed: int  # the sum over the steps where it is known
    disk_free: int
    disk_unknown: tuple[str, ...]  # the steps where it is not known
    unfit: dict[str, str]  # the steps that this machine cannot run, and what it lacks


def preview(places: Places, start: str) -> Preview:
    """Return what a run from `start` on would do, "" for all of it.

    Raises DstoolsError for what the run itself would refuse on any machine.
    """
    plan = list(stages_from(places.recipe, start))
    if not start:
        places.require()
        preflight(places)
    links: dict[str, Path] = {}
    seen, make = replace(places, links=links), _only_find(places.out / "store")
    sizes: dict[str, Sizes] = {}
    steps = []
    for chain, stage, is_run in plan:
        folder = _folder(seen, chain, stage, make) if is_run else places.finished(chain, stage)
        earlier = sizes.setdefault(chain.name, {})
        if folder is None:
            earlier[stage] = expected(seen, chain, stage, earlier)
        else:
            links[_name(chain.name, stage)] = folder
            earlier[stage] = measured(folder)
        state: State = "done" if is_run else "kept"
        steps.append(_step(chain.name, stage, state, folder, earlier[stage]))
    if places.recipe.card:
        folder = _card(seen, make)
        steps.append(_step("", "card", "done", folder, Size(nbytes=CARD_BYTES)))
    faults = unfit(places)
    running = [_name(step.chain, step.stage) for step in steps if step.state == "would run"]
    above = places.out.absolute()
    existing = next(path for path in (above, *above.parents) if path.exists())
    return Preview(
        out=str(places.out),
        steps=tuple(steps),
        disk_needed=sum(step.disk_bytes or 0 for step in steps),
        disk_free=shutil.disk_usage(existing).free,
        disk_unknown=tuple(_name(s.chain, s.stage) for s in steps if s.disk_bytes is None),
        unfit={name: faults[name][0] for name in running if name in faults},
    )


def unfit(places: Places) -> dict[str, Fault]:
    """Return what this machine lacks for stages of the recipe, done or not, by CHAIN/STAGE."""
    faults = {
        _name(chain.name, stage): lack(settings)
        for chain in places.recipe.chains
        for stage, settings in chain.stages.items()
    }
    return {name: fault for name, fault in faults.items() if fault}


def require_machine(places: Places, start: str) -> None:
    """Raise DstoolsError where a run from `start` on would come to a stage that needs another one.

    A stage that is done needs no machine.
    """
    faults, chain = unfit(places), places.recipe.chains[0]
    options = ["--chain", chain.name] if chain.name else []
    for name in preview(places, start).unfit if faults else ():
        problem, advice = faults[name]
        raise DstoolsError(
            f"{places.recipe.path}: {name}: {problem}",
            f"{advice}; or, if another machine is to run it, run the stages before it one by one "
            f"here, as `{places.command(next(iter(chain.stages)), *options)}`, and the rest there",
        )


def check(places: Places) -> None:
    """Raise DstoolsError where a run is sure to fail: by settings, paths or missing stages."""

    def make(identity: Identity, _body: Callable[[Work], Report]) -> Path:
        raise PendingError(identity.name)

    places.require()
    preflight(places)
    seen = replace(places, links={})
    for chain, stage, _ in stages_from(places.recipe, ""):
        try:
            gather(seen, chain, stage, make)
        except PendingError:
            continue


def _only_find(store: Path) -> Make:
    """Return a function that finds the folder of an identity, or raises PendingError."""

    def make(identity: Identity, _body: Callable[[Work], Report]) -> Path:
        done = find(store, identity)
        if done is None:
            raise PendingError(identity.name)
        return done.folder

    return make


def _folder(places: Places, chain: Chain, stage: str, make: Make) -> Path | None:
    """Return the finished folder that a run would reuse; None where it would run the stage."""
    try:
        inputs = gather(places, chain, stage, make)
        identity = identity_of(places, stage, chain.stages[stage], inputs)
        return make(identity, lambda work: {})
    except PendingError:
        return None


def _card(places: Places, make: Make) -> Path | None:
    try:
        return make(gather_card(places).identity(), lambda work: {})
    except PendingError:
        return None


def _step(chain: str, stage: str, state: State, folder: Path | None, size: Size) -> Step:
    if folder is not None:
        return Step(chain, stage, state, str(folder), size.rows, size.tokens, 0)
    needed = size.nbytes if size.peak_bytes is None else size.peak_bytes
    return Step(chain, stage, "would run", None, size.rows, size.tokens, needed)


def _name(chain: str, stage: str) -> str:
    return f"{chain}/{stage}" if chain else stage
