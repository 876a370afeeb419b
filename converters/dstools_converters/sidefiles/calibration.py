"""calibration.json: how each weight was rounded, how well, and on which data; KV-cache scales.

numpy is imported only for the scales: that takes as long as quantizing 0.3 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.families.names import TensorName
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.data import Data, require_layers
from dstools_converters.tables import Amount, Reader, json_table
from dstools_kernels.fp8 import AMAX_FLOOR, E4M3_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CALIBRATION = "calibration.json"
KV_SCALES = "kv_scales.safetensors"
Method = Literal["gptq", "mse", "nearest", "lossless"]
METHODS: tuple[Method, ...] = get_args(Method)
Hessian = Literal["own", "shared", "none"]
CachePart = Literal["latent_amax", "rope_amax", "k_amax", "v_amax"]


@dataclass(frozen=True)
class WeightNote:
    """How one weight was rounded; an entry of the file, in its order.

    Errors are rms((W - Q) x) over rms(W x) on the calibration data, None where nothing was seen.
    """

    method: Method
    why: str  # the reason where it is not the method asked for
    error_nearest: Amount | None  # rounded to nearest
    error: Amount | None  # as it is stored
    weight_error: Amount  # rms(W - Q) over rms(W)
    moved: int  # codes that are not the nearest
    far: int  # codes more than one step from the weight
    numel: int
    sha256: str  # of the codes, then the scales
    hessian: Hessian  # whose served
    tokens: int  # that the weight saw


class LayerNote(NamedTuple):
    """What a calibration saw in a layer."""

    expert_load: list[int]  # tokens of each routed expert; empty in a dense layer
    cache_amax: dict[CachePart, float]  # largest magnitude of each part of a KV cache


@dataclass(frozen=True)
class Calibration:
    """The content of calibration.json, by its own keys and in its order."""

    tool: str
    method: str
    scale_fmt: str
    data: Data
    tokens: int
    device: str
    threads: int
    cpu: str = field(default="", kw_only=True)  # its instructions; older files have none
    versions: dict[str, str]
    tensors: dict[str, WeightNote]
    kv: dict[CachePart, dict[int, Amount]]  # part of the KV cache -> layer -> largest magnitude

    def layer_amax(self) -> dict[int, dict[CachePart, float]]:
        """Return the largest magnitude of each part of the KV cache, by layer."""
        by_layer: dict[int, dict[CachePart, float]] = {}
        for part, amax_by_layer in self.kv.items():
            for layer, amax in amax_by_layer.items():
                by_layer.setdefault(layer, {})[part] = amax
        return by_layer


def calibration_of(
    plan: Plan, tool: str, weights: Mapping[str, WeightNote], layers: Mapping[int, LayerNote]
) -> Calibration:
    """Return the content of calibration.json."""
    settings, scheme = plan.calibration, plan.scheme
    assert settings is not None
    assert scheme is not None
    cache: dict[CachePart, dict[int, float]] = {}
    for layer in sorted(layers):
        for part, amax in layers[layer].cache_amax.items():
            cache.setdefault(part, {})[layer] = amax
    return Calibration(
        tool=tool,
        method=settings.method,
        scale_fmt=scheme.scale_format,
        data=Data(**settings.data),
        tokens=settings.data["samples"] * settings.data["seq_len"],
        device=settings.device,
        threads=settings.threads,
        cpu=settings.cpu,
        versions=settings.versions,
        tensors={name: weights[name] for name in sorted(weights)},
        kv=cache,
    )


def read_calibration(folder: Path, inventory: Inventory) -> Calibration | None:
    """Return the content of calibration.json, None where there is none.

    Raises DstoolsError where it is damaged, or names tensors or layers that `inventory` lacks.
    """
    path = folder / CALIBRATION
    table, reader = json_table(path), Reader(str(path), "json")
    if table is None:
        return None
    made = reader.read(Calibration, table)
    for part, layers in made.kv.items():
        require_layers(layers, f"kv.{part}", inventory, reader)
    for name, note in made.tensors.items():
        info = inventory.tensors.get(name)
        if info is None:
            message = "is in no shard: the file is of another checkpoint"
            raise reader.error(f"tensors.{name}", message)
        if note.numel != info.numel:
            raise reader.error(f"tensors.{name}.numel", f"is not the {info.numel} of the shard")
    return made


def kv_names(plan: Plan) -> dict[str, TensorName]:
    """Return the names of the cache scales that a calibration adds, by their spelling.

    Not of MTP layers: vLLM's deepseek_mtp.py looks each name up as it is, and knows none of these.
    """
    model = plan.inventory.model
    names = [
        TensorName("kv_cache", part, layer)
        for layer in range(model.num_hidden_layers)
        for part in ("k_scale", "v_scale")
    ]
    return {model.spell(name): name for name in names}


def kv_scales(
    names: Mapping[str, TensorName], layer_amax: Mapping[int, Mapping[CachePart, float]]
) -> dict[str, NDArray[np.float32]]:
    """Return for each name of role kv_cache an F32 [1] array: the largest cached value over 448.

    An MLA cache holds latents and rotated keys together, so there is one scale, written twice.
    Source: the names that compressed-tensors writes and vLLM's maybe_remap_kv_scale_name reads.
    """
    import numpy as np

    scales = {}
    for spelled, name in names.items():
        amax = layer_amax.get(name.layer or 0, {})
        is_v = name.part == "v_scale" and "v_amax" in amax
        of_keys = [value for part, value in amax.items() if part != "v_amax"]
        largest = amax["v_amax"] if is_v else max(of_keys, default=0.0)
        scale = np.float32(max(largest, AMAX_FLOOR["float32"])) / np.float32(E4M3_MAX)
        scales[spelled] = np.array([scale], np.float32)
    return scales


def is_kv_scale(made: Inventory, info: TensorInfo) -> bool:
    """Return whether a calibration added the tensor."""
    name = made.names[info.name]
    return name is not None and name.role == "kv_cache" and info.shard == KV_SCALES
