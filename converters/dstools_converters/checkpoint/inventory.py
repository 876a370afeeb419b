"""The inventory of a checkpoint: the name and storage of each tensor, and the inconsistencies.

Everything here comes from config, index and headers; no weight is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dstools_converters.checkpoint.config import check_numbers
from dstools_converters.checkpoint.diagnosis import MISNAMED, explain
from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.foreign import quantization_name, refuse_quantization_file
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.implied import Evidence
from dstools_converters.checkpoint.scheme import QuantScheme, read_scheme
from dstools_converters.checkpoint.storage import (
    CODE_DTYPES,
    NEVER_CODES,
    SCALE_DTYPES,
    Storage,
    read_storage,
    scale_name,
)
from dstools_converters.errors import Finding, merged, printable
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import Model, read_model

BLOCK_SIDES = (128, 64, 32, 16, 256, 512)  # of square blocks, in the order of trying


@dataclass(frozen=True)
class Inventory:
    """A checkpoint with the parsed name of every tensor and the storage of every weight."""

    checkpoint: Checkpoint
    model: Model
    scheme: QuantScheme | None  # None: not quantized
    names: dict[str, TensorName | None]  # None: a name that the family lacks, or no elements
    storage: dict[str, Storage]  # of every tensor that is not the scale of another, in order

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors by name."""
        return self.checkpoint.tensors

    @property
    def unknown(self) -> list[TensorInfo]:
        """Return the tensors with names that the family lacks: copied, never quantized."""
        return [self.tensors[name] for name, parsed in self.names.items() if parsed is None]

    def weights(self) -> Iterator[tuple[TensorInfo, TensorName | None]]:
        """Yield every tensor that is not the scale of another, in order."""
        for name, storage in self.storage.items():
            yield storage.parts[0], self.names[name]

    def info(self, name: TensorName) -> TensorInfo:
        """Return the tensor of this name, which must be there."""
        return self.tensors[self.model.spell(name)]

    def quantized(self) -> dict[str, Storage]:
        """Return the storage of every quantized weight, in order."""
        return {name: storage for name, storage in self.storage.items() if storage.is_quantized}

    def is_quantized(self, info: TensorInfo) -> bool:
        """Return whether the tensor of this name is a quantized weight; a scale is not."""
        storage = self.storage.get(info.name)
        return storage is not None and storage.is_quantized


def take_inventory(checkpoint: Checkpoint) -> Inventory:
    """Return the inventory of a checkpoint.

    Raises DstoolsError for a model or a quantization that is not read. A `quantization_config`
    without any quantized tensor is not read: `check` reports it. A weight without elements has no
    role: transformers saves such shared experts where n_shared_experts is 0.
    """
    model = read_model(checkpoint.config)
    codes = {info.dtype for info in checkpoint.tensors.values()}.difference(NEVER_CODES)
    scheme = read_scheme(checkpoint.config) if codes else None
    if codes and (scheme is None or not codes <= {*CODE_DTYPES, *SCALE_DTYPES}):
        refuse_quantization_file(checkpoint.folder)
    parse, layers = model.spelling.parse, model.num_hidden_layers
    names = {name: parse(name, layers) for name in checkpoint.tensors}
    for name, parsed in names.items():
        if parsed is not None and parsed.part == "weight" and not checkpoint.tensors[name].numel:
            names[name] = None
    storage = read_storage(checkpoint.tensors, scheme)
    return Inventory(checkpoint, model, scheme, names, storage)


def require_sound(checkpoint: Checkpoint) -> Inventory:
    """Return the inventory; raises DstoolsError at its first inconsistency."""
    inventory = take_inventory(checkpoint)
    for finding in check(inventory):
        if finding.level == "error":
            raise finding.raised()
    return inventory


