"""The settings of DeepSeek's inference code are those of its releases, and describe the model."""

import math
from typing import Any

import pytest
import torch

from dstools_converters.checkpoint.scheme import read_scheme
from dstools_converters.errors import UnsupportedError
from dstools_converters.export.deepseek_config import inference_config, refused_by_loader
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.rotary import frequencies

# Source: deepseek-ai/DeepSeek-V3 at 9b4e978, inference/configs and ModelArgs of inference/model.py
RELEASED: dict[str, dict[str, Any]] = {
    "v3": {
        "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048,
        "n_layers": 61, "n_dense_layers": 3, "n_heads": 128, "n_routed_experts": 256,
        "n_shared_experts": 1, "n_activated_experts": 8, "n_expert_groups": 8,
        "n_limited_groups": 4, "route_scale": 2.5, "score_func": "sigmoid", "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "dtype": "fp8",
    },
    "v2": {
        "vocab_size": 102400, "dim": 5120, "inter_dim": 12288, "moe_inter_dim": 1536,
        "n_layers": 60, "n_dense_layers": 1, "n_heads": 128, "n_routed_experts": 160,
        "n_shared_experts": 2, "n_activated_experts": 6, "n_expert_groups": 8,
        "n_limited_groups": 3, "route_scale": 16.0, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    },
    "v2-lite": {
        "vocab_size": 102400, "dim": 2048, "inter_dim": 10944, "moe_inter_dim": 1408,
        "n_layers": 27, "n_dense_layers": 1, "n_heads": 16, "n_routed_experts": 64,
        "n_shared_experts": 2, "n_activated_experts": 6, "route_scale": 1.0, "q_lora_rank": 0,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "mscale": 0.707,
    },
}  # fmt: skip
RELEASED["v3.1"] = RELEASED["v3"] | {"scale_fmt": "ue8m0"}
DEFAULTS = {
    "max_seq_len": 16384, "dtype": "bf16", "n_expert_groups": 1, "n_limited_groups": 1,
    "score_func": "softmax", "original_seq_len": 4096, "rope_theta": 10000.0, "rope_factor": 40,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
}  # fmt: skip
NATIVE = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.fixture(scope="session")
def configs(load_script: Any) -> dict[str, dict[str, Any]]:
    """The config.json of each release, by the name in RELEASED."""
    v3, v2 = (getattr(load_script("checkpoint_configs"), name) for name in ("V3", "V2"))
    shape = {
        "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 60, "first_k_dense_replace": 1,
        "n_routed_experts": 160, "num_experts_per_tok": 6, "topk_group": 3,
        "rope_scaling": v3["rope_scaling"],
    }  # fmt: skip
    lite = shape | {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "n_routed_experts": 64, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "routed_scaling_factor": 1.0, "q_lora_rank": None,
        "rope_scaling": v3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
    }  # fmt: skip
    return {
        "v3": v3 | {"quantization_config": NATIVE},
        "v3.1": v3 | {"quantization_config": NATIVE | {"scale_fmt": "ue8m0"}},
        "v2": v2 | shape,
        "v2-lite": v2 | lite,
    }


def derived(config: dict[str, Any]) -> dict[str, Any]:
    return inference_config(read_architecture(config), config, read_scheme(config))


@pytest.mark.parametrize("release", ["v3", "v3.1", "v2", "v2-lite"])
def test_a_release_has_the_settings_that_deepseek_published_for_it(
    release: str, configs: dict[str, dict[str, Any]]
) -> None:
    """Theirs leave out what equals a default; ours may say it."""
    settings = derived(configs[release])
    assert settings.keys() >= RELEASED[release].keys()
    assert settings == {key: (DEFAULTS | RELEASED[release])[key] for key in settings}
    assert refused_by_loader(read_architecture(configs[release])) == ""


YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "mscale": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": None},
        {"rope_scaling": None, "max_position_embeddings": 512, "rope_theta": 50000.0},
        {"rope_scaling": YARN | {"mscale_all_dim": 1.0}},
        {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7, "beta_fast": 20}},
        {"rope_scaling": YARN | {"attention_factor": 1.0}},  # none on the logits, nor on cos
        {"rope_scaling": YARN | {"mscale_all_dim": 1.0}, "max_position_embeddings": 256},
        {
            "rope_scaling": None,
            "rope_parameters": YARN | {"mscale_all_dim": 1.0, "rope_theta": 30000.0},
        },  # of transformers 5
    ],
)
def test_its_angles_and_its_temperature_are_those_of_the_model(
    change: dict[str, Any], configs: dict[str, dict[str, Any]]
) -> None:
    """Rewritten from precompute_freqs_cis and MLA of inference/model.py."""
    architecture = read_architecture(configs["v3"] | change)
    a = DEFAULTS | derived(configs["v3"] | change)
    dim, base, length = a["qk_rope_head_dim"], a["rope_theta"], a["original_seq_len"]
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    scale = (a["qk_nope_head_dim"] + dim) ** -0.5
    if a["max_seq_len"] > length:
        low, high = (
            dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (a["beta_fast"], a["beta_slow"])
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
        ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)
        smooth = 1 - ramp.clamp(0, 1)
        freqs = freqs / a["rope_factor"] * (1 - smooth) + freqs * smooth
        scale *= (0.1 * a["mscale"] * math.log(a["rope_factor"]) + 1.0) ** 2
    # the same formula in another order of operations: a few roundings of float32
    torch.testing.assert_close(freqs, frequencies(architecture.rope), rtol=1e-6, atol=0)
    assert scale == pytest.approx(architecture.softmax_scale, rel=1e-12)
    assert (a["max_seq_len"] > length) == (architecture.rope.scaling is not None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
        ({"rope_interleave": False}, "rope_interleave False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling 'linear'"),
        ({"rope_scaling": YARN | {"mscale_all_dim": 1.0, "truncate": False}}, "truncate False"),
        ({"rope_scaling": YARN | {"mscale_all_dim": 0.5}}, "attention_factor"),
        ({"n_routed_experts": None}, "n_routed_experts None"),
        ({"n_shared_experts": 0}, "n_shared_experts 0"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ({"norm_topk_prob": False}, "norm_topk_prob False"),
        ({"attention_bias": True}, "attention_bias True"),
    ],
)
def test_a_model_that_deepseek_s_code_runs_otherwise_is_refused(
    change: dict[str, Any], named: str, configs: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(UnsupportedError, match=named) as caught:
        derived(configs["v3"] | change)
    assert "logits would differ" in caught.value.hint


def test_a_bias_that_deepseek_s_gate_does_not_load_is_told(
    configs: dict[str, dict[str, Any]],
) -> None:
    small, large = configs["v3"] | {"hidden_size": 256}, configs["v2"] | {"hidden_size": 7168}
    assert "this model, of dim 256, needs one" in refused_by_loader(read_architecture(small))
    assert "must not have one" in refused_by_loader(read_architecture(large))
