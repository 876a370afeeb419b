"""Calibrated rounding of a checkpoint: GPTQ on the FP8 grid, or a search of scales.

The model runs on the data one decoder layer at a time with its original weights, so the input of a
layer does not depend on how other layers were rounded. Layers are therefore independent, an
interrupted run resumes after the last finished layer, and the same inputs give the same bytes.

    OUT.incomplete/calibration/hidden-12    the input of layer 12, from which the next run resumes
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dstools_converters.checkpoint.rows import (
    Progress,
    read_rows,
    read_scales,
    recover_tensor,
    slabs,
    unlike_dequantized,
)
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.errors import ShortfallError
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import MLA
from dstools_converters.layerwise.rounding import Rounded, Seen, raw, round_weight
from dstools_converters.layerwise.runner import INPUTS, Runner
from dstools_converters.model.architecture import read_architecture
from dstools_converters.plan.layout import TensorPlan
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import CachePart, Hessian, LayerNote, WeightNote

log = logging.getLogger(__name__)
Precision = Literal["bf16", "ieee"]  # of what a float32 matrix product on a CPU multiplies
PRODUCTS: Precision = "bf16"  # of the model and of Hessians; rounding is in float32


class Sink(Protocol):
    """Destination of the results; see write.stream.Sink."""

    folder: Path
    layers: dict[int, LayerNote]

    def is_done(self, name: str) -> bool:
        """Return whether a tensor is already written."""

    def put(self, name: str, codes: memoryview, scale_inv: memoryview, note: WeightNote) -> None:
        """Write a tensor."""

    def layer_done(self, layer: int, note: LayerNote) -> None:
        """Record the statistics of a layer."""


def calibrate(
    plan: Plan, sink: Sink, ids: Tensor, *, ram_bytes: int, min_coverage: int, progress: Progress
) -> None:
    """Write every tensor that is to be calibrated, and the statistics of each layer, to `sink`.

    `ids` int64 [samples, length]. Raises ShortfallError as soon as a routed expert is known to see
    fewer than `min_coverage` tokens, and DstoolsError for NaN or infinity in a weight and for a
    full disk.
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
    for layer, note in sink.layers.items():  # an earlier run may have had a lower minimum
        _check_coverage(layer, note.expert_load, min_coverage)
    undone = [layer for layer in todo if todo[layer] or layer not in sink.layers]
    if not undone:
        return
    sink.folder.mkdir(exist_ok=True)
    _remove_spills(sink.folder)  # left by a run that was killed
    try:
        _run(plan, sink, runner, todo, undone, min_coverage, progress)
    finally:
        _remove_spills(sink.folder)


def _run(
    plan: Plan,
    sink: Sink,
    runner: Runner,
    todo: dict[int, list[TensorPlan]],
    undone: list[int],
    min_coverage: int,
    progress: Progress,
) -> None:
    start = undone[0]
    hidden = runner.load_states(start, sink.folder / f"hidden-{start}")
    if hidden is None:
        start, hidden = 0, runner.embed(runner.ids.flatten())
    nbytes = layer_bytes(plan)
    progress(sum(nbytes[:start]))
    for layer in range(start, undone[-1] + 1):
        watcher = _Rounder(plan, sink, todo[layer], layer, min_coverage, progress)
        began = time.perf_counter()
        with _products(PRODUCTS):
            hidden = runner.run_layer(layer, hidden, watcher)
        runner.require_finite(layer, hidden)
        seconds = time.perf_counter() - began
        log.info("layer %d: %d tensors rounded, %.1f s", layer, len(todo[layer]), seconds)
        if layer + 1 < runner.num_layers:
            hidden.save(sink.folder / f"hidden-{layer + 1}")
        if layer not in sink.layers or todo[layer]:
            sink.layer_done(layer, watcher.note())
        for stale in set(sink.folder.glob("hidden-*")) - {sink.folder / f"hidden-{layer + 1}"}:
            stale.unlink()
    hidden.close()
    progress(sum(nbytes[undone[-1] + 1 :]))


