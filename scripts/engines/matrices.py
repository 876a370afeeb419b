"""Comparison of the weights in an engine's memory with those that `dstools dequantize` wrote.

Used inside an engine's own environment: needs torch and safetensors, nothing of dstools.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

BLOCK = 128
# Modules that vLLM and SGLang load from several weights, in this order, one below the other.
FUSED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
EXPERTS = {"w13": ("gate_proj", "up_proj"), "w2": ("down_proj",)}
WRAPPERS = (".routed_experts", ".mtp_block")  # parts of module names that checkpoints do not have


def load_folder(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint folder."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def compare(modules: Iterable[tuple[str, Module]], wanted: Mapping[str, Tensor]) -> dict[str, bool]:
    """Return the weights of `wanted` that the modules hold, and whether each is equal bit by bit.

    `modules` are named modules of an engine's model on one device, after loading and before its
    kernels repack them. `wanted` holds the dequantized weights [rows, cols] in BF16.
    """
    equal: dict[str, bool] = {}
    for paths, matrix in matrices(modules):
        names = [f"{path}.weight" for path in paths]
        if not all(name in wanted for name in names):
            continue
        rows = [wanted[name].shape[0] for name in names]
        if matrix.shape[0] < sum(rows):
            equal |= dict.fromkeys(names, False)
            continue
        pieces = matrix[: sum(rows)].split(rows)  # engines append rows to a vocabulary
        for name, piece in zip(names, pieces, strict=True):
            equal[name] = same_bits(piece, wanted[name])
    return equal


def matrices(modules: Iterable[tuple[str, Module]]) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the paths of the modules in a checkpoint that make up a matrix, and it, in BF16."""
    for name, module in modules:
        path = name
        for wrapper in WRAPPERS:
            path = path.replace(wrapper, "")
        held = dict(module.named_parameters(recurse=False))
        stem, _, leaf = path.rpartition(".")
        prefix = f"{stem}." if stem else ""
        if "w13_weight" in held:
            for kind, parts in EXPERTS.items():
                weights, scales = held[f"{kind}_weight"], scale_of(held, f"{kind}_weight")
                for expert, weight in enumerate(weights):
                    scale = None if scales is None else scales[expert]
                    yield [f"{path}.{expert}.{part}" for part in parts], restore(weight, scale)
        elif "weight" in held and held["weight"].dim() == 2:
            parts = FUSED.get(leaf, (leaf,))
            matrix = restore(held["weight"], scale_of(held, "weight"))
            yield [f"{prefix}{part}" for part in parts], matrix


def scale_of(held: Mapping[str, Tensor], weight: str) -> Tensor | None:
    """Return a weight's scales: engines name them as the format does."""
    return held.get(f"{weight}_scale_inv", held.get(f"{weight}_scale"))


def restore(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return code * scale in F32 rounded to BF16, for codes [rows, cols] and a grid of scales.

    The blocks are of 128, or of 64 or 32 where an engine has refined the grid.
    """
    if scale is None:
        return weight.detach().to(torch.bfloat16)
    values = weight.detach().float()
    for dim in (0, 1):
        side, count = weight.shape[dim], scale.shape[dim]
        block = next((b for b in (BLOCK, 64, 32) if -(-side // b) == count), BLOCK)
        scale = scale.detach().float().repeat_interleave(block, dim).narrow(dim, 0, side)
    return (values * scale).to(torch.bfloat16)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Return whether two BF16 tensors have one shape and the same bits."""
    if left.shape != right.shape or right.dtype != torch.bfloat16:
        return False
    return torch.equal(left.contiguous().view(torch.int16), right.view(torch.int16))
