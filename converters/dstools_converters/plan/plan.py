"""The plan: what becomes of every tensor.

A dry run, the disk check, the output headers, resuming and verifying are readers of this one list.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import FLOATS, Inventory, scale_name
from dstools_converters.checkpoint.scheme import BLOCK_SIZE, QUANTIZED_ROLES, Format, QuantScheme
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.plan.layout import Action, Output, ShardPlan, TensorPlan, lay_out, unplaced
from dstools_converters.plan.recipe import Recipe, Rule
from dstools_kernels.fp8 import ScaleFormat

# Engines run these as one matrix, so they are quantized together or not at all. Source: vLLM's
# packed_modules_mapping of deepseek_v2.py, llama.py and qwen2.py.
FUSED: tuple[tuple[Role, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("dense_gate", "dense_up"),
    ("routed_gate", "routed_up"),
    ("shared_gate", "shared_up"),
)
# Matrices that are kept by default, and that an engine may take for a linear layer to quantize.
KEPT_MATRICES: frozenset[Role] = frozenset({
    "lm_head", "router", "eh_proj", "shared_head", "indexer_weights_proj",
})  # fmt: skip


Method = Literal["gptq", "mse", "amax"]


@dataclass(frozen=True)
class Calibration:
    """How data decides the rounding: everything that could move a byte of the output."""

    method: Method
    data: dict[str, Any]  # of what, as Corpus.provenance tells
    device: str
    threads: int  # sums of floats depend on who adds what
    versions: dict[str, str]
    kv_cache: bool  # write the scales of an FP8 KV cache


@dataclass(frozen=True)
class Plan:
    """All that will be written, except the small files that are copied."""

    inventory: Inventory
    base: Inventory | None
    scheme: QuantScheme | None  # None: the output is not quantized
    config: dict[str, Any]
    decisions: tuple[TensorPlan, ...]  # one a tensor; their outputs have no places yet
    calibration: Calibration | None = None
    is_lossless: bool = False  # BF16 that was made from block FP8 becomes that again

    @cached_property
    def shards(self) -> tuple[ShardPlan, ...]:
        """Return the output files, in which every output has its place."""
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
        """Return the bytes of hidden states at most on the disk meanwhile: two saved, three spilled."""
        if self.calibration is None:
            return 0
        data = self.calibration.data
        tokens: int = data["samples"] * data["seq_len"]
        return 5 * tokens * self.inventory.model.hidden_size * 4

    @property
    def counts(self) -> dict[Action, int]:
        """Count the tensors by what becomes of them."""
        return dict(Counter(tensor.action for tensor in self.decisions))

    def index(self) -> dict[str, Any]:
        """Return the content of model.safetensors.index.json."""
        outputs = [
            (shard.name, output)
            for shard in self.shards
            for tensor in shard.tensors
            for output in tensor.outputs
        ]
        total = sum(output.nbytes for _, output in outputs)
        weight_map = {output.name: shard for shard, output in outputs}
        metadata = self.inventory.checkpoint.index_metadata | {"total_size": total}
        return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}

    @cached_property
    def digest(self) -> str:
        """Return a sha256 over sources, decisions and output headers: same digest, same bytes."""
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

    `scale_format` None keeps that of FP8 found in the source or base, and is "float32" without any.
    With `base`, its quantization is followed wherever the recipe has no rule of its own. With
    `is_lossless`, BF16 that was made from block FP8 becomes that again.
    Raises DstoolsError for a rule that matches nothing, cannot be followed, or parts weights that
    engines fuse.
    """
    found = inventory.scheme or (base.scheme if base else None)
    if base is not None:
        _check_base(inventory, base, scale_format)
    recipe.check_all_match((info.name, parsed) for info, parsed in inventory.weights())
    scheme = scheme_after(found, format, scale_format)
    draft = [
        plan_tensor(info, parsed, inventory, base, recipe, scheme)
        for info, parsed in inventory.weights()
    ]
    if calibration is not None and calibration.method != "amax":
        draft = [
            replace(tensor, action="calibrate")
            if tensor.action in ("quantize", "requantize", "restore")
            else tensor
            for tensor in draft
        ]
        if not any(tensor.action == "calibrate" for tensor in draft):
            raise DstoolsError(
                f"--method {calibration.method}: nothing is left to be rounded; all FP8 is copied",
                "dstools dequantize first, or ask for the other --scale-fmt",
            )
    if is_lossless:
        draft = [
            replace(tensor, action="recover")
            if tensor.action == "quantize" and tensor.source.dtype == "BF16"
            else tensor
            for tensor in draft
        ]
    _check_fused(draft, inventory)
    rows, cols = scheme.block_size
    if rows != cols and any(
        tensor.action in ("quantize", "requantize", "restore", "recover", "calibrate")
        for tensor in draft
    ):
        raise DstoolsError(
            f"config.json: FP8 that is there has blocks of {rows} x {cols}; new ones are square",
            "dstools dequantize first, and quantize its output",
        )
    has_cache = any(p is not None and p.role == "kv_cache" for p in inventory.names.values())
    writes_cache = calibration is not None and calibration.kv_cache
    if has_cache and writes_cache:
        raise DstoolsError(
            "the source has scales of a KV cache itself", "leave out --kv-cache; they are kept"
        )
    kept = _kept_modules(draft, inventory, format, found)
    scheme = replace(scheme, kept=kept, kv_cache=has_cache or writes_cache)
    config = dict(inventory.checkpoint.config)
    native = [
        i.checkpoint.config["quantization_config"] for i in (inventory, base) if i and i.scheme
    ]
    same_format = found is not None and found.format == format
    config["quantization_config"] = scheme.to_config(native[0] if native and same_format else None)
    return Plan(inventory, base, scheme, config, tuple(draft), calibration, is_lossless)


