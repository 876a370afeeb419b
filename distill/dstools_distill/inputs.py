"""The inputs of a stage, gathered from the places of a recipe, and the identity they give it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError
from dstools_distill.data.benchmarks import EVAL_INDEX
from dstools_distill.places import PendingError, Places
from dstools_distill.recipe.presets import BUNDLED
from dstools_distill.recipe.recipe import PHASE, Chain
from dstools_distill.recipe.settings import Eval, Prompts
from dstools_distill.recipe.stages import STAGES, TRAINED, Inputs
from dstools_distill.store.stage import Identity, Report, Work, identify

# makes the folder of an identity by running the function, or finds it
Make = Callable[[Identity, Callable[[Work], Report]], Path]


def gather(places: Places, chain: Chain, stage: str, make: Make) -> Inputs:
    """Return what a stage of a chain reads.

    make: called for the problems of evaluations and their indexes, which belong to no chain.
    Raises DstoolsError, naming the next command, where an earlier stage is not finished. In a
    preview, raises PendingError where one would run first and nothing else is wrong.
    """
    settings, student = chain.stages[stage], chain.student
    readers: dict[str, Callable[[], Any]] = {
        "sources": lambda: tuple(places.sources(settings)),
        "pass_rates": lambda: places.file(settings.pass_rates),
        "prompts": lambda: places.finished(chain, "prompts"),
        "samples": lambda: places.before(chain, stage),
        "mixed": lambda: places.file(settings.non_reasoning),
        "rows": lambda: places.finished(chain, "render"),
        "problems": lambda: _problems(places, settings, make),
        "indexes": lambda: _indexes(places, chain, make),
        "model": lambda: _model(places, chain, stage),
        "models": lambda: _models(places, chain, settings),
        "teacher": lambda: places.model(settings.teacher, f"{stage}.teacher"),
        "tokenizer": lambda: places.tokenizer(chain),
        "template": lambda: student.template,
        "init": lambda: student.init,
        "judge": lambda: chain.judge,
    }
    values = dict[str, Any]()
    pending = None
    for name in STAGES[stage].reads:
        if name == "indexes" and values.get("mixed", chain) is None:
            continue  # of conversations that are mixed in, and there are none
        try:
            values[name] = readers[name]()
        except PendingError as error:
            pending = error
    if pending is not None:
        raise pending
    return Inputs(**values)


def identity_of(places: Places, stage: str, settings: Any, inputs: Inputs) -> Identity:
    """Return the identity of a stage: all that decides its bytes."""
    row, values = STAGES[stage], asdict(settings)
    for name in row.how:
        del values[name]
    if row.trains and not (inputs.model and names_mtp(inputs.model)):
        del values["mtp"]  # there is nothing to keep or drop
    read = inputs.paths()
    for name in row.paths:  # an input counts by its content, wherever it is
        is_read = places.path(values[name]) in read.values()  # or it is a name that a server knows
        if is_read and not values[name].startswith(PHASE):
            values[name] = Path(values[name].removeprefix(BUNDLED)).name
    values |= inputs.shared_settings(row.reads)
    return identify(stage, row.revision, values, read, row.packages)


def read_from(chain: Chain, stage: str) -> dict[str, str]:
    """Return which stages of its own chain a stage reads, by the name of the input."""
    trained = chain.trained_before(stage)
    earlier = {
        "prompts": ("prompts", "prompts"),
        "samples": ("samples", chain.data_before(stage)),
        "rows": ("rows", "render"),
        "model": ("model", trained),
        "models": ("after", trained),
    }
    names = (earlier[name] for name in STAGES[stage].reads if name in earlier)
    return {name: other for name, other in names if other is not None}


def _model(places: Places, chain: Chain, stage: str) -> Path | None:
    """Return the model that a stage samples from or trains; None for a new one or an endpoint."""
    settings = chain.stages[stage]
    if stage == "generate":
        if settings.backend == "hf":
            return places.model(settings.model, "generate.model")
        return places.file(settings.model) if settings.backend == "replay" else None
    if "init" in STAGES[stage].reads:
        return places.student(chain)
    return places.trained(chain, before=stage)


def _models(places: Places, chain: Chain, settings: Eval) -> dict[str, Path]:
    """Return the models that are evaluated, by name."""
    models = {}
    if settings.baseline and chain.student.model:
        models["before"] = places.model(chain.student.model, "student.model")
    if any(stage in chain.stages for stage in TRAINED):
        models["after"] = places.trained(chain, before="eval")
    if not models:
        raise DstoolsError(
            f"{places.recipe.path}: eval has no model", "set eval.baseline = true, or train one"
        )
    return models


def _indexes(places: Places, chain: Chain, make: Make) -> tuple[Path, ...]:
    """Return the indexes of what must not be trained on, the problems of every [eval] included."""
    named = [places.path(name) for name in chain.index]
    exams = [one.stages["eval"] for one in places.recipe.chains if "eval" in one.stages]
    problems = dict.fromkeys(_problems(places, exam, make) for exam in exams)
    return (*named, *(_index(folder, make) for folder in problems))


def _index(problems: Path, make: Make) -> Path:
    """Return the index of an evaluation's problems."""

    def run(work: Work) -> Report:
        from dstools_distill.data.decontaminate import index_problems

        return index_problems(problems, work.folder)

    identity = identify("index", 3, {}, {"problems": problems}, ("numpy",))
    return make(identity, run) / EVAL_INDEX


def _problems(places: Places, settings: Eval, make: Make) -> Path:
    """Return the folder with the problems of an evaluation, made like any prompts."""
    asked = Prompts(source=settings.source, limit=settings.limit)
    inputs = Inputs(sources=tuple(places.sources(asked)))
    identity = identity_of(places, "prompts", asked, inputs)
    return make(identity, lambda work: STAGES["prompts"].load()(asked, inputs, work))
