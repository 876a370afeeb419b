"""A quantization_config survives being read and written; foreign ones are refused by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES, QuantScheme, read_scheme
from dstools_converters.errors import DstoolsError

V3: dict[str, Any] = {  # deepseek-ai/DeepSeek-V3, config.json
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128],
}  # fmt: skip
V31 = V3 | {"scale_fmt": "ue8m0"}  # deepseek-ai/DeepSeek-V3.1
FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}


def read(quantization: object) -> QuantScheme | None:
    return read_scheme({"quantization_config": quantization})


def compressed(*weights: object, **changes: Any) -> dict[str, Any]:
    groups = {f"group_{i}": {"targets": ["Linear"], "weights": w} for i, w in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups} | changes


@pytest.mark.parametrize(
    ("quantization", "wanted"),
    [
        (V3, QuantScheme("native", "float32", (128, 128))),
        (V3 | {"scale_fmt": None}, QuantScheme("native", "float32", (128, 128))),
        (V3 | {"scale_fmt": "float"}, QuantScheme("native", "float32", (128, 128))),
        (V31, QuantScheme("native", "ue8m0", (128, 128))),
        (V3 | {"weight_block_size": [32, 64]}, QuantScheme("native", "float32", (32, 64))),
        (
            compressed(FP8_WEIGHTS, ignore=["re:.*mlp.gate$"]),
            QuantScheme("compressed-tensors", "float32", (128, 128)),
        ),
    ],
)
def test_what_a_config_says_is_read(quantization: dict[str, Any], wanted: QuantScheme) -> None:
    assert read(quantization) == wanted


BLOCKS = st.tuples(st.integers(1, 1 << 20), st.integers(32, 1 << 20)) | st.tuples(
    st.integers(32, 1 << 20), st.integers(1, 1 << 20)
)


@given(
    st.builds(QuantScheme, st.just("native"), st.sampled_from(["float32", "ue8m0"]), BLOCKS)
    | st.builds(QuantScheme, st.just("compressed-tensors"), st.just("float32"), BLOCKS)
)
def test_what_is_written_is_read_back(scheme: QuantScheme) -> None:
    assert read(scheme.to_config()) == scheme


@pytest.mark.parametrize("quantization", [V3, V31, V3 | {"weight_block_size": [32, 32]}])
def test_a_release_s_config_is_written_as_it_was(quantization: dict[str, Any]) -> None:
    scheme = read(quantization)
    assert scheme is not None
    assert scheme.to_config() == quantization
    more = quantization | {"kv_cache_scheme": {"num_bits": 8}, "x": 1}
    assert scheme.to_config(base=more) == more
    assert "x" not in quantization  # and the caller's is left alone


def test_a_change_of_scale_format_changes_the_label() -> None:
    assert QuantScheme("native", "float32", (128, 128)).to_config(base=V31) == V3
    assert QuantScheme("native", "ue8m0", (128, 128)).to_config(base=V3) == V31


@pytest.mark.parametrize("key", ["ignored_layers", "modules_to_not_convert"])
@pytest.mark.parametrize("kept", [(), ("lm_head",)])
def test_a_native_config_has_one_list_whatever_the_base_had(
    key: str, kept: tuple[str, ...]
) -> None:
    written = QuantScheme("native", "float32", (128, 128)).to_config(kept, V3 | {key: ["old"]})
    assert written == V3 | ({"modules_to_not_convert": ["lm_head"]} if kept else {})


def test_what_is_ignored_replaces_narrower_targets() -> None:
    base = compressed(FP8_WEIGHTS, ignore=["old"], version="0.9")
    base["config_groups"]["group_0"]["targets"] = ["re:.*mlp.*"]
    scheme = QuantScheme("compressed-tensors", "float32", (128, 128))
    assert scheme.to_config(("lm_head",), base) == compressed(
        FP8_WEIGHTS, ignore=["lm_head"], version="0.9"
    )
    assert base["config_groups"]["group_0"]["targets"] == ["re:.*mlp.*"]


def test_no_quantization_config_is_no_scheme() -> None:
    assert read_scheme({}) is None
    assert read(None) is None


def weights(**changes: Any) -> dict[str, Any]:
    return FP8_WEIGHTS | changes


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        # nvidia/DeepSeek-R1-NVFP4-v2 and nvidia/Qwen3-32B-FP8: with and without quant_method
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4 is not supported"),
        ({"producer": {"name": "modelopt"}, "quant_algo": "FP8"}, "ModelOpt FP8 is not supported"),
        ({"quant_algo": "FP8_PB_WO"}, "ModelOpt FP8_PB_WO is not supported"),
        ({"quant_method": "modelopt_fp4"}, "ModelOpt is not supported"),
        ({"producer": {"name": "modelopt"}, "quant_algo": "\x1b"}, r"ModelOpt \\x1b is not"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq' is not supported"),
        ({"quant_method": "awq"}, "quant_method 'awq' is not supported"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not supported"),
        ({}, "quantization_config is empty"),
        ({"bits": 4}, "quantization_config has no quant_method"),
        ({"quant_method": None}, "quantization_config has no quant_method"),
        ({"quant_method": ["fp8"]}, r"quant_method \['fp8'\] is not supported"),
        ({"quant_method": "\x1b[2J"}, r"quant_method '\\x1b\[2J' is not supported"),
        ("fp8", "quantization_config is not an object"),
        ([V3], "quantization_config is not an object"),
        (V3 | {"scale_fmt": "e5m2"}, "scale_fmt 'e5m2' is not supported"),
        ({"quant_method": "fp8"}, "per-tensor FP8 is not supported"),
        (V3 | {"weight_block_size": None}, "per-tensor FP8 is not supported"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "per-tensor FP8 is not supp"),
        (V3 | {"weight_block_size": 128}, "block size 128 is not two"),
        (V3 | {"weight_block_size": [128]}, r"block size \[128\] is not two"),
        (V3 | {"weight_block_size": [128, 128, 1]}, r"block size \[128, 128, 1\] is not two"),
        (V3 | {"weight_block_size": [0, 128]}, r"block size \[0, 128\] is not two"),
        (V3 | {"weight_block_size": [-128, 128]}, r"block size \[-128, 128\] is not two"),
        (V3 | {"weight_block_size": [True, 128]}, r"block size \[True, 128\] is not two"),
        (V3 | {"weight_block_size": [128.0, 128]}, r"block size \[128.0, 128\] is not two"),
        (V3 | {"weight_block_size": [1 << 21, 128]}, r"block size \[2097152, 128\] is not two"),
        (V3 | {"weight_block_size": [1, 1]}, r"block size \[1, 1\] is of fewer than 32 elements"),
        (V3 | {"weight_block_size": [1, 31]}, r"block size \[1, 31\] is of fewer than 32"),
        (compressed(), "are not block FP8"),
        (compressed(None), "are not block FP8"),
        (compressed(FP8_WEIGHTS, FP8_WEIGHTS), "are not block FP8"),
        (compressed(FP8_WEIGHTS) | {"config_groups": [FP8_WEIGHTS]}, "are not block FP8"),
        (compressed(weights(num_bits=4, strategy="tensor_group")), "are not block FP8"),  # NVFP4
        (compressed(weights(strategy="channel")), "are not block FP8"),
        (compressed(weights(type="int")), "are not block FP8"),
        (compressed(weights(block_structure=None)), "block size None is not two"),
        (compressed(weights(block_structure="128x128")), "block size '128x128' is not two"),
    ],
)
def test_another_quantization_is_refused_by_name(quantization: object, named: str) -> None:
    with pytest.raises(DstoolsError, match=rf"^config\.json: .*{named}"):
        read(quantization)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((128, 256), (1, 2)), ((576, 7168), (5, 56)), ((129, 1), (2, 1)), ((10944, 2048), (86, 16))],
)
def test_a_ragged_block_counts_as_one(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    assert QuantScheme("native", "float32", (128, 128)).grid(shape) == grid


def test_rows_and_columns_have_block_sizes_of_their_own() -> None:
    assert QuantScheme("native", "float32", (32, 64)).grid((128, 128)) == (4, 2)


def test_our_compressed_tensors_are_the_preset_fp8_block() -> None:
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    kept = ("lm_head", "model.layers.0.mlp.gate")
    written = QuantScheme("compressed-tensors", "float32", (128, 128)).to_config(kept)
    parsed = QuantizationConfig.model_validate(written)
    assert parsed.format == "float-quantized"
    assert parsed.quantization_status == "compressed"
    assert parsed.ignore == list(kept)
    preset = preset_name_to_scheme("FP8_BLOCK", ["Linear"])
    (group,) = parsed.config_groups.values()
    ours, theirs = group.model_dump(), preset.model_dump()
    assert ours.pop("format") == "float-quantized"
    del theirs["format"]  # the preset leaves it to be worked out at compression
    assert ours == theirs


def test_what_the_releases_keep_is_no_quantized_role() -> None:
    # DeepSeek-V3, README_WEIGHTS.md; V3.2-Exp, its index
    assert QUANTIZED_ROLES.isdisjoint({
        "embed_tokens", "lm_head", "norm", "router", "e_score_correction_bias", "eh_proj",
        "mtp_embed_tokens", "shared_head", "shared_head_norm", "indexer_weights_proj",
        "indexer_k_norm", "q_norm", "k_norm", "input_layernorm", "post_attention_layernorm",
        "q_a_layernorm", "kv_a_layernorm", "enorm", "hnorm",
    })  # fmt: skip
    assert len(QUANTIZED_ROLES) == 19  # 8 of attention, 2 of the indexer, 3 each of 3 MLPs
