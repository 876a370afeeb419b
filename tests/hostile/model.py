"""A small checkpoint in memory, to be broken and then written; and the list of all cases.

    @case("header", names=ONE)
    def the_header_is_longer_than_the_file(model):
        model.edit(ONE, lambda raw: raw[:8])

Written by hand, as no library writes what must be refused. `Model` is DeepSeek-V3's: a dense layer,
one with experts and one of MTP, in two shards, with a tokenizer of 256 bytes.
"""

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES
from dstools_converters.families.shapes import read_model

CANARY = Path(tempfile.gettempdir()) / f"dstools-canary-{os.getpid()}"  # made by code that runs
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 192, "kv_lora_rank": 64,
    "max_position_embeddings": 512, "moe_intermediate_size": 96, "moe_layer_freq": 1, "n_group": 2,
    "n_routed_experts": 4, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1, "q_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 32,
    "vocab_size": 256,
}  # fmt: skip
FP8 = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128],
}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 0,
    "eos_token_id": 1, "head_dim": 32, "hidden_act": "silu", "hidden_size": 128,
    "intermediate_size": 192, "max_position_embeddings": 512, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 256,
}  # fmt: skip
# a dense weight, a norm, an expert, a router bias, an FP8 weight's scale: as cases name them
DENSE = "model.layers.0.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SCALE = f"{DENSE}_scale_inv"


@dataclass
class Tensor:
    """One tensor; `data` may be changed in place."""

    dtype: str
    shape: list[int]
    data: bytearray
    shard: str

    @property
    def bits(self) -> np.ndarray:
        """The elements of BF16 or F16 as uint16, to be changed in place."""
        return np.frombuffer(self.data, np.uint16)

    @property
    def floats(self) -> np.ndarray:
        """The elements of F32, to be changed in place."""
        return np.frombuffer(self.data, np.float32)


