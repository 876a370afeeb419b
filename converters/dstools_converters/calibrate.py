"""Round weights by what they are multiplied with: GPTQ on the FP8 grid, or a search of scales.

The model runs on the data one decoder layer at a time, in its own weights: what a layer is given does
not depend on how others were rounded. So layers are independent, a run goes on after the last one that
is done, and the same inputs give the same bytes.

    OUT.incomplete/calibration/hidden-12    what layer 12 is given, for the next run to go on from

Which Hessian (X^T X of a weight's inputs) serves: a weight's own where it has seen at least as many
tokens as it has inputs, for fewer leave directions unseen; else, for gate and up of a routed expert, that
of all tokens of the layer; else none, and the weight is rounded to nearest. A weight that the method
does not bring nearer on the data keeps the nearest codes, too. Every choice is noted.
"""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dstools_converters.architecture import read_architecture
from dstools_converters.errors import ShortfallError
from dstools_converters.family import MLA
from dstools_converters.layerwise import INPUTS, Runner
from dstools_converters.layout import TensorPlan
from dstools_converters.names import TensorName
from dstools_converters.plan import Plan
from dstools_converters.rows import Progress
from dstools_kernels import gptq

Note = dict[str, Any]


class Sink(Protocol):
    """Where results go; see stream.Sink."""

    folder: Path
    layers: dict[int, Note]
    is_synced: bool

    def is_done(self, name: str) -> bool:
        """Tell whether a tensor is in its place."""

    def put(self, name: str, codes: memoryview, scale_inv: memoryview, note: Note) -> None:
        """Write a tensor."""

    def layer_done(self, layer: int, note: Note) -> None:
        """Note what was seen in a layer."""


def calibrate(
    plan: Plan,
    sink: Sink,
    ids: Tensor,
    *,
    ram_bytes: int,
    min_coverage: int,
    progress: Progress,
) -> None:
    """Put into `sink` every tensor that the plan leaves to it, and what was seen in each layer.

    `ids` int64 [samples, length]. Raises ShortfallError where a routed expert saw fewer than
    `min_coverage` tokens, once the layer is known to lack them.
    """
    assert plan.calibration is not None
    torch.set_num_threads(plan.calibration.threads)
    runner = Runner(
        plan.inventory,
        read_architecture(plan.inventory.checkpoint.config),
        ids,
        device=plan.calibration.device,
        folder=sink.folder,
        ram_bytes=ram_bytes,
    )
    todo: dict[int, list[TensorPlan]] = {layer: [] for layer in range(runner.num_layers)}
    for tensor in plan.decisions:
        parsed = plan.inventory.names[tensor.source.name]
        if tensor.action == "calibrate" and not sink.is_done(tensor.source.name):
            assert parsed is not None
            assert parsed.layer is not None
            todo[parsed.layer].append(tensor)
    undone = [layer for layer in todo if todo[layer] or layer not in sink.layers]
    if not undone:
        return
    sink.folder.mkdir(exist_ok=True)
    for stale in sink.folder.glob("spill-*"):
        stale.unlink()
    start = undone[0]
    hidden = runner.spill(runner.rows(max(start - 1, 0)))
    if start == 0 or not hidden.load(sink.folder / f"hidden-{start}"):
        hidden.close()
        start, hidden = 0, runner.embed(ids.flatten())
    progress(sum(_layer_bytes(plan, layer) for layer in range(start)))
    for layer in range(start, runner.num_layers):
        watcher = _Rounder(plan, sink, todo[layer], layer, min_coverage, progress)
        hidden = runner.run_layer(layer, hidden, watcher)
        if layer + 1 < runner.num_layers:
            hidden.save(sink.folder / f"hidden-{layer + 1}", is_synced=sink.is_synced)
        if layer not in sink.layers or todo[layer]:
            sink.layer_done(layer, watcher.note())
        (sink.folder / f"hidden-{layer}").unlink(missing_ok=True)
    hidden.close()


def total_bytes(plan: Plan) -> int:
    """Return what `progress` is told in all."""
    model = plan.inventory.model
    layers = model.num_hidden_layers + model.num_mtp_layers
    return sum(_layer_bytes(plan, layer) for layer in range(layers))