def without_mtp(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without its MTP layers, and with a config that has none.

    They are those after the hidden ones with a norm or projection that only MTP has. Any other
    layer there contradicts the config, and stays.
    """
    model = read_model(checkpoint.config)
    names = {n: model.spelling.parse(n, model.num_hidden_layers) for n in checkpoint.tensors}
    layers = Evidence(checkpoint.tensors, names).mtp
    dropped = {n for n, name in names.items() if name and name.is_mtp and name.layer in layers}
    return Checkpoint(
        checkpoint.folder,
        checkpoint.config | {"num_nextn_predict_layers": 0},
        {name: info for name, info in checkpoint.tensors.items() if name not in dropped},
        checkpoint.shards,
        checkpoint.index_metadata,
        checkpoint.warnings,
    )


def check(inventory: Inventory) -> list[Finding]:
    """Return inconsistencies between config and tensors, and notes of unusual tensors.

    Many of one kind are one finding. Where names or config are those of another model, the rest is
    not checked.
    """
    checkpoint = inventory.checkpoint
    files = [path.name for path in checkpoint.folder.glob("*.safetensors")]
    findings = list(
        explain(checkpoint.config, inventory.model, checkpoint.tensors, inventory.names, files)
    )
    if not findings:  # a number that the tensors contradict cannot be used to check others
        findings += check_numbers(checkpoint.config, inventory.model)
    findings += _check_scales(inventory)
    findings += _check_activation_scales(inventory)
    if any(finding.code in MISNAMED for finding in findings):
        return merged(findings)
    for info in inventory.unknown:
        if info.dtype.startswith("F8"):
            findings.append(
                Finding.error(
                    "fp8-unknown",
                    info.where,
                    "is FP8 under a name without a known role",
                    "remove it, in shards and index, or save it in BF16",
                )
            )
        else:
            findings.append(
                Finding.note("unknown-tensor", info.where, "has no known role; copied unchanged")
            )
    return merged(findings)


def _check_scales(inventory: Inventory) -> Iterator[Finding]:
    tensors, scheme = inventory.tensors, inventory.scheme
    fp8 = [info for info in tensors.values() if info.dtype in CODE_DTYPES]
    block = inventory.checkpoint.config.get("quantization_config")
    if block is not None and not fp8:
        name = quantization_name(block)
        yield Finding.error(
            "quantization-empty",
            "config.json",
            f"has a quantization_config{f', {name},' if name else ''} but no weight is quantized",
            "remove quantization_config from config.json, or download the quantized shards",
        )
    if scheme is not None:
        misnamed = _misnamed_scales(inventory, scheme, fp8)
        if misnamed is not None:
            yield misnamed
            return
        yield from _check_codes(inventory, scheme, fp8)
    elif fp8:
        if "compression_config" in inventory.checkpoint.config:  # llm-compressor's first name
            hint = "rename compression_config to quantization_config in config.json"
        else:
            hint = "without it an engine reads codes as weights; restore the original config.json"
        message = "is FP8, but config.json has no quantization_config"
        yield Finding.error("quantization-unnamed", fp8[0].where, message, hint)
        return
    yield from _check_orphans(inventory)


def _misnamed_scales(
    inventory: Inventory, scheme: QuantScheme, fp8: list[TensorInfo]
) -> Finding | None:
    """Return that all scales have the name of the other format, None where they do not."""
    other = {"native": "weight_scale", "compressed-tensors": "weight_scale_inv"}[scheme.format]
    stems = [info.name.removesuffix("weight") for info in fp8]
    if any(f"{stem}{scheme.scale_part}" in inventory.tensors for stem in stems):
        return None
    scales = [inventory.tensors.get(f"{stem}{other}") for stem in stems]
    if not scales or scales[0] is None or None in scales:
        return None
    return Finding.error(
        "scale-names",
        scales[0].where,
        f"and all other scales are called {other}; those of the format in config.json, "
        f"{scheme.format}, are called {scheme.scale_part}",
        f"restore the quantization_config that they were saved with, or rename them to "
        f"{scheme.scale_part} in shards and index",
    )


def _check_codes(
    inventory: Inventory, scheme: QuantScheme, fp8: list[TensorInfo]
) -> Iterator[Finding]:
    """Yield FP8 weights without a scale, or with one of a wrong shape or dtype."""
    scales = {name: storage.scale for name, storage in inventory.quantized().items()}
    implied_side = _implied_block_side(scales, inventory)
    for info in fp8:
        if inventory.names[info.name] is None:
            continue  # reported as an unknown tensor
        scale = scales.get(info.name)
        if scale is None:
            yield Finding.error(
                "scale-missing",
                info.where,
                f"has no scale: no shard holds {printable(scale_name(info.name, scheme))}",
                "its codes mean nothing without it; download the shard that the scale belongs to",
            )
        elif len(info.shape) != 2:
            yield Finding.error(
                "shape",
                info.where,
                f"is FP8 and {len(info.shape)}-dimensional",
                "block FP8 is of matrices; save it in BF16, without its scale",
            )
        elif scale.shape != scheme.grid(info.shape):
            yield Finding.error(
                "scale-shape",
                scale.where,
                f"is {list(scale.shape)}; a weight {list(info.shape)} in blocks of "
                f"{list(scheme.block_size)} has scales {list(scheme.grid(info.shape))}",
                f"set the block size in quantization_config to [{implied_side}, {implied_side}]"
                if implied_side
                else "restore the scales that belong to these weights",
            )
        elif scale.dtype not in SCALE_DTYPES:
            yield Finding.error(
                "scale-dtype",
                scale.where,
                f"is {scale.dtype}, not a dtype of scales",
                f"save it in {SCALE_DTYPES[0]}",
            )


def _implied_block_side(scales: dict[str, TensorInfo], inventory: Inventory) -> int | None:
    """Return the side of the blocks that all shapes of weights and scales imply."""
    assert inventory.scheme is not None
    pairs = {(inventory.tensors[name].shape, scale.shape) for name, scale in scales.items()}
    for side in BLOCK_SIDES:
        scheme = replace(inventory.scheme, block_size=(side, side))
        if all(len(shape) == 2 and scheme.grid(shape) == scale for shape, scale in pairs):
            return side
    return None


def _check_orphans(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales of weights that are not quantized."""
    belonging = {storage.scale.name for storage in inventory.quantized().values()}
    for spelled, parsed in inventory.names.items():
        if parsed is None or parsed.part not in ("weight_scale_inv", "weight_scale"):
            continue
        if spelled not in belonging:
            module = inventory.model.spelling.module(parsed)
            yield Finding.error(
                "scale-orphaned",
                inventory.tensors[spelled].where,
                f"scales nothing: {printable(module)}.weight is not an FP8 weight beside it",
                "remove it, in shards and index, or restore the FP8 weight that it belongs to",
            )


def _check_activation_scales(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales of a KV cache that are not one number, and any scales of inputs."""
    of_inputs = []
    for spelled, parsed in inventory.names.items():
        if parsed is None or not parsed.is_activation_scale:
            continue
        info = inventory.tensors[spelled]
        if parsed.role != "kv_cache":
            of_inputs.append(info)
        elif info.numel != 1:
            yield Finding.error(
                "shape",
                info.where,
                f"is {list(info.shape)}; a scale of a KV cache is one number",
                "only one scale for each layer is read; save the cache's scales that way, or "
                "remove them",
            )
    if of_inputs:
        yield Finding.warning(
            "input-scale",
            of_inputs[0].where,
            f"is one of {len(of_inputs)} static scales of inputs; the inputs of block FP8 are "
            "scaled as they come",
            "dstools quantize and dequantize leave them out",
        )
