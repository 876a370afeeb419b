"""Faults of a recipe that only a late stage meets, found before the first one runs.

Otherwise they would be found when the teacher's answers are paid for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError
from dstools_distill.judge.prose import require_language
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import PHASE, Chain
from dstools_distill.recipe.settings import Training
from dstools_distill.recipe.stages import STAGES

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def preflight(places: Places) -> None:
    """Raise DstoolsError, naming file, table and key, for what a stage of the recipe would refuse.

    Reads names of files, configs, tokenizers, indexes and the first row of each source, but no
    other rows. For [mtp] it also reads the headers of the weights, and a head that is tied.
    """
    if places.recipe.card:
        places.require_free("", "card")
    for chain in places.recipe.chains:
        where = f"{places.recipe.path}: {chain.name}: " if chain.name else f"{places.recipe.path}: "
        for stage, settings in chain.stages.items():
            places.require_free(chain.name, stage)
            if STAGES[stage].trains:
                _require_known(settings, f"{where}{stage}.")
        for key, language in _languages(chain.stages):
            require_language(language, f"{where}{key}")
        for key, name in _loaded(chain):
            if not name.startswith(PHASE):
                _require_weights(places.model(name, key), f"{where}{key}: ")
        if "mtp" in chain.stages:
            _require_mtp(places, chain, where)
        _require_settings(places, chain)
        _require_readable(places, chain)


def _require_known(settings: Training, where: str) -> None:
    """Raise DstoolsError for the name of an optimizer or an attention that transformers lacks."""
    has_usual_optimizer = settings.optimizer in (Training.optimizer, "muon")
    if not (has_usual_optimizer and settings.attention in (Training.attention, "eager")):
        from dstools_distill.training.trainer import require_names  # needs seconds

        require_names(settings, where)


def _require_settings(places: Places, chain: Chain) -> None:
    """Raise DstoolsError for settings that a stage of data refuses when its turn comes."""
    stages = chain.stages
    if "generate" in stages:
        from dstools_distill.teachers.generate import check_generate

        check_generate(stages["generate"])
    if "select" in stages:
        from dstools_distill.data.select import check_select

        check_select(stages["select"], is_judged="verify" in stages)
    has_exam = any("eval" in one.stages for one in places.recipe.chains)
    if "decontaminate" in stages and not chain.index and not has_exam:
        from dstools_distill.data.decontaminate import NO_INDEX

        raise DstoolsError(*NO_INDEX)


def _require_readable(places: Places, chain: Chain) -> None:
    """Raise DstoolsError for a file that a stage could not read, by the first row of a large one.

    What an earlier phase has yet to make is not looked into.
    """
    from dstools_distill.data.benchmarks import load_index
    from dstools_distill.data.prompts import require_questions
    from dstools_distill.data.select import conversations
    from dstools_distill.tokens.templates import load_tokenizer

    stages, student = chain.stages, chain.student
    for settings in (stages[name] for name in ("prompts", "eval") if name in stages):
        for source, file in zip(settings.source, places.sources(settings), strict=True):
            if not source.path.startswith((PHASE, "datasets:")):  # those may take minutes
                require_questions(source, file)
    for name in chain.index:
        if not name.startswith(PHASE):
            load_index(places.path(name))
    mixed = stages["select"].non_reasoning if "select" in stages else ""
    if mixed and not mixed.startswith(PHASE):
        next(conversations(places.path(mixed), ""))
    reads_tokenizer = any("tokenizer" in STAGES[stage].reads for stage in stages)
    if reads_tokenizer and not (student.tokenizer or student.model).startswith(PHASE):
        load_tokenizer(places.tokenizer(chain), student.template)


def _languages(stages: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and value of each language that traces are compared with."""
    if "verify" in stages and stages["verify"].language:
        yield "verify.language", stages["verify"].language
    if "grpo" in stages and stages["grpo"].language_weight:
        yield "grpo.language", stages["grpo"].language


def _loaded(chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield key and name of each model whose weights are loaded once samples are there."""
    evaluated = "eval" in chain.stages and chain.stages["eval"].baseline
    trained = "mtp" in chain.stages or any(STAGES[stage].trains for stage in chain.stages)
    if chain.student.model and (evaluated or trained):
        yield "student.model", chain.student.model
    if "kd" in chain.stages:
        yield "kd.teacher", chain.stages["kd"].teacher


def _require_weights(folder: Path, where: str) -> None:
    """Raise DstoolsError for a folder without a file of weights."""
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise DstoolsError(
            f"{where}{folder} has no weights, neither {' nor '.join(WEIGHTS)}",
            "download the whole model; a tokenizer alone is named by student.tokenizer",
        )


def _require_mtp(places: Places, chain: Chain, where: str) -> None:
    """Raise DstoolsError where [mtp] would find no MTP layer to fit."""
    for stage, settings in chain.stages.items():
        if STAGES[stage].trains and settings.mtp == "drop":
            hint = 'set it to "keep", or leave out [mtp]'
            raise DstoolsError(f'{where}{stage}.mtp: "drop" leaves [mtp] no layer to fit', hint)
    student = places.student(chain)
    if student is not None and chain.student.model.startswith(PHASE):
        return
    if student is None or not names_mtp(student):
        raise DstoolsError(
            f"{where}mtp: {student or 'a new student'} has no MTP layer to fit",
            "name a student.model like DeepSeek-V3, which has one, or leave out [mtp]",
        )
    from dstools_distill.training.untrained import with_one_layer  # needs seconds

    try:
        with open_checkpoint(student) as checkpoint:
            with_one_layer(checkpoint)
    except DstoolsError as error:
        raise DstoolsError(f"{where}mtp: {error}", error.hint) from error