def _layer_bytes(plan: Plan, layer: int) -> int:
    names, tensors = plan.inventory.names, plan.inventory.tensors
    return sum(
        tensors[name].nbytes
        for name, parsed in names.items()
        if parsed is not None and parsed.layer == layer and parsed.role in INPUTS
    )


class _Rounder:
    """Watches one layer, and rounds its weights once their inputs are known."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        todo: list[TensorPlan],
        layer: int,
        min_coverage: int,
        progress: Progress,
    ) -> None:
        assert plan.calibration is not None
        self.plan = plan
        self.method = plan.calibration.method
        self.sink = sink
        self.todo = {tensor.source.name: tensor for tensor in todo}
        self.layer = layer
        self.min_coverage = min_coverage
        self.progress = progress
        self.expert_load: list[int] = []
        self.cache_amax: dict[str, float] = {}
        self.weights: dict[TensorName, Tensor] = {}
        self.seen: dict[str, _Seen] = {}  # by word of INPUTS, in the stage that runs
        self.tokens = 0  # that pass through the stage
        self.shared: _Seen | None = None  # by all tokens of the layer, for experts that saw few

    def note(self) -> Note:
        """Return what there is to say of the layer."""
        return {"expert_load": self.expert_load, "cache_amax": self.cache_amax}

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Make ready for the inputs of these weights."""
        self.weights, self.tokens, self.seen = weights, tokens, {}

    def see(self, source: str, values_TD: Tensor) -> None:
        """Add to the Hessian of the weights that these are the inputs of."""
        if self._wants(source, values_TD.shape[1]):
            width = values_TD.shape[1]
            seen = self.seen.setdefault(source, _Seen(values_TD.new_zeros(width, width), "own"))
            seen.hessian.addmm_(values_TD.T, values_TD)
            seen.tokens += len(values_TD)

    def end(self) -> None:
        """Round the weights of this stage."""
        sources = dict.fromkeys(INPUTS[name.role] for name in self._linears())
        for source in sources:
            for name, weight in self._linears().items():
                if INPUTS[name.role] == source and str(name) in self.todo:
                    self._round(self.todo[str(name)], weight, self._serving(source, weight))
            if source != "feed_forward":
                self.seen.pop(source, None)  # o_proj's takes a gigabyte
        self.shared = self.seen.pop("feed_forward", self.shared)
        tensors = self.plan.inventory.tensors
        self.progress(
            sum(tensors[str(name)].nbytes for name in self.weights if name.role in INPUTS)
        )

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        """Keep the load; raise where a token count is under the least that was asked for."""
        self.expert_load = load
        cold = [expert for expert, tokens in enumerate(load) if tokens < self.min_coverage]
        if cold:
            shown = ", ".join(f"expert {expert} {load[expert]}" for expert in cold[:8])
            raise ShortfallError(
                f"model.layers.{self.layer}.mlp.experts: {len(cold)} of {len(load)} saw fewer than "
                f"{self.min_coverage} tokens: {shown}{', ...' if len(cold) > 8 else ''}",
                "calibrate with more --samples or other data, or lower --min-coverage; what is "
                "finished is kept for the same data",
            )

    def cache(self, first: Tensor, second: Tensor) -> None:
        """Keep the largest magnitude of what a KV cache would hold."""
        is_latent = isinstance(self.plan.inventory.model.attention, MLA)
        parts = ("latent_amax", "rope_amax") if is_latent else ("k_amax", "v_amax")
        for part, values in zip(parts, (first, second), strict=True):
            amax = values.abs().amax().item()
            self.cache_amax[part] = max(self.cache_amax.get(part, 0.0), amax)

    def _linears(self) -> dict[TensorName, Tensor]:
        return {
            name: weight
            for name, weight in self.weights.items()
            if name.role in INPUTS and name.part == "weight"
        }

    def _wants(self, source: str, width: int) -> bool:
        """Tell whether a weight that is still to be rounded needs the Hessian of `source`."""
        if source == "feed_forward" and any(".experts." in name for name in self.todo):
            return True
        if source == "expert" and self.tokens < width:  # the layer's will do
            return False
        return any(
            INPUTS[name.role] == source and str(name) in self.todo for name in self._linears()
        )

    def _serving(self, source: str, weight: Tensor) -> "_Seen | None":
        """Return the Hessian to round by, None where nothing was seen."""
        seen = self.seen.get(source)
        if source == "expert" and seen is None and self.shared is not None:
            self.shared.kind = "shared"
            return self.shared
        return seen

    def _round(self, tensor: TensorPlan, weight: Tensor, seen: "_Seen | None") -> None:
        """Put one weight into the sink, in the best of the ways that are open to it."""
        assert self.plan.scheme is not None
        scale_format, block = self.plan.scheme.scale_format, self.plan.scheme.block_size[0]
        scale_inv = gptq.scales(weight, scale_format, block)
        codes = plain = gptq.nearest(weight, scale_inv, block)
        method, why = "nearest", ""
        error_nearest = error = _error(weight, codes, scale_inv, block, seen)
        if seen is None or seen.tokens < weight.shape[1]:
            why = (
                f"saw {seen.tokens if seen else 0} tokens, fewer than its {weight.shape[1]} inputs"
            )
        else:
            try:
                if self.method == "mse":
                    power = seen.hessian.diagonal() / seen.tokens
                    found_scale = gptq.search_scales(weight, power, scale_format, block)
                    found = gptq.nearest(weight, found_scale, block)
                else:
                    found_scale = scale_inv
                    found = gptq.gptq(weight, seen.factor(), scale_inv, block)
            except ValueError as failure:  # the Hessian is of no use
                why = str(failure)
            else:
                found_error = _error(weight, found, found_scale, block, seen)
                assert found_error is not None
                assert error is not None
                if found_error < error:
                    method, error = self.method, found_error
                    codes, scale_inv = found, found_scale
                    plain = gptq.nearest(weight, scale_inv, block)
                else:
                    why = f"{self.method} brings it no nearer on the data"
        steps = gptq.steps_apart(codes, plain)
        restored = gptq.restore(codes, scale_inv, block)
        raw = codes.cpu().numpy().data.cast("B")
        note = {
            "method": method,
            "why": why,
            "hessian": seen.kind if seen is not None and method != "nearest" else "none",
            "tokens": self.tokens,
            "error_nearest": error_nearest,
            "error": error,
            "weight_error": _relative(restored.sub_(weight), weight),
            "moved": int((steps > 0).sum()),
            "far": int((steps > 1).sum()),
            "numel": weight.numel(),
            "codes_sha256": sha256(raw).hexdigest(),
        }
        self.sink.put(tensor.source.name, raw, scale_inv.cpu().numpy().data.cast("B"), note)


@dataclass
class _Seen:
    """What weights are multiplied with: X^T X of all tokens so far, float32 [D, D]."""

    hessian: Tensor
    kind: str  # "own", or "shared" by the experts of a layer
    tokens: int = 0
    _factor: gptq.Factor | None = None

    def factor(self) -> gptq.Factor:
        """Return what `gptq` wants of it, made once for all weights that it serves."""
        if self._factor is None:
            self._factor = gptq.factorize(self.hessian)
        return self._factor


def _error(
    weight: Tensor, codes: Tensor, scale_inv: Tensor, block: int, seen: _Seen | None
) -> float | None:
    """Return the rms of (W - Q) x over that of W x, on what was seen; None where that is nothing."""
    if seen is None:
        return None
    restored = gptq.restore(codes, scale_inv, block)
    error2, reference2 = gptq.output_error(weight, restored, seen.hessian)
    return math.sqrt(max(error2, 0) / reference2) if reference2 > 0 else 0.0


def _relative(difference: Tensor, reference: Tensor) -> float:
    """Return rms over rms."""
    squares = [
        values.square().sum(dtype=torch.float64).item() for values in (difference, reference)
    ]
    return math.sqrt(squares[0] / squares[1]) if squares[1] > 0 else 0.0
