"""Weights in the serving form: read from a checkpoint by the project's own reader, or another's."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound, without_mtp
from dstools_converters.checkpoint.scheme import BLOCK_SIZE, QUANTIZED_ROLES
from dstools_converters.checkpoint.tensors import restored, stored
from dstools_converters.checkpoint.tied import require_tied
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.families.shapes import Model, read_model
from dstools_converters.model.architecture import Architecture, Parameters, read_architecture
from dstools_converters.model.decoder import Decoder
from dstools_converters.runtime.products import Stack, Weight
from dstools_converters.runtime.serving import Serving, prepare
from dstools_kernels.ops.dispatch import form

log = logging.getLogger(__name__)

CODED_ROLES = QUANTIZED_ROLES - {"kv_b_proj"}  # which is absorbed, in its dequantized form
STACKS: dict[Role, str] = {  # attributes of Experts
    "routed_gate": "gate_proj",
    "routed_up": "up_proj",
    "routed_down": "down_proj",
}
# Attribute of transformers' experts, which of its parts, and of how many
JOINED: dict[Role, tuple[str, int, int]] = {
    "routed_gate": ("gate_up_proj", 0, 2),
    "routed_up": ("gate_up_proj", 1, 2),
    "routed_down": ("down_proj", 0, 1),
}


def load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    mtp: bool = True,
    keeps_codes: bool = False,
) -> Serving:
    """Return the serving form of a checkpoint, as `serving_of` does.

    mtp: with its MTP layers; without, their tensors are not read, and need not be there. Raises
    DstoolsError for a folder that is not a sound checkpoint of a family that the decoder
    implements.
    """
    with open_checkpoint(folder) as checkpoint:
        inventory = sound_inventory(checkpoint, mtp)
        return serving_of(inventory, dtype, device, keeps_codes)


def serving_of(
    inventory: Inventory, dtype: torch.dtype, device: torch.device, keeps_codes: bool
) -> Serving:
    """Return the serving form of what `sound_inventory` found, native block FP8 widened to `dtype`.

    keeps_codes: leave FP8 weights as they are, where FP8 products take them; their inputs are then
    rounded, too, and experts give BF16. The router's bias stays float32, as it is in the releases.
    Raises DstoolsError for a model that the decoder does not implement, and for weights that are
    not finite.
    """
    config = inventory.checkpoint.config
    architecture = replace(read_architecture(config), model=inventory.model)
    positions = read_positions(config, architecture)
    with torch.device("meta"):
        decoder = Decoder(architecture)
        prepare(decoder)
    scheme = inventory.scheme
    names = coded_names(inventory) if keeps_codes else frozenset()
    for name, _ in inventory.model.weights():
        info = inventory.info(name)
        if name in names:
            weight, scales = stored(inventory, info)
            _put(decoder, inventory.model, name, weight.to(device), scales.to(device))
        else:
            weight = restored(inventory, info).to(device, _dtype(name, dtype))
            _put(decoder, inventory.model, name, weight, None)
    for module in decoder.modules():
        if isinstance(module, Weight) and scheme is not None:
            module.scale_format = scheme.scale_format
    return Serving(decoder.eval(), positions)


def sound_inventory(checkpoint: Checkpoint, mtp: bool) -> Inventory:
    """Return the inventory of a checkpoint, its model without MTP layers unless `mtp`.

    Without, it does not matter what the config promises of them and which of their tensors are
    there: transformers saves folders that lack them. Raises DstoolsError at the first
    inconsistency, and where a tied model has another head, of which two tensors are read.
    """
    inventory = require_sound(checkpoint if mtp else without_mtp(checkpoint))
    require_tied(inventory)
    return inventory


def holds_mtp(checkpoint: Checkpoint) -> bool:
    """Return whether shards hold a tensor of a layer after the hidden ones."""
    model = read_model(checkpoint.config)
    parse, layers = model.spelling.parse, model.num_hidden_layers
    return any(
        name is not None and name.is_mtp for name in (parse(n, layers) for n in checkpoint.tensors)
    )


def takes_codes(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether FP8 weights are to be kept as codes: where Triton multiplies them, in BF16.

    The products of torch would widen them at every step.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return dtype == torch.bfloat16 and form(device.type, capability).name == "triton"


def held_bytes(inventory: Inventory, dtype: torch.dtype, keeps_codes: bool) -> int:
    """Return the bytes that a serving form holds: codes and float32 scales where it keeps them."""
    names = coded_names(inventory) if keeps_codes else frozenset()
    total = 0
    for name, shape in inventory.model.weights():
        numbers = math.prod(shape)
        if name in names:
            scale = inventory.storage[inventory.model.spell(name)].scale
            total += numbers + scale.numel * torch.float32.itemsize
        else:
            total += numbers * _dtype(name, dtype).itemsize
    return total


def _dtype(name: TensorName, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.role == "e_score_correction_bias" else dtype


def serving_over(config: Parameters, weights: Mapping[str, Tensor]) -> Serving:
    """Return the serving form of a model of transformers over its weights, which are not copied.

    config: as in its config.json; weights: its state_dict, where the experts of a layer are
    `gate_up_proj` [E, 2 I, D] and `down_proj` [E, D, I]. kv_b_proj alone is copied, so a new form
    is due when weights change. Raises DstoolsError for a model that the decoder does not
    implement, or whose weights are not those that its config says.
    """
    architecture = read_architecture(config | {"num_nextn_predict_layers": 0})  # it has no MTP
    positions = read_positions(config, architecture)
    model = architecture.model
    with torch.device("meta"):
        decoder = Decoder(architecture)
        prepare(decoder)
    unused = weights.keys() - {model.spell(name) for name, _ in model.optional_weights()}
    for name, shape, count in model.kinds():
        if name.expert is None:
            held, wanted = model.spell(name), shape
            weight = weights.get(held)
        else:
            held, wanted = _joined(model, name), (count, *shape)
            _, part, parts = JOINED[name.role]
            weight = weights[held].chunk(parts, 1)[part] if held in weights else None
        if weight is None or weight.shape != wanted:
            given = "missing" if weight is None else list(weight.shape)
            raise DstoolsError(f"{held}: {given}; the config says {list(wanted)}")
        module = _module(decoder, model, name)
        setattr(module, name.part, nn.Parameter(weight, requires_grad=False))
        unused -= {held}
    if unused:
        raise DstoolsError(f"{min(unused)}: is not a weight that the config says")
    return Serving(decoder.eval(), positions)


def coded_names(inventory: Inventory) -> frozenset[TensorName]:
    """Return the names of the weights that FP8 products take; log what is widened instead."""
    scheme = inventory.scheme
    if scheme is None:
        return frozenset()
    if scheme.block_size != (BLOCK_SIZE, BLOCK_SIZE):
        log.info("FP8 is widened: its blocks are %d x %d, not 128 x 128", *scheme.block_size)
        return frozenset()
    weights = {name for name, _ in inventory.model.weights()}
    coded = {
        name
        for name in weights
        if name.role in CODED_ROLES and inventory.is_quantized(inventory.info(name))
    }
    plain = {name.layer for name in weights - coded if name.expert is not None}
    mixed = {name.layer for name in coded if name.expert is not None and name.layer in plain}
    if mixed:
        log.info("experts are widened in layers where not all are FP8: %d", len(mixed))
    return frozenset(name for name in coded if name.expert is None or name.layer not in mixed)


def read_positions(config: Parameters, architecture: Architecture) -> int:
    """Return how many positions a model has; for V3.2 only those where sparse attention is dense.

    Raises DstoolsError where config.json does not say.
    """
    positions = config.get("max_position_embeddings")
    if type(positions) is not int:
        raise DstoolsError(
            "config.json: has no max_position_embeddings", "restore it from the release"
        )
    return min(positions, architecture.index_topk or positions)


def _put(
    decoder: Decoder,
    model: Model,
    name: TensorName,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
) -> None:
    """Put a weight into its module; that of one expert into the tensor of all."""
    module = _module(decoder, model, name)
    if name.expert is None:
        setattr(module, name.part, nn.Parameter(weight, requires_grad=False))
        if scales is not None:
            setattr(module, "scales", scales)  # noqa: B010
        return
    assert isinstance(module, Stack)
    assert model.moe is not None
    count = model.moe.n_routed_experts
    if module.weight.is_meta:
        module.weight = nn.Parameter(weight.new_empty(count, *weight.shape), requires_grad=False)
        module.scales = None if scales is None else scales.new_empty(count, *scales.shape)
    module.weight.data[name.expert] = weight
    if scales is not None:
        assert module.scales is not None
        module.scales[name.expert] = scales


def _module(decoder: Decoder, model: Model, name: TensorName) -> nn.Module:
    """Return the module that holds a weight; for that of an expert, the stack of all of a layer."""
    if name.expert is None:
        return decoder.get_submodule(model.spelling.module(name))
    assert name.layer is not None
    stack: nn.Module = getattr(decoder.model.layers[name.layer].mlp, STACKS[name.role])
    return stack


def _joined(model: Model, name: TensorName) -> str:
    """Return the name of the tensor of transformers that has a weight of all experts of a layer."""
    assert name.layer is not None
    return f"{model.spelling.experts_of(name.layer)}.{JOINED[name.role][0]}"
