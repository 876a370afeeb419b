"""Perplexity of a checkpoint on a text, and its distance from the checkpoint it was made from.

Both models run over the text together, one decoder layer at a time from disk. First a layer of the
reference runs on its own hidden states; meanwhile the same weights of the other model are
multiplied with the same inputs, which gives the output error of each linear map in isolation. Then
the layer of the other model runs on its own hidden states, which carry the errors of all layers
before. So routers are compared on the inputs that they get in deployment. MTP layers do not run.

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
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.families.names import Role, TensorName
from dstools_converters.layerwise.corpus import Corpus
from dstools_converters.layerwise.runner import DAMAGED, INPUTS, Runner
from dstools_converters.layerwise.scores import Scores, head, score
from dstools_converters.layerwise.spill import Spill
from dstools_converters.model.architecture import Architecture, read_architecture
from dstools_converters.sidefiles.data import Data
from dstools_converters.sidefiles.evaluation import Evaluation, Histogram, OutputError

MAX_LOG = 700.0  # exp of more overflows a float
TINY = 1e-100  # in place of a sum of squares that is 0
KL_EDGES = tuple(10 ** (step / 5 - 7) for step in range(46))  # 1e-7 to 100 nats, five bins a decade


def evaluate(
    model: Inventory,
    against: Inventory | None,
    corpus: Corpus,
    *,
    tool: str,
    device: str,
    ram_bytes: int,
    folder: Path,
    progress: Progress = lambda nbytes: None,
) -> Evaluation:
    """Return the perplexity of `model` on the corpus, and its distance from `against`.

    Hidden states beyond `ram_bytes` are kept in `folder`, which must be empty and is left empty;
    other memory grows by some 100 bytes a token. The same inputs and threads give the same numbers.

    Raises DstoolsError if the architectures differ or cannot be run and, naming tensor or layer,
    for NaN or infinity. ValueError for samples of one token.
    """
    if corpus.seq_len < 2:
        raise ValueError(f"a sample must have at least 2 tokens, got {corpus.seq_len}")
    inventories = [model] if against is None else [against, model]
    if against is not None:
        _require_same(against, model)
    ids = torch.from_numpy(corpus.ids).long()
    runners = [
        Runner(
            inventory,
            read_architecture(inventory.checkpoint.config),
            ids,
            device=device,
            folder=folder / str(number),
            ram_bytes=ram_bytes,
        )
        for number, inventory in enumerate(inventories)
    ]
    for runner in runners:
        runner.folder.mkdir()
    hidden, flips, errors = _run_layers(runners, progress)
    scores, kl_T = score(runners, hidden, progress)
    for runner in runners:
        runner.folder.rmdir()

    is_predicting = torch.ones_like(ids, dtype=torch.bool)
    is_predicting[:, -1] = False  # the last token of a sample has no next one
    predicting_T = is_predicting.flatten()
    report = Evaluation(
        tool=tool,
        model=_label(model.checkpoint.folder),
        against=None if against is None else _label(against.checkpoint.folder),
        data=Data(**corpus.provenance),
        tokens=int(predicting_T.sum()),
        perplexity=_perplexity(scores[-1], predicting_T),
    )
    if against is None:
        return report
    report = _with_distance(report, scores, kl_T, predicting_T)
    return replace(report, router_flips=flips, output_error=tuple(errors))


def _perplexity(scores: Scores, predicting_T: Tensor) -> float:
    return math.exp(min(scores.surprise()[predicting_T].mean().item(), MAX_LOG))


def _with_distance(
    report: Evaluation, scores: list[Scores], kl_T: Tensor, predicting_T: Tensor
) -> Evaluation:
    """Return `report` with the distance of the second model's predictions from the first one's."""
    kl = kl_T[predicting_T].numpy()
    clipped = kl.clip(KL_EDGES[0], KL_EDGES[-1])
    is_same_T = scores[0].top_T == scores[1].top_T
    return replace(
        report,
        perplexity_against=_perplexity(scores[0], predicting_T),
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


def _label(folder: Path) -> str:
    """Return the name of the folder; of a snapshot in a Hub cache, org/name."""
    folder = folder.resolve()
    owner = folder.parent.parent.name  # of models--org--name/snapshots/REVISION
    is_snapshot = folder.parent.name == "snapshots" and owner.startswith("models--")
    return owner.removeprefix("models--").replace("--", "/") if is_snapshot else folder.name


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
    runners: list[Runner], progress: Progress
) -> tuple[list[Spill], dict[int, float], list[OutputError]]:
    """Return the hidden states after the last layer, router flips by layer, and output errors."""
    hidden = [runner.embed(runner.ids.flatten()) for runner in runners]
    flips: dict[int, float] = {}
    errors: list[OutputError] = []
    for layer in range(runners[0].inventory.model.num_hidden_layers):
        watches = [_Watch(runner, progress) for runner in runners]
        if len(runners) == 2:
            watches[0].other = runners[1]
        for number, runner in enumerate(runners):
            hidden[number] = runner.run_layer(layer, hidden[number], watches[number])
            runner.require_finite(layer, hidden[number])
        errors += [sums.error(layer, role) for role, sums in watches[0].sums.items()]
        wanted, made = watches[0].experts_TK, watches[-1].experts_TK
        if wanted is not None and made is not None:
            flips[layer] = router_flips(wanted, made)
    return hidden, flips, errors


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
