#!/usr/bin/env python3
"""The sample model with zeros added, in sizes that inference engines serve: the same function.

    pad_sample_model.py tests/data/sample-v3 OUT

Engines cut routed experts in blocks of 128, and vLLM's MLA takes kv_lora_rank + qk_rope_head_dim of
320, 512 or 576 only; the sample model has experts of 40 and a latent of 128 + 64. Zeros that are
multiplied by zeros change nothing:

- experts, 40 to 128: rows of gate and up, columns of down; silu(0) * 0 = 0.
- kv_lora_rank, 128 to 512: rows of kv_a_proj_with_mqa between latent and rotated key, entries of
  kv_a_layernorm, columns of kv_b_proj. The mean of the norm is over four times as many, so its
  weight is halved, exactly in BF16; its eps counts four times.
- rope_scaling: a YaRN of factor 1, which is no scaling. Without one vLLM 0.32 on a CPU rotates the
  first head alone.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EXPERT, LATENT = 128, 512
FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
IDENTITY_YARN = {
    "type": "yarn", "factor": 1.0, "original_max_position_embeddings": 512, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


def main() -> None:
    """Parse the arguments and pad."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="tests/data/sample-v3")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    pad(arguments.source, arguments.out)


def pad(source: Path, target: Path) -> None:
    """Write the sample model of `source` to the new folder `target`, padded as said above.

    Raises ValueError where the latent of `source` is not a quarter of LATENT.
    """
    config = json.loads((source / "config.json").read_text())
    latent = config["kv_lora_rank"]
    if 4 * latent != LATENT:  # a square, so that the factor of the norm's weight is exact
        raise ValueError(f"kv_lora_rank must be {LATENT // 4}, got {latent}")
    tensors = load_file(source / "model.safetensors")
    padded = {name: pad_tensor(name, tensor, latent) for name, tensor in tensors.items()}
    changes = {"moe_intermediate_size": EXPERT, "kv_lora_rank": LATENT}
    target.mkdir(parents=True)
    text = json.dumps(config | changes | {"rope_scaling": IDENTITY_YARN}, indent=2)
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


def grow(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Return `tensor` with zeros appended along `dim` up to `size`."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


if __name__ == "__main__":
    main()
