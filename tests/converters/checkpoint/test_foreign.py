"""Quantizations that are not read are refused by name; blocks left of one are found stale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import check, require_sound, take_inventory
from dstools_converters.errors import DstoolsError

Checkpoint = Callable[..., Path]
Shards = dict[str, dict[str, tuple[str, list[int]]]]
Headers = Callable[[Path], tuple[dict[str, Any], Shards]]
Sparse = Callable[[dict[str, Any], Shards], Path]

# hf_quant_config.json of nvidia/Llama-3.1-70B-Instruct-FP8, -8B-Instruct-FP8 and R1-FP4 (modelopt)
FP8 = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
    },
}  # fmt: skip
NVFP4 = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16,
        "exclude_modules": ["lm_head"],
    },
}  # fmt: skip
GPTQ = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "sym": True}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_linear(name: str) -> bool:
    return name.split(".")[-2] in LINEAR


def per_tensor(shards: Shards) -> None:
    """FP8 with one scale a tensor, and one for its inputs: what ModelOpt exports."""
    for tensors in shards.values():
        for name in [name for name in tensors if is_linear(name)]:
            tensors[name] = ("F8_E4M3", tensors[name][1])
            tensors[f"{name}_scale"] = ("F32", [])
            tensors[name.replace("weight", "input_scale")] = ("F32", [])


def nvfp4(shards: Shards) -> None:
    for tensors in shards.values():
        for name in [name for name in tensors if is_linear(name)]:
            rows, cols = tensors[name][1]
            tensors[name] = ("U8", [rows, cols // 2])
            tensors[f"{name}_scale"] = ("F8_E4M3", [rows, cols // 16])
            tensors[f"{name}_scale_2"] = ("F32", [])


def packed(shards: Shards) -> None:
    """GPTQ: no weight is left under its name."""
    for tensors in shards.values():
        for name in [name for name in tensors if is_linear(name)]:
            rows, cols = tensors.pop(name)[1]
            tensors[name.replace("weight", "qweight")] = ("I32", [cols // 8, rows])
            tensors[name.replace("weight", "scales")] = ("F16", [cols // 128, rows])


def bytes_of_4_bits(shards: Shards) -> None:
    for tensors in shards.values():
        for name in [name for name in tensors if is_linear(name)]:
            rows, cols = tensors[name][1]
            tensors[name] = ("U8", [rows * cols // 2, 1])
            tensors[f"{name}.absmax"] = ("U8", [rows * cols // 64])


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
V3 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
MODELOPT = {"producer": {"name": "modelopt"}, "quant_algo": "FP8", "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("change", "file", "content", "block", "message"),
    [
        (per_tensor, "hf_quant_config.json", FP8, None, "hf_quant_config.json: ModelOpt FP8 is"),
        (nvfp4, "hf_quant_config.json", NVFP4, None, "hf_quant_config.json: ModelOpt NVFP4 is"),
        # the block of the FP8 release that it was made from, left in config.json
        (nvfp4, "hf_quant_config.json", NVFP4, V3, "hf_quant_config.json: ModelOpt NVFP4 is not"),
        (per_tensor, "hf_quant_config.json", FP8, MODELOPT, "config.json: ModelOpt FP8 is"),
        (per_tensor, "", None, MODELOPT, "config.json: ModelOpt FP8 is not supported"),
        (per_tensor, "hf_quant_config.json", [], None, "hf_quant_config.json: this quantization"),
        (packed, "quantize_config.json", GPTQ, None, "quantize_config.json: this quantization is"),
        (packed, "quant_config.json", {"w_bit": 4}, None, "quant_config.json: this quantization"),
        (packed, "", None, {"quant_method": "awq"}, "config.json: quant_method 'awq' is not"),
        (bytes_of_4_bits, "", None, BNB, "config.json: quant_method 'bitsandbytes' is not"),
        (per_tensor, "", None, {"quant_method": "fp8"}, "config.json: per-tensor FP8 is not"),
        (per_tensor, "", None, {}, "config.json: quantization_config is empty"),
    ],
)
def test_tensors_of_another_quantization_are_refused_by_its_name(
    change: Callable[[Shards], None], file: str, content: object, block: dict[str, Any] | None,
    message: str, checkpoint: Checkpoint, headers: Headers, sparse: Sparse,
) -> None:  # fmt: skip
    config, shards = headers(checkpoint("tiny-llama"))
    change(shards)
    if block is not None:
        config["quantization_config"] = block
    folder = sparse(config, shards)
    if file:
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(DstoolsError) as error:
        take_inventory(open_checkpoint(folder))
    assert str(error.value).startswith(message)
    assert "dstools quantize" not in error.value.hint
    assert "download" not in error.value.hint


def test_a_damaged_file_of_another_quantization_is_named_all_the_same(
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-llama"))
    per_tensor(shards)
    folder = sparse(config, shards)
    (folder / "hf_quant_config.json").write_bytes(b"\xff{")
    with pytest.raises(DstoolsError, match=r"^hf_quant_config\.json: this quantization is not"):
        take_inventory(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (BNB, "quant_method 'bitsandbytes'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"quant_method": "awq", "version": "gemm"}, "quant_method 'awq'"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quant_method 'fp8'"),
        ({"quant_method": "compressed-tensors"}, "quant_method 'compressed-tensors'"),
        (MODELOPT, "ModelOpt FP8"),
        ({}, ""),
        ("fp8", ""),
    ],
)
def test_a_block_without_quantized_tensors_is_one_error_and_the_tensors_are_read(
    block: object, name: str, checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-llama"))
    opened = open_checkpoint(sparse(config | {"quantization_config": block}, shards))
    inventory = take_inventory(opened)
    assert inventory.scheme is None
    (finding,) = check(inventory)
    assert (finding.level, finding.code, finding.where) == (
        "error", "quantization-empty", "config.json",
    )  # fmt: skip
    assert name in finding.message
    assert "None" not in finding.message
    assert finding.hint.startswith("remove quantization_config")
    with pytest.raises(DstoolsError):
        require_sound(opened)


def test_block_fp8_with_a_file_of_modelopt_beside_is_read(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    folder = sparse(*headers(tiny_fp8))
    content = {"quantization": {"quant_algo": "FP8_BLOCK_SCALES"}}  # as TensorRT-LLM wants it
    (folder / "hf_quant_config.json").write_text(json.dumps(content))
    assert require_sound(open_checkpoint(folder)).scheme is not None


def test_scales_that_a_conversion_to_bf16_left_are_refused(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    del config["quantization_config"]
    for tensors in shards.values():
        for name, (dtype, shape) in tensors.items():
            tensors[name] = ("BF16" if dtype == "F8_E4M3" else dtype, shape)
    found = list(check(take_inventory(open_checkpoint(sparse(config, shards)))))
    assert {f.code for f in found} == {"scale-orphaned"}
    assert all(f.level == "error" for f in found)
