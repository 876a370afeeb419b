"""Faults of a recipe that only a late stage meets, found before the first one runs.

Otherwise they would be found when the teacher's answers are paid for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError
from dstools_distill.judge.prose import require_language
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import PHASE, Chain
from dstools_distill.recipe.settings import Training
from dstools_distill.recipe.stages import STAGES

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def preflight(places: Places) -> None:
    """Raise DstoolsError, naming file, table and key, for what a stage of the recipe would refuse.

    Reads names of files and configs, but no weights and no rows.
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


def _require_known(settings: Training, where: str) -> None:
    """Raise DstoolsError for the name of an optimizer or an attention that transformers lacks."""
    has_usual_optimizer = settings.optimizer in (Training.optimizer, "muon")
    if not (has_usual_optimizer and settings.attention in (Training.attention, "eager")):
        from dstools_distill.training.trainer import require_names  # needs seconds

        require_names(settings, where)


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
    if student is None or not (chain.student.model.startswith(PHASE) or names_mtp(student)):
        raise DstoolsError(
            f"{where}mtp: {student or 'a new student'} has no MTP layer to fit",
            "name a student.model like DeepSeek-V3, which has one, or leave out [mtp]",
        )