def scheme_after(
    found: QuantScheme | None, format: Format, scale_format: ScaleFormat | None
) -> QuantScheme:
    """Return the scheme of an output, where FP8 that is already there has the scheme `found`."""
    if found is None:
        return QuantScheme(format, scale_format or "float32", (BLOCK_SIZE, BLOCK_SIZE))
    return QuantScheme(format, scale_format or found.scale_format, found.block_size)


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
        if parsed is not None and parsed.role == "kv_cache":
            continue  # they belong to the FP8 that goes
        if info.name in inventory.scales:
            outputs = (unplaced(info.name, "BF16", info.shape),)
            draft.append(TensorPlan("dequantize", info, outputs, "FP8 in the source"))
        else:
            draft.append(_copy(info, "not FP8 in the source"))
    config = dict(inventory.checkpoint.config)
    del config["quantization_config"]
    return Plan(inventory, None, None, config, tuple(draft))


def plan_tensor(
    info: TensorInfo,
    parsed: TensorName | None,
    inventory: Inventory,
    base: Inventory | None,
    recipe: Recipe,
    scheme: QuantScheme,
) -> TensorPlan:
    """Return what becomes of one tensor; its outputs have no places yet.

    Raises DstoolsError where a rule asks for FP8 of what cannot be FP8.
    """
    rule = recipe.decide(info.name, parsed)
    is_own = rule in recipe.rules
    original = base.tensors.get(info.name) if base else None
    if info.name in inventory.scales and len(info.shape) != 2:
        raise DstoolsError(f"{info.where}: is FP8 and {len(info.shape)}-dimensional")
    if info.name in inventory.scales:  # FP8 stays FP8; only its scales can ask for new codes
        found = inventory.scheme
        assert found is not None
        is_rounded = (found.scale_format, scheme.scale_format) == ("float32", "ue8m0")
        if is_own and rule.scheme == "keep":
            raise DstoolsError(
                f"{info.where}: {rule.label} keeps it in high precision, but it is FP8 already",
                "dstools dequantize first, and quantize its output with this recipe",
            )
        label = rule.label if is_own else "FP8 in the source"
        action: Action = "requantize" if is_rounded else "copy"
        return TensorPlan(action, info, _quantized(info, scheme), label)
    if base and original and not is_own:
        if info.name in base.scales and info.dtype == "BF16":
            return TensorPlan("restore", info, _quantized(info, scheme), "FP8 in the base")
        if info.name not in base.scales:
            return _copy(info, "not FP8 in the base")
        rule = Rule("FP8 in the base", "fp8-block")
    if rule.scheme == "keep":
        return _copy(info, rule.label)
    if info.dtype not in FLOATS or len(info.shape) != 2:
        raise DstoolsError(
            f"{info.where}: {rule.label} asks for fp8-block, but it is {info.dtype} {list(info.shape)}",
            "block FP8 is made of two-dimensional BF16, F16 or F32",
        )
    if parsed is None or parsed.role not in QUANTIZED_ROLES:
        role = f"it is the {parsed.role}" if parsed else "its name has no known role"
        raise DstoolsError(
            f"{info.where}: {rule.label} asks for fp8-block, but {role}",
            "no engine would look for its scale; such tensors can only be kept",
        )
    return TensorPlan("quantize", info, _quantized(info, scheme), rule.label)


