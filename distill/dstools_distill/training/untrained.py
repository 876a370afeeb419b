"""MTP layers of a student: no trainer trains them, as transformers does not load them.

Such a layer of DeepSeek-V3 drafts a token for the model to check. Training the model leaves the
layer as it was, so that fewer drafts are kept; answers stay the same. mtp.py fits it again.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from dstools_converters.checkpoint.config import MTP_LAYERS
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import HUGGING_FACE
from dstools_converters.runtime.weights import holds_mtp, sound_inventory
from dstools_distill.recipe.settings import Training

UNEXPECTED_KEYS = "_keys_to_ignore_on_load_unexpected"  # of a class of transformers
COPIES = ("embed_tokens.weight", "shared_head.head.weight")  # of the model's, one row a token


class Untrained(NamedTuple):
    """MTP layers in a result."""

    tensors: Mapping[str, Tensor]
    fate: str  # for the report; "" for a student whose config names no MTP layer


def untrained(settings: Training, student: Path | None, config: Any) -> Untrained:
    """Return the tensors of a student's MTP layers as its files hold them, which are mapped.

    config: of the model in training. It gets no MTP layer where none is carried over: with
    `mtp = "drop"`, or where the folder lacks their tensors, as those that transformers saves do.
    Copies of the embeddings and the head get as few rows as `config` says, where kd cut them.
    Raises DstoolsError for a folder that is not a sound checkpoint.
    """
    count = getattr(config, MTP_LAYERS, 0)
    if not count:
        return Untrained({}, "")
    tensors: dict[str, Tensor] = {}
    if settings.mtp == "keep" and student is not None:
        tensors = _read(student, mtp_prefixes(config))
    if not tensors:
        setattr(config, MTP_LAYERS, 0)
        return Untrained({}, "dropped" if settings.mtp == "drop" else "missing in the student")
    for name in tensors:
        if name.endswith(COPIES):
            tensors[name] = tensors[name][: config.vocab_size]
    return Untrained(tensors, "carried over, not trained")


def with_one_layer(checkpoint: Checkpoint) -> Inventory:
    """Return the inventory of a model whose MTP layer can be fitted.

    Raises DstoolsError for a checkpoint that is unsound or quantized, or that does not have one
    layer, with its tensors.
    """
    folder = checkpoint.folder
    if checkpoint.config.get(MTP_LAYERS) and not holds_mtp(checkpoint):
        raise DstoolsError(
            f"{folder}: config.json names MTP layers, and no shard holds a tensor of them",
            "take a copy that has them, as transformers saves none, or leave out [mtp]",
        )
    inventory = sound_inventory(checkpoint, mtp=True)
    if inventory.scheme is not None:
        raise DstoolsError(f"{folder}: is quantized", "fit its MTP layer before quantization")
    if inventory.model.num_mtp_layers != 1:
        raise DstoolsError(
            f"{folder}: has {inventory.model.num_mtp_layers} MTP layers, and one can be fitted",
            "models like DeepSeek-V3 have one; training keeps it unless mtp is 'drop'",
        )
    return inventory


def mtp_prefixes(config: Any) -> tuple[str, ...]:
    """Return how the names of the tensors of MTP layers begin; () for a model without them."""
    count = getattr(config, MTP_LAYERS, 0)
    layers = range(config.num_hidden_layers, config.num_hidden_layers + count) if count else ()
    return tuple(f"{HUGGING_FACE.layer(layer)}." for layer in layers)


@contextmanager
def without_mtp_warning(config: Any) -> Iterator[None]:
    """Let transformers load a model without a warning about its MTP layers, which `_read` reads."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    before = getattr(model_class, UNEXPECTED_KEYS, None)
    try:
        if model_class is not None:
            setattr(
                model_class,
                UNEXPECTED_KEYS,
                [*(before or ()), *map(re.escape, mtp_prefixes(config))],
            )
        yield
    finally:
        if model_class is not None:
            setattr(model_class, UNEXPECTED_KEYS, before)


def _read(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with these prefixes, by name."""
    with open_checkpoint(folder) as checkpoint, ExitStack() as stack:
        infos = [i for i in checkpoint.tensors.values() if i.name.startswith(prefixes)]
        files = {
            shard: stack.enter_context(safe_open(folder / shard, framework="pt"))
            for shard in sorted({info.shard for info in infos})
        }
        return {info.name: files[info.shard].get_tensor(info.name) for info in infos}
