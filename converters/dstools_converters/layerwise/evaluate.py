"""Perplexity of a checkpoint on a text, and its distance from the checkpoint it was made from.

Both models run over the text together, one decoder layer at a time from disk. First a layer of the
reference runs on its own hidden states; meanwhile the same weights of the other model are
multiplied with the same inputs, which gives the output error of each linear map in isolation. Then
the layer of the other model runs on its own hidden states, which carry the errors of all layers
before. So routers are compared on the inputs that they get in deployment. MTP layers do not run.

A model with FP8 weights runs twice on the same weights, which are read once: with their inputs
rounded as engines do it, and with no input rounded, which leaves the errors of the weights. The
reference runs with no input rounded, whatever its format.

T: tokens, D: width, K: experts a token is sent to.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.checkpoint.tied import require_tied
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.families.names import Role, TensorName
from dstools_converters.files import real
from dstools_converters.layerwise.corpus import Corpus
from dstools_converters.layerwise.runner import DAMAGED, INPUTS, Runner, Stream
from dstools_converters.layerwise.scores import Scores, head, score
from dstools_converters.layerwise.spill import Spill
from dstools_converters.model.architecture import Architecture, read_architecture
from dstools_converters.sidefiles.data import Data
from dstools_converters.sidefiles.evaluation import (
    Activations,
    Evaluation,
    Figures,
    Histogram,
    OutputError,
)
from dstools_converters.sidefiles.hub_cache import snapshot_of

MAX_LOG = 700.0  # exp of more overflows a float
TINY = 1e-100  # in place of a sum of squares that is 0
KL_EDGES = tuple(10 ** (step / 5 - 7) for step in range(46))  # 1e-7 to 100 nats, five bins a decade


def evaluate(
    model: Inventory,
    against: Inventory | None,
    corpus: Corpus,
    *,
    activations: Activations | None = None,
    tool: str,
    device: str,
    ram_bytes: int,
    folder: Path,
    progress: Progress = lambda nbytes: None,
) -> Evaluation:
    """Return the perplexity of `model` on the corpus, and its distance from `against`.

    `activations` are those of the main figures, None for "fp8" where the model has FP8 weights and
    "none" where it has not. With FP8 weights the other figures are in `other_activations`. Hidden
    states beyond `ram_bytes` are kept in `folder`, which must be empty and is left empty; other
    memory grows by some 100 bytes a token. The same inputs and threads give the same numbers.

    Raises DstoolsError if the architectures differ or cannot be run, if a tied model has another
    head, if activations are to be rounded for a model without FP8 weights and, naming tensor or
    layer, for NaN or infinity. ValueError for samples of one token.
    """
    if corpus.seq_len < 2:
        raise ValueError(f"a sample must have at least 2 tokens, got {corpus.seq_len}")
    choices = activations_of(model, activations)
    inventories = [model] if against is None else [against, model]
    if against is not None:
        _require_same(against, model)
    ids = torch.from_numpy(corpus.ids).long()
    at_once = 2 * len(choices) + (against is not None)  # hidden states before and after a layer
    runners = [
        _runner(inventory, ids, device, folder / str(number), ram_bytes, at_once)
        for number, inventory in enumerate(inventories)
    ]
    for runner in runners:
        runner.folder.mkdir()
    reference: list[tuple[Activations, ...]] = [] if against is None else [("none",)]
    hidden, flips, errors = _run_layers(runners, [*reference, choices], progress)
    scores, kl = score(runners, hidden, progress)
    for runner in runners:
        runner.folder.rmdir()
    for inventory in (model, *([against] if against else [])):
        inventory.checkpoint.check_unmoved()

    is_predicting = torch.ones_like(ids, dtype=torch.bool)
    is_predicting[:, -1] = False  # the last token of a sample has no next one
    predicting_T = is_predicting.flatten()
    figures = _figures(choices, scores, kl, flips, predicting_T)
    return Evaluation(
        tool=tool,
        model=label(model.checkpoint.folder),
        against=None if against is None else label(against.checkpoint.folder),
        data=Data(**corpus.provenance),
        tokens=int(predicting_T.sum()),
        perplexity_against=None if against is None else _perplexity(scores[0], predicting_T),
        output_error=tuple(errors),
        other_activations=figures[1] if len(figures) == 2 else None,
        **vars(figures[0]),
    )


def _runner(
    inventory: Inventory, ids: Tensor, device: str, folder: Path, ram_bytes: int, at_once: int
) -> Runner:
    require_tied(inventory)
    architecture = read_architecture(inventory.checkpoint.config)
    return Runner(
        inventory,
        architecture,
        ids,
        device=device,
        folder=folder,
        ram_bytes=ram_bytes,
        at_once=at_once,
    )


def activations_of(model: Inventory, first: Activations | None) -> tuple[Activations, ...]:
    """Return the activations to evaluate `model` with, `first` first; None is the default.

    Raises DstoolsError where the model has no FP8 weight whose input could be rounded.
    """
    if model.quantized():
        return ("none", "fp8") if first == "none" else ("fp8", "none")
    if first == "fp8":
        raise DstoolsError(
            f"{model.checkpoint.folder}: has no FP8 weights, so no engine rounds its activations",
            "leave out --activations, or evaluate what `dstools quantize` makes of it",
        )
    return ("none",)


def _figures(
    choices: tuple[Activations, ...],
    scores: list[Scores],
    kl: list[Tensor],
    flips: list[dict[int, float]],
    predicting_T: Tensor,
) -> list[Figures]:
    """Return the figures of each choice; the first of more `scores` are those of a reference."""
    made = len(choices)
    figures = [
        Figures(activations=choice, perplexity=_perplexity(one, predicting_T))
        for choice, one in zip(choices, scores[-made:], strict=True)
    ]
    if len(scores) == made:
        return figures
    return [
        replace(_with_distance(one, scores[0], other, kl_T, predicting_T), router_flips=flip)
        for one, other, kl_T, flip in zip(figures, scores[1:], kl[1:], flips, strict=True)
    ]


def _perplexity(scores: Scores, predicting_T: Tensor) -> float:
    return math.exp(min(scores.surprise()[predicting_T].mean().item(), MAX_LOG))


def _with_distance(
    figures: Figures, reference: Scores, scores: Scores, kl_T: Tensor, predicting_T: Tensor
) -> Figures:
    """Return `figures` with the distance of the predictions from those of the reference."""
    kl = kl_T[predicting_T].numpy()
    clipped = kl.clip(KL_EDGES[0], KL_EDGES[-1])
    is_same_T = reference.top_T == scores.top_T
    return replace(
        figures,
        kl_mean=kl.mean().item(),
        kl_p99=np.quantile(kl, 0.99).item(),
        kl_max=kl.max().item(),
        top1_agreement=is_same_T[predicting_T].double().mean().item(),
        kl_histogram=Histogram(KL_EDGES, tuple(np.histogram(clipped, KL_EDGES)[0].tolist())),
    )


def total_bytes(*inventories: Inventory) -> int:
    """Return the sum of the bytes that are reported to `progress`."""
    total = 0
    for inventory in inventories:
        inside = {n for n, _ in inventory.model.weights() if n.layer is not None and not n.is_mtp}
        total += sum(inventory.info(name).nbytes for name in inside | {head(inventory)})
    return total


def label(folder: Path) -> str:
    """Return the name of the folder; of a snapshot in a Hub cache, org/name."""
    snapshot = snapshot_of(folder)
    return snapshot.repository if snapshot else real(folder).name


def _require_same(against: Inventory, model: Inventory) -> None:
    """Raise DstoolsError naming the key of config.json by which the architectures differ.

    They may differ in MTP layers, which do not run, and in whether the head is tied.
    """
    configs = [inventory.checkpoint.config for inventory in (against, model)]
    wanted, actual = (_without_ends(read_architecture(config)) for config in configs)
    if wanted == actual:
        return
    for key in ("model_type", *sorted(configs[0].keys() | configs[1].keys())):
        mended = {name: value for name, value in configs[1].items() if name != key}
        mended |= {key: configs[0][key]} if key in configs[0] else {}
        try:
            is_cause = _without_ends(read_architecture(mended)) != actual
        except DstoolsError:  # one of two keys that belong together
            is_cause = True
        if is_cause:
            was, now = (printable(repr(config.get(key))) for config in configs)
            raise DstoolsError(
                f"{model.checkpoint.folder / 'config.json'}: {key} is {now}, but in "
                f"{against.checkpoint.folder / 'config.json'} it is {was}",
                "only checkpoints of one architecture can be compared",
            )
    raise DstoolsError(
        f"{model.checkpoint.folder} and {against.checkpoint.folder}: the architectures differ",
        "only checkpoints of one architecture can be compared",
    )


def _without_ends(architecture: Architecture) -> Architecture:
    return replace(architecture, model=replace(architecture.model, num_mtp_layers=0, is_tied=False))


def _run_layers(
    runners: list[Runner], activations: list[tuple[Activations, ...]], progress: Progress
) -> tuple[list[list[Spill]], list[dict[int, float]], list[OutputError]]:
    """Run each model once for each of its `activations`, reading weights once.

    Return by model and activations the hidden states after the last layer; for each of the last
    model's activations the router flips by layer; and the output errors.
    """
    hidden = [
        [runner.embed(runner.ids.flatten()) for _ in choices]
        for runner, choices in zip(runners, activations, strict=True)
    ]
    flips: list[dict[int, float]] = [{} for _ in activations[-1]]
    errors: list[OutputError] = []
    for layer in range(runners[0].inventory.model.num_hidden_layers):
        watches = [
            [_Watch(runner, _silent if second else progress) for second, _ in enumerate(choices)]
            for runner, choices in zip(runners, activations, strict=True)
        ]
        if len(runners) == 2:
            watches[0][0].other = runners[1]
        for number, runner in enumerate(runners):
            parts = zip(hidden[number], watches[number], activations[number], strict=True)
            streams = [Stream(states, watch, choice == "fp8") for states, watch, choice in parts]
            hidden[number] = runner.run_streams(layer, streams)
            for states in hidden[number]:
                runner.require_finite(layer, states)
        errors += [sums.error(layer, role) for role, sums in watches[0][0].sums.items()]
        for flip, watch in zip(flips, watches[-1], strict=True):
            if watches[0][0].experts_TK is not None and watch.experts_TK is not None:
                flip[layer] = router_flips(watches[0][0].experts_TK, watch.experts_TK)
    return hidden, flips, errors


def _silent(nbytes: int) -> None:
    """Report no progress: the first stream has reported it."""


def router_flips(wanted_TK: Tensor, made_TK: Tensor) -> float:
    """Return the share of choices in `wanted` that `made` lacks for the same token."""
    is_made_TK = (wanted_TK[:, :, None] == made_TK[:, None, :]).any(-1)
    return 1 - is_made_TK.double().mean().item()


@dataclass
class _Sums:
    """Sums of squared outputs over tokens and the weights of a role."""

    difference: float = 0.0
    reference: float = 0.0
    numel: int = 0

    def error(self, layer: int, role: Role) -> OutputError:
        """Return rms over rms; a huge number if only the reference is all zeros."""
        ratio = self.difference / max(self.reference, TINY)
        return OutputError(layer, role, math.sqrt(ratio), self.numel)


class _Watch:
    """Watcher of one layer that compares its weights with those of `other`."""

    def __init__(self, runner: Runner, progress: Progress) -> None:
        self.runner = runner
        self.progress = progress
        self.other: Runner | None = None
        self.sums: dict[Role, _Sums] = {}
        self.experts_TK: Tensor | None = None
        self._weights: dict[TensorName, Tensor] = {}  # of the current stage
        self._differences: dict[TensorName, Tensor] = {}

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Read the same weights of the other checkpoint."""
        self._weights = weights
        if self.other is None:
            return
        for name, weight in weights.items():
            if name.role in INPUTS and name.part == "weight":
                self._differences[name] = self.other.load(name).sub_(weight)
                self.sums.setdefault(name.role, _Sums()).numel += weight.numel()

    def see(self, source: str, values_TD: Tensor) -> None:
        """Add to the errors of the weights with this input."""
        for name, difference in self._differences.items():
            if INPUTS[name.role] == source:
                sums = self.sums[name.role]
                reference2 = _squares(values_TD, self._weights[name])
                difference2 = _squares(values_TD, difference)
                if not math.isfinite(reference2 + difference2):
                    raise self._not_finite(name, math.isfinite(reference2))
                sums.reference += reference2
                sums.difference += difference2

    def end(self) -> None:
        """Free the weights before the next ones are loaded."""
        info = self.runner.inventory.info
        self.progress(sum(info(name).nbytes for name in self._weights))
        self._weights, self._differences = {}, {}

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        """Record the choices."""
        self.experts_TK = experts_TK

    def cache(self, first: Tensor, second: Tensor) -> None:
        """Do nothing: the cache is not evaluated."""

    def _not_finite(self, name: TensorName, is_of_other: bool) -> DstoolsError:
        runner = self.other if is_of_other and self.other is not None else self.runner
        inventory = runner.inventory
        spelled = inventory.model.spell(name)
        return DstoolsError(
            f"{inventory.checkpoint.folder}: {spelled}: gives NaN or infinity", DAMAGED
        )


def _squares(inputs_TD: Tensor, weight: Tensor) -> float:
    """Return the sum of the squares of inputs x weight^T, in float64 but for the product."""
    return F.linear(inputs_TD, weight).square_().sum(dtype=torch.float64).item()