@contextmanager
def _products(precision: Precision) -> Iterator[None]:
    """Let float32 matrix products on a CPU round their inputs to BF16, or forbid it.

    They still add up in float32. It is a permission: oneDNN uses it where the CPU has AMX, and is
    two to four times as fast. Engines run the model in BF16, too.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set when imported
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _remove_spills(folder: Path) -> None:
    for path in folder.glob("spill-*"):
        path.unlink()


def _check_coverage(layer: int, load: list[int], min_coverage: int) -> None:
    """Raise ShortfallError if an expert of a layer got fewer than `min_coverage` tokens."""
    cold = [expert for expert, tokens in enumerate(load) if tokens < min_coverage]
    if cold:
        shown = ", ".join(f"expert {expert} {load[expert]}" for expert in cold[:8])
        raise ShortfallError(
            f"layer {layer}: {len(cold)} of {len(load)} experts saw fewer than "
            f"{min_coverage} tokens: {shown}{', ...' if len(cold) > 8 else ''}",
            "lower --min-coverage and run the same command to resume; or delete the unfinished "
            "folder and calibrate with more --samples or other data",
        )


def layer_bytes(plan: Plan) -> list[int]:
    """Return the bytes that are reported to `progress` for each layer."""
    model = plan.inventory.model
    nbytes = [0] * (model.num_hidden_layers + model.num_mtp_layers)
    for name, _ in model.weights():
        if name.layer is not None and name.role in INPUTS:
            nbytes[name.layer] += plan.inventory.info(name).nbytes
    return nbytes


class _Rounder:
    """Watcher of one layer that rounds its weights once their inputs are known."""

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
        names = plan.inventory.names
        self.todo = {names[tensor.source.name]: tensor for tensor in todo}
        self.layer = layer
        self.min_coverage = min_coverage
        self.progress = progress
        self.expert_load: list[int] = []
        self.cache_amax: dict[CachePart, float] = {}
        self.weights: dict[TensorName, Tensor] = {}
        self.wanted: set[str] = set()  # words of INPUTS whose Hessian is needed
        self.seen: dict[str, Seen] = {}  # by word of INPUTS, in the current stage
        self.tokens = 0  # in the current stage
        self.shared: Seen | None = None  # all tokens of the layer, for experts that saw few

    def note(self) -> LayerNote:
        """Return the statistics of the layer."""
        return LayerNote(self.expert_load, self.cache_amax)

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Prepare for the inputs of these weights."""
        self.weights, self.tokens, self.seen = weights, tokens, {}
        self.wanted = {INPUTS[name.role] for name in self._linears() if name in self.todo}
        if any(name is not None and name.expert is not None for name in self.todo):
            self.wanted.add("feed_forward")
        if tokens < self.plan.inventory.model.hidden_size:
            self.wanted.discard("expert")  # the layer's is used

    def see(self, source: str, values_TD: Tensor) -> None:
        """Add to the Hessian of the weights with this input."""
        width = values_TD.shape[1]
        if source in self.wanted:
            if source not in self.seen:
                self.seen[source] = Seen(values_TD.new_zeros(width, width))
            self.seen[source].add(values_TD)

    def end(self) -> None:
        """Round the weights of this stage."""
        with _products("ieee"):
            self._round_all()
        self.shared = self.seen.pop("feed_forward", self.shared)
        info = self.plan.inventory.info
        self.progress(sum(info(name).nbytes for name in self.weights if name.role in INPUTS))
        self.weights = {}  # freed: the next stage is loaded before `begin`

    def _round_all(self) -> None:
        sources = dict.fromkeys(INPUTS[name.role] for name in self._linears())
        for source in sources:
            for name, weight in self._linears().items():
                if INPUTS[name.role] == source and name in self.todo:
                    self._round(self.todo[name], weight, *self._serving(source))
            if source != "feed_forward":
                self.seen.pop(source, None)  # o_proj's takes a gigabyte

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        """Record the load; raise ShortfallError if an expert got too few tokens."""
        self.expert_load = load
        _check_coverage(self.layer, load, self.min_coverage)

    def cache(self, first: Tensor, second: Tensor) -> None:
        """Record the largest magnitude of what a KV cache would hold."""
        is_latent = isinstance(self.plan.inventory.model.attention, MLA)
        parts: tuple[CachePart, CachePart] = (
            ("latent_amax", "rope_amax") if is_latent else ("k_amax", "v_amax")
        )
        for part, values in zip(parts, (first, second), strict=True):
            amax = values.abs().amax().item()
            self.cache_amax[part] = max(self.cache_amax.get(part, 0.0), amax)

    def _linears(self) -> dict[TensorName, Tensor]:
        return {
            name: weight
            for name, weight in self.weights.items()
            if name.role in INPUTS and name.part == "weight"
        }

    def _serving(self, source: str) -> tuple[Seen | None, Hessian]:
        """Return the activations to round by, and whose they are."""
        seen = self.seen.get(source)
        if source == "expert" and seen is None:
            return self.shared, "shared"
        return seen, "own"

    def _round(self, tensor: TensorPlan, weight: Tensor, seen: Seen | None, whose: Hessian) -> None:
        """Round one weight and write it."""
        scheme = self.plan.scheme
        assert scheme is not None
        assert self.method != "amax"  # rounds nothing here
        block = scheme.block_size[0]
        began = time.perf_counter()
        rounded = self._lossless(tensor, scheme) or round_weight(
            weight, seen, self.method, scheme.scale_format, block
        )
        note = rounded.note(weight.to(rounded.codes.device), block, whose, self.tokens)
        self.sink.put(tensor.source.name, raw(rounded.codes), raw(rounded.scale_inv), note)
        log.debug(
            "%s %s: %s, error %s -> %s, %.2f s",
            tensor.source.name,
            list(weight.shape),
            rounded.method,
            rounded.error_nearest,
            rounded.error,
            time.perf_counter() - began,
        )

    def _lossless(self, tensor: TensorPlan, scheme: QuantScheme) -> Rounded | None:
        """Return the FP8 that the source was dequantized from; None if it is not known."""
        info, base, block = tensor.source, self.plan.base, scheme.block_size[0]
        original = base.tensors.get(info.name) if base and base.is_quantized(info) else None
        if info.dtype != "BF16" or not (original or self.plan.is_lossless):
            return None
        rows, cols = info.shape
        codes, scale_inv = np.empty(info.shape, np.uint8), np.empty(scheme.grid(info.shape), "<f4")

        def take(first: int, some_codes: memoryview, some_scales: memoryview) -> None:
            begin = first // block * scale_inv.shape[1] * 4
            codes.data.cast("B")[first * cols : first * cols + len(some_codes)] = some_codes
            scale_inv.data.cast("B")[begin : begin + len(some_scales)] = some_scales

        if base is not None and original is not None:
            if unlike_dequantized(base, original, self.plan.inventory, info) is not None:
                return None
            scales = read_scales(base, original, 0, rows).cast("B")
            take(0, read_rows(base, original, 0, rows), scales)
            why = "equal to --base"
        else:
            is_ue8m0 = scheme.scale_format == "ue8m0"
            spans = list(slabs(0, rows, block, cols * 2))
            if not recover_tensor(
                self.plan.inventory, info, spans, block, take, powers_only=is_ue8m0
            ):
                return None
            why = "it was FP8 before"
        return Rounded(
            torch.from_numpy(codes), torch.from_numpy(scale_inv), "lossless", why, None, None
        )
