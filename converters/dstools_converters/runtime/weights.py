"""Weights of a checkpoint, loaded into the serving form by the project's own reader."""

from pathlib import Path

import torch
from torch import nn

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.checkpoint.tensors import restored
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import HUGGING_FACE, TensorName
from dstools_converters.families.shapes import Model
from dstools_converters.model.architecture import Architecture, Parameters, read_architecture
from dstools_converters.model.decoder import Decoder
from dstools_converters.runtime.serving import Experts, Serving, stack_experts


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> Serving:
    """Return the serving form of a checkpoint, native block FP8 widened to `dtype`.

    The router's bias stays float32, as it is in the releases. Raises DstoolsError for a folder that
    is not a sound checkpoint of a family that the decoder implements.
    """
    with open_checkpoint(folder) as checkpoint:
        inventory = require_sound(checkpoint)
        architecture = read_architecture(checkpoint.config)
        positions = read_positions(checkpoint.config, architecture)
        with torch.device("meta"):
            decoder = Decoder(architecture)
            stack_experts(decoder)
        for name, _ in inventory.model.weights():
            is_bias = name.role == "e_score_correction_bias"
            weight = restored(inventory, inventory.info(name))
            weight = weight.to(device, torch.float32 if is_bias else dtype)
            if name.expert is None:
                path, _, part = inventory.model.spell(name).rpartition(".")
                setattr(decoder.get_submodule(path), part, _fixed(weight))
            else:
                _set_expert(decoder, inventory.model, name, weight)
    return Serving(decoder.eval(), positions)


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


def _set_expert(decoder: Decoder, model: Model, name: TensorName, weight: torch.Tensor) -> None:
    """Put the weight of one expert into the tensor of all."""
    experts = decoder.model.layers[name.layer or 0].mlp
    assert isinstance(experts, Experts)
    assert model.moe is not None
    assert name.expert is not None
    side = HUGGING_FACE.path(name).rpartition(".")[2]
    stacked = getattr(experts, side)
    if stacked.is_meta:
        stacked = _fixed(weight.new_empty(model.moe.n_routed_experts, *weight.shape))
        setattr(experts, side, stacked)
    stacked.data[name.expert] = weight


def _fixed(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
