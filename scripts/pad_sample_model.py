#!/usr/bin/env python3
"""The sample model in sizes that inference engines and our kernels serve: the same function.

    pad_sample_model.py tests/data/sample-v3 OUT [--heads]

Engines cut routed experts in blocks of 128, and vLLM's MLA takes kv_lora_rank + qk_rope_head_dim of
320, 512 or 576 only; the sample model has experts of 40 and a latent of 128 + 64. Zeros that are
multiplied by zeros change nothing:

- experts, 40 to 128: rows of gate and up, columns of down; silu(0) * 0 = 0.
- kv_lora_rank, 128 to 512: rows of kv_a_proj_with_mqa between latent and rotated key, entries of
  kv_a_layernorm, columns of kv_b_proj. The mean of the norm is over four times as many, so its
  weight is halved, exactly in BF16; its eps counts four times.
- rope_scaling: a YaRN of factor 1, which is no scaling. Without one vLLM 0.32 on a CPU rotates the
  first head alone.

Our kernels for prompts take heads of 128 + 64 and 128 only, those for decoding compute 16 heads at
a time; the sample model has 4 heads of 32 + 64 and 32. With --heads no zeros but copies are added,
divided by powers of two, so that an error in any of them shows:

- qk_nope_head_dim, 32 to 128: keys four times, queries four times a quarter of them.
- v_head_dim, 32 to 128, and heads, 4 to 16: each four times, the columns of o_proj that belong to
  them a sixteenth.
- rope_scaling: a YaRN that interpolates no frequency, whose temperature makes up for the square
  root of 192 in place of 96 in the scale of the softmax.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EXPERT, LATENT = 128, 512
COPIES = 4  # of heads, and within a head of what has no position
FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
IDENTITY_YARN = {
    "type": "yarn", "factor": 1.0, "original_max_position_embeddings": 512, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
# Frequencies turn more often than beta_fast, so all are kept. The scale of the softmax has the
# square of 1 + mscale / 10 x ln(factor), which is to be the square root of 2.
TEMPERATURE = 10 * (2**0.25 - 1) / math.log(2)
WARM_YARN = {
    "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "beta_fast": 2.0**-8,
    "beta_slow": 2.0**-13, "mscale": TEMPERATURE, "mscale_all_dim": TEMPERATURE,
}  # fmt: skip


def main() -> None:
    """Parse the arguments and pad."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="tests/data/sample-v3")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--heads", action="store_true", help="copy heads as our kernels need them")
    arguments = parser.parse_args()
    pad(arguments.source, arguments.out, arguments.heads)


def pad(source: Path, target: Path, copies_heads: bool = False) -> None:
    """Write the sample model of `source` to the new folder `target`, padded as said above.

    Raises ValueError where the latent of `source` is not a quarter of LATENT.
    """
    config = json.loads((source / "config.json").read_text())
    latent = config["kv_lora_rank"]
    if 4 * latent != LATENT:  # a square, so that the factor of the norm's weight is exact
        raise ValueError(f"kv_lora_rank must be {LATENT // 4}, got {latent}")
    tensors = load_file(source / "model.safetensors")
    padded = {name: pad_tensor(name, tensor, latent) for name, tensor in tensors.items()}
    changes: dict[str, Any] = {"moe_intermediate_size": EXPERT, "kv_lora_rank": LATENT}
    changes["rope_scaling"] = IDENTITY_YARN
    if copies_heads:
        heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
        padded = {name: copy(name, tensor, heads, nope) for name, tensor in padded.items()}
        keys = ("num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "v_head_dim")
        changes |= {key: COPIES * config[key] for key in keys} | {"rope_scaling": WARM_YARN}
    target.mkdir(parents=True)
    text = json.dumps(config | changes, indent=2)
    (target / "config.json").write_text(text + "\n")
    save_file(padded, target / "model.safetensors", metadata={"format": "pt"})
    for name in FILES:
        shutil.copy(source / name, target / name)


def pad_tensor(name: str, tensor: Tensor, latent: int) -> Tensor:
    """Return the tensor `name` of the padded model; `latent` is the source's kv_lora_rank."""
    module = name.split(".")[-2]
    if ".mlp.experts." in name or ".mlp.shared_experts." in name:
        return grow(tensor, 1 if module == "down_proj" else 0, EXPERT)
    if module == "kv_a_proj_with_mqa":
        return torch.cat([grow(tensor[:latent], 0, LATENT), tensor[latent:]])
    if module == "kv_a_layernorm":
        return grow(tensor / 2, 0, LATENT)
    if module == "kv_b_proj":
        return grow(tensor, 1, LATENT)
    return tensor


def copy(name: str, tensor: Tensor, heads: int, nope: int) -> Tensor:
    """Return the tensor `name` with its heads copied, and with what they have without position.

    heads, nope: num_attention_heads and qk_nope_head_dim of the source.
    """
    module = name.split(".")[-2]
    if module == "o_proj":  # [D, heads x v]
        each = tensor.unflatten(1, (heads, -1)) / COPIES**2
        return each.repeat(1, COPIES, COPIES).flatten(1)
    if module not in ("q_b_proj", "kv_b_proj"):
        return tensor
    each = tensor.unflatten(0, (heads, -1))
    first, second = each[:, :nope].repeat(1, COPIES, 1), each[:, nope:]
    if module == "q_b_proj":  # [heads x (nope + rope), Q]
        parts = first / COPIES, second
    else:  # [heads x (nope + v), L]
        parts = first, second.repeat(1, COPIES, 1)
    return torch.cat(parts, 1).repeat(COPIES, 1, 1).flatten(0, 1)


def grow(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Return `tensor` with zeros appended along `dim` up to `size`."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


if __name__ == "__main__":
    main()