def _copy(info: TensorInfo, rule: str) -> TensorPlan:
    return TensorPlan("copy", info, (unplaced(info.name, info.dtype, info.shape),), rule)


def _quantized(info: TensorInfo, scheme: QuantScheme) -> tuple[Output, Output]:
    return (
        unplaced(info.name, "F8_E4M3", info.shape),
        unplaced(scale_name(info.name, scheme), "F32", scheme.grid(info.shape)),
    )


def _check_base(inventory: Inventory, base: Inventory, scale_format: ScaleFormat | None) -> None:
    if base.scheme is None:
        raise DstoolsError(
            f"--base {base.checkpoint.folder}: is not quantized", "--base takes the original FP8"
        )
    if inventory.scheme is not None:
        raise DstoolsError(
            "config.json: the source is FP8 itself", "--base is for a BF16 source made from FP8"
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


def _check_fused(draft: list[TensorPlan], inventory: Inventory) -> None:
    """Raise DstoolsError where of weights that engines fuse, some are quantized and some kept."""
    siblings = {role: roles for roles in FUSED for role in roles}
    seen: dict[tuple[int | None, int | None, tuple[Role, ...]], TensorPlan] = {}
    for tensor in draft:
        parsed = inventory.names[tensor.source.name]
        if parsed is None or parsed.part != "weight":
            continue
        roles = siblings.get(parsed.role)
        if roles is None:
            continue
        first = seen.setdefault((parsed.layer, parsed.expert, roles), tensor)
        if len(first.outputs) != len(tensor.outputs):
            quantized, kept = sorted((first, tensor), key=lambda t: -len(t.outputs))
            raise DstoolsError(
                f"{kept.source.where}: kept by {kept.rule}, but {quantized.source.name} is "
                f"quantized by {quantized.rule}",
                f"engines run {', '.join(roles)} as one matrix; give them one rule",
            )


def _kept_modules(
    draft: list[TensorPlan], inventory: Inventory, format: Format, found: QuantScheme | None
) -> tuple[str, ...]:
    """List the matrices that an engine must not take for quantized.

    DeepSeek's own config.json has no such list: its engines know the roles. A native output follows
    that as long as it keeps just what DeepSeek keeps; some engines match the names of the list as
    substrings, so a needless one does harm.
    """
    named = found.kept if found and found.format == format else ()  # each has its own patterns
    already = frozenset(named)
    kept = []
    is_needed = format == "compressed-tensors"
    for tensor in draft:
        parsed = inventory.names[tensor.source.name]
        if parsed is None or parsed.part != "weight" or len(tensor.outputs) == 2:
            continue
        if parsed.role in QUANTIZED_ROLES | KEPT_MATRICES and parsed.module not in already:
            kept.append(parsed.module)
            is_needed |= parsed.role in QUANTIZED_ROLES
    return named + tuple(kept) if is_needed else named
