"""Round weights by what they are multiplied with: GPTQ on the FP8 grid, or a search of scales.

The model runs on the data one decoder layer at a time, in its own weights: what a layer is given does
not depend on how others were rounded. So layers are independent, a run goes on after the last one that
is done, and the same inputs give the same bytes.

    OUT.incomplete/calibration/hidden-12    what layer 12 is given, for the next run to go on from
"""

import logging
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dstools_converters.architecture import read_architecture
from dstools_converters.errors import ShortfallError
from dstools_converters.family import MLA
from dstools_converters.layerwise import INPUTS, Runner
from dstools_converters.layout import TensorPlan
from dstools_converters.names import TensorName
from dstools_converters.plan import Plan
from dstools_converters.rounding import Rounded, Seen, raw, round_weight
from dstools_converters.rows import (
    Progress,
    read_rows,
    read_scales,
    recover_tensor,
    slabs,
    unlike_dequantized,
)
from dstools_converters.scheme import QuantScheme

Note = dict[str, Any]
log = logging.getLogger(__name__)


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
        began = time.perf_counter()
        hidden = runner.run_layer(layer, hidden, watcher)
        log.info(
            "layer %d: %d tensors rounded, %.1f s",
            layer, len(todo[layer]), time.perf_counter() - began,
        )  # fmt: skip
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
        self.seen: dict[str, Seen] = {}  # by word of INPUTS, in the stage that runs
        self.tokens = 0  # that pass through the stage
        self.shared: Seen | None = None  # by all tokens of the layer, for experts that saw few

    def note(self) -> Note:
        """Return what there is to say of the layer."""
        return {"expert_load": self.expert_load, "cache_amax": self.cache_amax}

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Make ready for the inputs of these weights."""
        self.weights, self.tokens, self.seen = weights, tokens, {}

    def see(self, source: str, values_TD: Tensor) -> None:
        """Add to the Hessian of the weights that these are the inputs of."""
        width = values_TD.shape[1]
        if self._wants(source, width):
            if source not in self.seen:
                self.seen[source] = Seen(values_TD.new_zeros(width, width))
            self.seen[source].add(values_TD)

    def end(self) -> None:
        """Round the weights of this stage."""
        sources = dict.fromkeys(INPUTS[name.role] for name in self._linears())
        for source in sources:
            for name, weight in self._linears().items():
                if INPUTS[name.role] == source and str(name) in self.todo:
                    self._round(self.todo[str(name)], weight, *self._serving(source))
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

    def _serving(self, source: str) -> tuple[Seen | None, str]:
        """Return what to round by, and whose it is."""
        seen = self.seen.get(source)
        if source == "expert" and seen is None:
            return self.shared, "shared"
        return seen, "own"

    def _round(self, tensor: TensorPlan, weight: Tensor, seen: Seen | None, whose: str) -> None:
        """Put one weight into the sink."""
        scheme = self.plan.scheme
        assert scheme is not None
        block = scheme.block_size[0]
        began = time.perf_counter()
        rounded = self._lossless(tensor, scheme) or round_weight(
            weight, seen, self.method, scheme.scale_format, block
        )
        is_used = rounded.method in ("gptq", "mse")
        note = rounded.note(weight, block)
        note |= {"hessian": whose if is_used else "none", "tokens": self.tokens}
        self.sink.put(tensor.source.name, raw(rounded.codes), raw(rounded.scale_inv), note)
        log.debug(
            "%s %s: %s, error %s -> %s, %.2f s",
            tensor.source.name, list(weight.shape), rounded.method, rounded.error_nearest,
            rounded.error, time.perf_counter() - began,
        )  # fmt: skip

    def _lossless(self, tensor: TensorPlan, scheme: QuantScheme) -> Rounded | None:
        """Return the FP8 that the source was dequantized from, None where it is not known to be."""
        info, base = tensor.source, self.plan.base
        rows, cols = info.shape
        codes, scale_inv = (
            np.empty((rows, cols), np.uint8),
            np.empty(scheme.grid(info.shape), "<f4"),
        )
        if info.dtype != "BF16":
            return None
        if base is not None and info.name in base.scales:
            original = base.tensors[info.name]
            if unlike_dequantized(base, original, self.plan.inventory, info) is not None:
                return None
            codes.data.cast("B")[:] = read_rows(base, original, 0, rows)
            scale_inv.data.cast("B")[:] = read_scales(base, original, 0, rows)
            why = "equal to --base"
        elif self.plan.is_lossless:
            block = scheme.block_size[0]

            def take(first: int, some_codes: memoryview, some_scales: memoryview) -> None:
                at, row = first // block, scale_inv.shape[1] * 4
                codes.data.cast("B")[first * cols : first * cols + len(some_codes)] = some_codes
                scale_inv.data.cast("B")[at * row : at * row + len(some_scales)] = some_scales

            spans = list(slabs(0, rows, block, cols * 2))
            powers_only = scheme.scale_format == "ue8m0"
            if not recover_tensor(
                self.plan.inventory, info, spans, block, take, powers_only=powers_only
            ):
                return None
            why = "it was FP8 before"
        else:
            return None
        return Rounded(
            torch.from_numpy(codes), torch.from_numpy(scale_inv), "lossless", why, None, None
        )
