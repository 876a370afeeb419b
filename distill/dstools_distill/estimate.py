"""The size of a stage's result: counted where it is done, else a bound from settings and inputs.

Bounds hold where texts are ordinary: a token is taken as four bytes of text, a problem of a
reasoning-gym task as 1 KiB. None: not known.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError
from dstools_distill.places import PendingError, Places
from dstools_distill.recipe.recipe import Chain
from dstools_distill.recipe.settings import Eval, Prompts, Training
from dstools_distill.recipe.stages import STAGES
from dstools_distill.store.stage import read_manifest

TASK_ROW_BYTES = 1024
TEXT_BYTES = 8  # of a token: four, stored as it came and again as trace and answer
LABEL_BYTES = 8  # of a token: id and label, int32 each
VERDICT_BYTES = 512
CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Size:
    """How much a stage leaves, and takes while it runs."""

    rows: int | None = None
    nbytes: int | None = None  # of its folder
    tokens: int | None = None
    parameters: int | None = None  # of a model
    peak_bytes: int | None = None  # where more than `nbytes` is needed while it runs


Sizes = dict[str, Size]  # of the earlier stages of a chain


def measured(folder: Path) -> Size:
    """Return the size of a finished stage."""
    manifest = read_manifest(folder)
    report = manifest["report"]
    tokens = report.get("tokens")
    if isinstance(tokens, dict):  # of an endpoint
        tokens = tokens.get("completion_tokens")
    nbytes = sum(file["bytes"] for file in manifest["outputs"].values())
    return Size(report["out"], nbytes, tokens, report.get("parameters"))


def expected(places: Places, chain: Chain, stage: str, earlier: Sizes) -> Size:
    """Return bounds of the size of a stage that has yet to run."""
    settings = chain.stages[stage]
    if STAGES[stage].trains:
        return _trained(places, chain, stage, earlier)
    if STAGES[stage].leaves_model:
        return _copied(places, chain, stage, earlier)
    if stage == "prompts":
        return _asked(places, settings)
    if stage == "generate":
        asked = earlier.get("prompts", Size())
        rows = _product(asked.rows, settings.samples)
        tokens = _product(rows, settings.max_tokens)
        nbytes = _total([_product(asked.nbytes, settings.samples), _product(tokens, TEXT_BYTES)])
        return Size(rows, nbytes, tokens, peak_bytes=_product(nbytes, 2))  # a log, then records
    if stage == "eval":
        problems = _asked(places, settings)
        models = settings.baseline + any(STAGES[name].leaves_model for name in chain.stages)
        tokens = _product(problems.rows, settings.samples * models * settings.max_tokens)
        return Size(problems.rows, _product(tokens, TEXT_BYTES), tokens)
    before = earlier.get(chain.data_before(stage) or "", Size())
    if stage == "select":
        return _selected(places, settings, before)
    if stage == "render":
        longest = _product(before.rows, settings.max_length)
        tokens = None if longest is None or before.nbytes is None else min(longest, before.nbytes)
        return Size(before.rows, _product(tokens, LABEL_BYTES), tokens)
    return Size(before.rows, _total([before.nbytes, _product(before.rows, VERDICT_BYTES)]))


def _asked(places: Places, settings: Prompts | Eval) -> Size:
    """Return bounds of the prompts from some sources."""
    rows: list[int | None] = []
    nbytes: list[int | None] = []
    for source, path in zip(settings.source, places.sources(settings), strict=True):
        is_task = source.path.startswith("rg:")
        rows.append(source.size if is_task else _lines(path))
        file_bytes = path.stat().st_size if path else None
        # rows get ids and forms
        nbytes.append(source.size * TASK_ROW_BYTES if is_task else _product(file_bytes, 2))
    total = _total(rows)
    if settings.limit:
        total = settings.limit if total is None else min(total, settings.limit)
    return Size(total, _total(nbytes))


def _selected(places: Places, settings: Any, before: Size) -> Size:
    """Return bounds of what is selected, conversations that are mixed in included."""
    rows, nbytes = before.rows, before.nbytes
    if mixed := places.file(settings.non_reasoning):
        rows, nbytes = _total([rows, _lines(mixed)]), _total([nbytes, 2 * mixed.stat().st_size])
    return Size(min(rows, settings.limit) if rows and settings.limit else rows, nbytes)


def _trained(places: Places, chain: Chain, stage: str, earlier: Sizes) -> Size:
    """Return bounds of a trained model, and of two checkpoints while it is trained."""
    settings: Training = chain.stages[stage]
    data = earlier.get("render" if stage == "sft" else "prompts", Size())
    before = chain.trained_before(stage)
    model = earlier.get(before, Size()).parameters if before else _student(places, chain)[0]
    weight = 2 if settings.precision == "bfloat16" else 4
    average = 4 if settings.ema else 0
    state = 8 + (4 if settings.optimizer == "muon" else 0)  # of the optimizer
    nbytes = _product(model, weight + average)
    checkpoint = _product(model, weight + average + state)
    peak = _total([nbytes, _product(checkpoint, 2)])
    return Size(data.rows, nbytes, data.tokens, model, peak)


def _copied(places: Places, chain: Chain, stage: str, earlier: Sizes) -> Size:
    """Return bounds of a model of which one layer is replaced, and of states while it is fitted."""
    before, data = chain.trained_before(stage), earlier.get("render", Size())
    parameters, width = _student(places, chain)
    model = earlier.get(before, Size()) if before else Size(parameters=parameters)
    nbytes = _product(model.parameters, 4) if model.nbytes is None else model.nbytes
    # of a token and of the padding after it, as rows are less than twice as long as others
    states = None if width is None else _product(data.tokens, 2 * 4 * width)
    return Size(data.rows, nbytes, data.tokens, model.parameters, _total([nbytes, states]))


def _student(places: Places, chain: Chain) -> tuple[int | None, int | None]:
    """Return the parameters and the hidden size of an untrained student; None of a new one."""
    try:
        folder = places.student(chain)
        if folder is None:
            return None, None
        with open_checkpoint(folder) as checkpoint:
            parameters = sum(info.numel for info in checkpoint.tensors.values())
            return parameters, checkpoint.config.get("hidden_size")
    except (DstoolsError, PendingError):
        return None, None


def _lines(path: Path | None) -> int | None:
    """Return the number of lines of a JSONL file; None of another file."""
    if path is None or path.suffix not in (".jsonl", ".json"):
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


def _product(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)
