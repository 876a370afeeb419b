"""A dense model's graph, written by onnxruntime-genai's builder, against its checkpoint.

All its weights are float32. A product is x @ weight, so that of a linear layer is transposed, and
those of query, key and value are one, side by side. Takes neither torch nor onnx.
Source: onnxruntime-genai 0.18, models/builders/base.py (`make_matmul`, `make_packed_matmul`).
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.rows import columns, restore
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.folder import GRAPH, Export
from dstools_converters.families.names import Role, TensorName
from dstools_converters.families.shapes import MLA, Model
from dstools_converters.verify.exported.onnx_file import Initializer, read_outline
from dstools_converters.verify.exported.pieces import differing, other, reshaped, unmade
from dstools_converters.verify.report import Results

MODULES: dict[Role, str] = {  # of no linear layer
    "embed_tokens": "model.embed_tokens",
    "norm": "model.layers.{}.final_norm_layernorm",
    "input_layernorm": "model.layers.{}.input_layernorm",
    "post_attention_layernorm": "model.layers.{}.post_attention_layernorm",
    "q_norm": "model.layers.{}.attn.q_norm.layernorm",
    "k_norm": "model.layers.{}.attn.k_norm.layernorm",
}
LINEAR: dict[Role, str] = {
    "lm_head": "lm_head",
    "q_proj": "model.layers.{}.attn.qkv_proj",
    "k_proj": "model.layers.{}.attn.qkv_proj",
    "v_proj": "model.layers.{}.attn.qkv_proj",
    "o_proj": "model.layers.{}.attn.o_proj",
    "dense_gate": "model.layers.{}.mlp.gate_proj",
    "dense_up": "model.layers.{}.mlp.up_proj",
    "dense_down": "model.layers.{}.mlp.down_proj",
}
NODES = {"weight": "MatMul", "bias": "Add"}  # of a linear layer
ANGLES = ("cos_cache", "sin_cache")


def compare(folder: Path, export: Export, checkpoint: Checkpoint, results: Results) -> None:
    """Add to `results` which weights of a folder's graph are not those of a checkpoint.

    The places of all weights are sound. Raises DstoolsError for a checkpoint of another kind.
    """
    inventory = require_sound(checkpoint)
    wanted = _wanted(inventory, export.model_type)
    there = {i.name: i for i in read_outline(folder / GRAPH).initializers if i.location}
    for name, infos in wanted.items():
        where = f"{GRAPH}: {printable(name)}"
        tensor = there.pop(name, None)
        if tensor is None:
            results.findings.append(other(where, "is missing, and this checkpoint makes it"))
        else:
            results.findings += _compare(folder, inventory, tensor, infos, where)
            results.elements_compared += prod(tensor.shape)
    for name in sorted(there.keys() - set(ANGLES)):
        results.findings.append(unmade(f"{GRAPH}: {printable(name)}"))
    results.checked.append(f"{len(wanted)} weights of the graph against the checkpoint's numbers")
    results.not_checked.append("the builder's tables of angles against their definition")


def _wanted(inventory: Inventory, model_type: str) -> dict[str, list[TensorInfo]]:
    """Return which tensors of the checkpoint are, one after another, each weight of the graph."""
    model, wanted = inventory.model, dict[str, list[TensorInfo]]()
    if model.model_type != model_type or isinstance(model.attention, MLA):
        raise DstoolsError(
            f"--source {inventory.checkpoint.folder}: is of model_type {model.model_type!r}, and "
            f"the folder was made from a dense model of {model_type!r}",
            "give the checkpoint that was exported",
        )
    for name, _ in model.weights():
        wanted.setdefault(_spelled(model, name), []).append(inventory.info(name))
    return wanted


def _spelled(model: Model, name: TensorName) -> str:
    """Return what the builder calls a weight; a tied embedding is there as the head alone."""
    role: Role = "lm_head" if model.is_tied and name.role == "embed_tokens" else name.role
    layer = model.num_hidden_layers if role == "norm" else name.layer
    if role in MODULES:
        return f"{MODULES[role].format(layer)}.{name.part}"
    return f"{LINEAR[role].format(layer)}.{NODES[name.part]}.{name.part}"


def _compare(
    folder: Path, inventory: Inventory, tensor: Initializer, infos: list[TensorInfo], where: str
) -> Iterator[Finding]:
    """Yield where a weight of the graph is not the checkpoint's numbers as float32, bit by bit."""
    shape = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
    is_transposed = f".{NODES['weight']}." in tensor.name
    own = shape[::-1] if is_transposed else shape
    if (tensor.dtype, tensor.shape, tensor.nbytes) != ("F32", own, 4 * prod(own)):
        yield reshaped(where, tensor.dtype, tensor.shape, "F32", own)
        return
    path = folder / tensor.location
    bits = np.fromfile(path, np.uint32, prod(own), offset=tensor.offset).reshape(own)
    rows = bits.T if is_transposed else bits
    for info in infos:
        restored = restore(inventory, info, 0, info.numel // columns(info))
        values = np.frombuffer(restored, np.uint32).reshape(info.shape)
        if not np.array_equal(rows[: len(values)], values):
            row, column = (0, *np.argwhere(rows[: len(values)] != values)[0].tolist())[-2:]
            place = f"{info.where}: they differ at row {row}, column {column}"
            yield differing(where, "converted", place)
            return
        rows = rows[len(values) :]
