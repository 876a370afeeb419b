"""The plan: what becomes of every tensor.

A dry run, the disk check, the output headers, resuming and verifying all read this one list.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from dstools_converters.checkpoint.config import sound_config
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.parameters import TOTAL_PARAMETERS, is_count
from dstools_converters.checkpoint.scheme import BLOCK_SIZE, QUANTIZED_ROLES, Format, QuantScheme
from dstools_converters.checkpoint.storage import FLOATS, fp8_block, plain
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import TensorName
from dstools_converters.plan.kept import (
    FROM_BASE,
    FROM_SOURCE,
    KEPT_IN_BASE,
    KEPT_IN_SOURCE,
    check_together,
    kept_modules,
)
from dstools_converters.plan.layout import Action, ShardPlan, TensorPlan, lay_out
from dstools_converters.plan.recipe import Recipe, Rule
from dstools_kernels.fp8 import ScaleFormat

ROUNDED: frozenset[Action] = frozenset({"quantize", "requantize", "restore"})  # may make new codes

Method = Literal["gptq", "mse", "amax"]


@dataclass(frozen=True)
class Calibration:
    """How data decides the rounding: everything that can change a byte of the output."""

    method: Method
    data: dict[str, Any]  # its source, see Corpus.provenance
    device: str
    threads: int  # sums of floats depend on their order
    versions: dict[str, str]
    cpu: str  # the instructions of its products, "" where unknown: sums depend on them, too
    kv_cache: bool  # write the scales of an FP8 KV cache


SAMPLED = ("samples", "seq_len", "seed")  # keys of Calibration.data that are options


@dataclass(frozen=True)
class Plan:
    """All that will be written, except the small files that are copied."""

    inventory: Inventory
    base: Inventory | None
    scheme: QuantScheme | None  # None: the output is not quantized
    config: dict[str, Any]
    decisions: tuple[TensorPlan, ...]  # one per tensor; the targets have no offsets yet
    calibration: Calibration | None = None
    is_lossless: bool = False  # BF16 that was made from block FP8 becomes those bytes again

    @cached_property
    def shards(self) -> tuple[ShardPlan, ...]:
        """Return the output files, in which every part has its offset."""
        return lay_out(self.decisions, self.inventory.checkpoint.shards)

    @property
    def bytes_in(self) -> int:
        """Return the bytes of all tensors that are read."""
        return sum(info.nbytes for info in self.inventory.tensors.values())

    @property
    def bytes_out(self) -> int:
        """Return the bytes of all output shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def scratch_bytes(self) -> int:
        """Return the most bytes of hidden states on disk at a time: two saved, three spilled."""
        if self.calibration is None:
            return 0
        data = self.calibration.data
        tokens: int = data["samples"] * data["seq_len"]
        return 5 * tokens * self.inventory.model.hidden_size * 4

    @property
    def left_out(self) -> list[TensorInfo]:
        """Return the tensors of the source that the output lacks; see `is_left_out`."""
        planned = {tensor.source.name for tensor in self.decisions}
        return [info for info, _ in self.inventory.weights() if info.name not in planned]

    @property
    def counts(self) -> dict[Action, int]:
        """Count the tensors by what becomes of them."""
        return dict(Counter(tensor.action for tensor in self.decisions))

    def index(self) -> dict[str, Any]:
        """Return the content of model.safetensors.index.json; a wrong count is left out."""
        parts = [
            (shard.name, part)
            for shard in self.shards
            for tensor in shard.tensors
            for part in tensor.target.parts
        ]
        total = sum(part.nbytes for _, part in parts)
        weight_map = {part.name: shard for shard, part in parts}
        metadata = self.inventory.checkpoint.index_metadata | {"total_size": total}
        if not is_count(self.inventory, metadata.get(TOTAL_PARAMETERS)):
            metadata.pop(TOTAL_PARAMETERS, None)
        return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}

    @property
    def settings(self) -> dict[str, str | int | bool]:
        """Return the source and the options: most of what `digest` is over, by name."""
        scheme, how = self.scheme, self.calibration
        settings: dict[str, str | int | bool] = {
            "source": self.inventory.checkpoint.digest,
            "--base": self.base is not None,
            "--format": scheme.format if scheme else "",
            "--scale-fmt": scheme.scale_format if scheme else "",
            "--kv-cache": scheme is not None and scheme.kv_cache,
            "--lossless": self.is_lossless,
            "--calibrate": "",
        }
        if how is None:
            return settings
        named = {f"--{key.replace('_', '-')}": how.data.get(key, "") for key in SAMPLED}
        return settings | how.versions | named | {
            "--calibrate": f"{how.data.get('name', '')} {how.data.get('sha256', '')[:8]}",
            "--method": how.method, "--device": how.device, "--threads": how.threads,
            "CPU": how.cpu, "--kv-cache": how.kv_cache,
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """Return a sha256 over sources, decisions and headers: equal only for equal bytes."""
        state = sha256()
        for inventory in (self.inventory, self.base):
            state.update((inventory.checkpoint.digest if inventory else "no base").encode())
        state.update(json.dumps(self.config, sort_keys=True).encode())
        state.update(f"{self.scheme}".encode())  # not every config says how scales are rounded
        state.update(f"{self.calibration} {self.is_lossless}".encode())
        for shard in self.shards:
            state.update(f"\n{shard.name} ".encode() + shard.header)
            state.update(" ".join(tensor.action for tensor in shard.tensors).encode())
        return state.hexdigest()


def plan_quantize(
    inventory: Inventory,
    recipe: Recipe,
    format: Format,
    scale_format: ScaleFormat | None,
    base: Inventory | None = None,
    calibration: Calibration | None = None,
    *,
    is_lossless: bool = False,
) -> Plan:
    """Return the plan that quantizes `inventory`.

    `scale_format` None keeps that of FP8 in the source or base, and is "float32" without any.
    With `base`, its quantization is followed wherever the recipe has no rule of its own. With
    `is_lossless`, BF16 that was made from block FP8 becomes those bytes again.
    Raises DstoolsError for a rule that matches nothing, cannot be followed, or separates weights
    that engines fuse.
    """
    existing = inventory.scheme or (base.scheme if base else None)
    if base is not None:
        _check_base(inventory, base, scale_format)
    recipe.check_all_match((info.name, parsed) for info, parsed in inventory.weights())
    scheme = scheme_after(existing, format, scale_format)
    draft = [
        plan_tensor(info, parsed, inventory, base, recipe, scheme)
        for info, parsed in inventory.weights()
        if parsed is None or not is_left_out(parsed, scheme)
    ]
    if calibration is not None and calibration.method != "amax":
        draft = _calibrated(draft, calibration.method)
    if is_lossless:
        draft = [
            tensor._replace(action="recover")
            if tensor.action == "quantize" and tensor.source.dtype == "BF16"
            else tensor
            for tensor in draft
        ]
    if not any(tensor.target.is_quantized for tensor in draft):
        raise DstoolsError(
            f"{inventory.checkpoint.folder}: every weight is kept, so nothing would be quantized",
            "let the recipe leave some weights out, or copy the folder",
        )
    check_together(draft, inventory)
    _check_blocks(draft, scheme)
    has_cache = any(p is not None and p.role == "kv_cache" for p in inventory.names.values())
    writes_cache = calibration is not None and calibration.kv_cache
    if has_cache and writes_cache:
        raise DstoolsError(
            "the source already has scales of a KV cache", "leave out --kv-cache; they are kept"
        )
    scheme = replace(scheme, kv_cache=has_cache or writes_cache)
    config = sound_config(inventory.checkpoint)
    config["quantization_config"] = scheme.to_config(
        kept_modules(draft, inventory, format),
        _existing_config(inventory, base, format, keeps_cache=not writes_cache),
    )
    return Plan(inventory, base, scheme, config, tuple(draft), calibration, is_lossless)


def _existing_config(
    inventory: Inventory, base: Inventory | None, format: Format, *, keeps_cache: bool
) -> dict[str, Any] | None:
    """Return the `quantization_config` of the source or base, None where it is of another format.

    A `kv_cache_scheme` belongs to scales: those of the base are not in the output.
    """
    original = inventory if inventory.scheme else base
    if original is None or original.scheme is None or original.scheme.format != format:
        return None
    config = dict(original.checkpoint.config["quantization_config"])
    if original is base or not keeps_cache:
        config.pop("kv_cache_scheme", None)
    return config


def scheme_after(
    existing: QuantScheme | None, format: Format, scale_format: ScaleFormat | None
) -> QuantScheme:
    """Return the scheme of an output; `existing` is that of FP8 in the source or base."""
    if existing is None:
        return QuantScheme(format, scale_format or "float32", (BLOCK_SIZE, BLOCK_SIZE))
    return QuantScheme(format, scale_format or existing.scale_format, existing.block_size)


def plan_dequantize(inventory: Inventory) -> Plan:
    """Return the plan that turns every FP8 weight into BF16 and leaves the rest as it is.

    Raises DstoolsError where there is nothing to dequantize.
    """
    if inventory.scheme is None:
        raise DstoolsError(
            "config.json: has no quantization_config, so there is nothing to dequantize",
            "dstools inspect shows what the checkpoint holds",
        )
    draft = []
    for info, parsed in inventory.weights():
        if parsed is not None and is_left_out(parsed, None):
            continue
        if inventory.is_quantized(info):
            target = plain(info, "BF16")
            draft.append(TensorPlan("dequantize", info, target, FROM_SOURCE))
        else:
            draft.append(_copy(info, KEPT_IN_SOURCE))
    config = sound_config(inventory.checkpoint)
    del config["quantization_config"]
    return Plan(inventory, None, None, config, tuple(draft))


def is_left_out(name: TensorName, scheme: QuantScheme | None) -> bool:
    """Return whether an output of this scheme lacks a tensor of the source by design.

    Block FP8 scales the inputs of a weight as they come, and engines that look each name up fail
    at a static scale. Without FP8 weights, the scales of an FP8 cache are of no use either.
    """
    return name.is_activation_scale and (scheme is None or name.role != "kv_cache")


def plan_tensor(
    info: TensorInfo,
    parsed: TensorName | None,
    inventory: Inventory,
    base: Inventory | None,
    recipe: Recipe,
    scheme: QuantScheme,
) -> TensorPlan:
    """Return what becomes of one tensor; its target has no offsets yet.

    Raises DstoolsError where a rule asks for FP8 of a tensor that cannot be FP8.
    """
    rule = recipe.decide(info.name, parsed)
    is_own = rule in recipe.rules
    if inventory.is_quantized(info):
        return _plan_quantized(info, inventory, rule, is_own, scheme)
    if inventory.scheme is not None and not is_own:
        return _copy(info, KEPT_IN_SOURCE)
    if base and not is_own and info.name in base.tensors:
        if not base.is_quantized(info):
            return _copy(info, KEPT_IN_BASE)
        if info.dtype == "BF16":
            return TensorPlan("restore", info, fp8_block(info, scheme), FROM_BASE)
        rule = Rule(FROM_BASE, "fp8-block")
    if rule.scheme == "keep":
        return _copy(info, rule.label)
    if info.dtype not in FLOATS or len(info.shape) != 2:
        raise DstoolsError(
            f"{info.where}: {rule.label} asks for fp8-block, but it is {info.dtype} "
            f"{list(info.shape)}",
            "block FP8 is made from two-dimensional BF16, F16 or F32",
        )
    if parsed is None or parsed.role not in QUANTIZED_ROLES:
        role = f"it is the {parsed.role}" if parsed else "its name has no known role"
        raise DstoolsError(
            f"{info.where}: {rule.label} asks for fp8-block, but {role}",
            "no engine would look for its scale; such tensors can only be kept",
        )
    return TensorPlan("quantize", info, fp8_block(info, scheme), rule.label)


def _plan_quantized(
    info: TensorInfo, inventory: Inventory, rule: Rule, is_own: bool, scheme: QuantScheme
) -> TensorPlan:
    """Return what becomes of FP8, which stays FP8; only its scales can ask for new codes."""
    assert inventory.scheme is not None
    if len(info.shape) != 2:
        raise DstoolsError(f"{info.where}: is FP8 and {len(info.shape)}-dimensional")
    if is_own and rule.scheme == "keep":
        raise DstoolsError(
            f"{info.where}: {rule.label} keeps it in high precision, but it is FP8 already",
            "dstools dequantize first, and quantize its output with this recipe",
        )
    formats = (inventory.scheme.scale_format, scheme.scale_format)
    action: Action = "requantize" if formats == ("float32", "ue8m0") else "copy"
    label = rule.label if is_own else FROM_SOURCE
    return TensorPlan(action, info, fp8_block(info, scheme), label)


def _copy(info: TensorInfo, rule: str) -> TensorPlan:
    return TensorPlan("copy", info, plain(info, info.dtype), rule)


def _calibrated(draft: list[TensorPlan], method: Method) -> list[TensorPlan]:
    """Return the draft with "calibrate" wherever codes are to be made."""
    if not any(tensor.action in ROUNDED for tensor in draft):
        raise DstoolsError(
            f"--method {method}: no weight is left to round; all FP8 is copied",
            "dstools dequantize first, or ask for the other --scale-fmt",
        )
    return [
        tensor._replace(action="calibrate") if tensor.action in ROUNDED else tensor
        for tensor in draft
    ]


def _check_base(inventory: Inventory, base: Inventory, scale_format: ScaleFormat | None) -> None:
    if base.scheme is None:
        raise DstoolsError(
            f"--base {base.checkpoint.folder}: is not quantized",
            "--base takes the original FP8 checkpoint",
        )
    if inventory.scheme is not None:
        raise DstoolsError(
            "config.json: the source is FP8 already",
            "--base is for a BF16 source that was made from FP8",
        )
    if scale_format not in (None, base.scheme.scale_format):
        raise DstoolsError(
            f"--base has {base.scheme.scale_format} scales, {scale_format} were asked for",
            "leave out --scale-fmt",
        )
    for name, info in inventory.tensors.items():
        original = base.tensors.get(name)
        if original is not None and original.shape != info.shape:
            raise DstoolsError(
                f"{info.where}: is {list(info.shape)}, in --base {list(original.shape)}",
                "--base is of another model",
            )


def _check_blocks(draft: list[TensorPlan], scheme: QuantScheme) -> None:
    """Raise DstoolsError where codes are to be made in blocks that are not square."""
    rows, cols = scheme.block_size
    is_copy = all(tensor.action == "copy" for tensor in draft)
    if rows != cols and not is_copy:
        raise DstoolsError(
            f"config.json: the existing FP8 has blocks of {rows} x {cols}; new ones are square",
            "dstools dequantize first, and quantize its output",
        )