@dataclass
class Model:
    """A checkpoint; `write` writes it."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: dict[str, bytes] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)  # what replaces keys of the right one
    metadata: dict[str, str] = field(default_factory=lambda: {"format": "pt"})
    edits: list[tuple[str, Callable[[bytes], bytes]]] = field(default_factory=list)
    headers: list[tuple[str, Callable[[dict[str, Any]], None]]] = field(default_factory=list)
    afterwards: list[Callable[[Path], object]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def edit(self, file: str, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a file."""
        self.edits.append((file, change))

    def header(self, shard: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the header of a shard, in place; its data stay as they are."""
        self.headers.append((shard, change))

    def json(self, file: str, **changes: Any) -> None:
        """Set keys of a side file."""
        self.files[file] = json.dumps(json.loads(self.files[file]) | changes).encode()

    def after(self, change: Callable[[Path], object]) -> None:
        """Change the folder when it is written."""
        self.afterwards.append(change)

    def put(self, name: str, dtype: str, shape: list[int], data: bytes, shard: str = ONE) -> None:
        """Add a tensor, or replace it."""
        self.tensors[name] = Tensor(dtype, shape, bytearray(data), shard)

    def one_shard(self) -> None:
        """Put all tensors into model.safetensors, without an index."""
        for tensor in self.tensors.values():
            tensor.shard = SINGLE

    def write(self, folder: Path) -> None:
        """Write the folder, which must not exist."""
        folder.mkdir()
        shards = sorted({tensor.shard for tensor in self.tensors.values()})
        files = {shard: self._shard(shard) for shard in shards}
        if shards != [SINGLE] or self.index:
            total = sum(len(tensor.data) for tensor in self.tensors.values())
            where = {name: tensor.shard for name, tensor in self.tensors.items()}
            index = {"metadata": {"total_size": total}, "weight_map": where} | self.index
            files[INDEX] = json.dumps(index).encode()
        files["config.json"] = json.dumps(self.config).encode()
        files |= self.files
        for name, change in self.edits:
            files[name] = change(files[name])
        for name, raw in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(raw)
        for change_folder in self.afterwards:
            change_folder(folder)

    def _shard(self, shard: str) -> bytes:
        header: dict[str, Any] = {"__metadata__": self.metadata}
        body = bytearray()
        for name, tensor in self.tensors.items():
            if tensor.shard == shard:
                span = [len(body), len(body) + len(tensor.data)]
                header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
                body += tensor.data
        for name, change in self.headers:
            if name == shard:
                change(header)
        return with_header(json.dumps(header).encode(), bytes(body))


def with_header(header: bytes, body: bytes) -> bytes:
    """Return a safetensors file."""
    return struct.pack("<Q", len(header)) + header + body


def build(base: Literal["bf16", "fp8", "llama"]) -> Model:
    """Return a sound model, for a case to change."""
    config: dict[str, Any] = dict(LLAMA if base == "llama" else CONFIG)
    sizes = read_model(config)
    model = Model(config | ({"quantization_config": dict(FP8)} if base == "fp8" else {}), {})
    for name, shape in sizes.weights():
        spelled = sizes.spell(name)
        random = np.random.default_rng(zlib.crc32(spelled.encode()))
        shard = ONE if name.layer in (None, 0) else TWO
        if base == "fp8" and name.part == "weight" and name.role in QUANTIZED_ROLES:
            codes = random.integers(0, 0x7F, shape, np.uint8) | random.choice([0, 0x80], shape)
            model.put(spelled, "F8_E4M3", list(shape), codes.astype(np.uint8).tobytes(), shard)
            grid = [-(-size // 128) for size in shape]
            scales = random.uniform(1e-4, 2e-4, grid).astype(np.float32)
            model.put(f"{spelled}_scale_inv", "F32", grid, scales.tobytes(), shard)
            continue
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.02, shape).astype(np.float32)
        if name.role == "e_score_correction_bias":
            model.put(spelled, "F32", list(shape), values.tobytes(), shard)
        else:
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            model.put(spelled, "BF16", list(shape), bits.tobytes(), shard)
    vocabulary = {chr(0x100 + number): number for number in range(256)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "merges": []}}
    tokenizer["model"] |= {"vocab": vocabulary}  # type: ignore[operator]
    model.files["tokenizer.json"] = json.dumps(tokenizer).encode()
    model.files["tokenizer_config.json"] = b'{"tokenizer_class": "PreTrainedTokenizerFast"}'
    model.files["generation_config.json"] = b'{"eos_token_id": 1}'
    return model


# refused    exit 1 (verify: 3, or 1 where there is nothing to check); names the place
# warned     exit 0, and a warning that names the place
# ok         exit 0
Outcome = Literal["refused", "warned", "ok"]


@dataclass(frozen=True)
class Case:
    """One checkpoint and what each command makes of it."""

    group: str
    title: str
    change: Callable[[Model], None]
    base: Literal["bf16", "fp8", "llama"]
    names: str  # the file or tensor that refusals and warnings name
    inspect: Outcome
    verify: Outcome
    convert: Outcome  # quantize; of FP8 dequantize too

    @property
    def is_broken(self) -> bool:
        """Return whether some command refuses it or warns of it."""
        return {self.inspect, self.verify, self.convert} != {"ok"}


CASES: list[Case] = []


def case(
    group: str,
    *,
    names: str = "",
    base: Literal["bf16", "fp8", "llama"] = "bf16",
    inspect: Outcome = "refused",
    verify: Outcome = "refused",
    convert: Outcome = "refused",
) -> Callable[[Callable[[Model], None]], Callable[[Model], None]]:
    """Add the decorated change as a case; without verdicts, all commands refuse it."""

    def add(change: Callable[[Model], None]) -> Callable[[Model], None]:
        title = change.__name__.strip("_").replace("_", " ")
        CASES.append(Case(group, title, change, base, names, inspect, verify, convert))
        return change

    return add


def valid(
    *, base: Literal["bf16", "fp8", "llama"] = "bf16"
) -> Callable[[Callable[[Model], None]], Callable[[Model], None]]:
    """Add the decorated change as a case that all commands take."""
    return case("valid", base=base, inspect="ok", verify="ok", convert="ok")
