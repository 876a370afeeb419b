"""Architectures are read from both spellings of config.json; what is not run is refused."""

import subprocess
import sys
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model.architecture import (
    Architecture,
    Linear,
    Llama3,
    Rope,
    Router,
    Yarn,
    read_architecture,
)

V3: dict[str, Any] = {  # deepseek-ai/DeepSeek-V3, config.json
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "hidden_act": "silu",
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "num_attention_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    },
}  # fmt: skip
V2 = V3 | {
    "model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "scoring_func": "softmax",
    "norm_topk_prob": False, "routed_scaling_factor": 16.0, "num_nextn_predict_layers": 0,
}  # fmt: skip
V32 = V3 | {
    "model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {  # Llama-3.1, config.json
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}  # Qwen2.5


def test_v3_is_read_as_published() -> None:
    found = read_architecture(V3)
    # 0.1 ln 40 + 1 = 1.3688879; mscale over mscale_all_dim is 1
    assert found.softmax_scale == pytest.approx(1.3688879**2 / 192**0.5, rel=1e-7)
    yarn = Yarn(40, 4096, 32, 1, is_truncated=True, attention_factor=1.0)
    assert found.rope == Rope(10000, 64, is_interleaved=True, scaling=yarn)
    assert found.router == Router("sigmoid", "noaux_tc", 8, 4, True, 2.5)
    assert found.rms_norm_eps == 1e-6
    assert found.index_topk is None
    assert read_architecture(V32).index_topk == 2048
    assert read_architecture(V2).router == Router(
        "softmax", "group_limited_greedy", 8, 4, False, 16.0
    )


def test_without_groups_there_is_one() -> None:
    lite = V2 | {"topk_method": "greedy", "n_group": None, "topk_group": None}
    assert read_architecture(lite).router == Router("softmax", "greedy", 1, 1, False, 16.0)


@pytest.mark.parametrize("config", [V3, V2, LLAMA | {"rope_scaling": LLAMA3, "rope_theta": 5e5}])
def test_both_spellings_of_rope_are_the_same(config: dict[str, Any]) -> None:
    modern = {key: value for key, value in config.items() if not key.startswith("rope_")}
    inside = {"rope_type" if k == "type" else k: v for k, v in config["rope_scaling"].items()}
    modern["rope_parameters"] = inside | {"rope_theta": config["rope_theta"]}
    assert read_architecture(modern) == read_architecture(config)


@pytest.mark.parametrize(
    ("rope", "wanted"),
    [
        ({}, Rope(10000, 16, False, None)),  # Llama 1 and 2 leave everything out
        ({"rope_theta": 5e5}, Rope(5e5, 16, False, None)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
         Rope(1e6, 16, False, None)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(10000, 16, False, Linear(2))),
        ({"rope_scaling": LLAMA3}, Rope(10000, 16, False, Llama3(8, 1, 4, 8192))),
        # 0.1 ln 4 + 1
        ({"rope_scaling": YARN},
         Rope(10000, 16, False, Yarn(4, 32768, 32, 1, True, pytest.approx(1.1386294361)))),
        ({"rope_scaling": YARN | {"attention_factor": 0.5, "truncate": False, "beta_fast": 16}},
         Rope(10000, 16, False, Yarn(4, 32768, 16, 1, False, 0.5))),
    ],
)  # fmt: skip
def test_rope_is_read(rope: dict[str, Any], wanted: Rope) -> None:
    found = read_architecture(LLAMA | rope)
    assert found.rope == wanted
    assert found.softmax_scale == 16**-0.5  # YaRN's temperature is in cos and sin, not here
    assert found.router is None


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2}},
         "rope_scaling.type 'dynamic' is not implemented"),
        (LLAMA | {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.type 'longrope'"),
        (LLAMA | {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1}}}, "rope_parameters"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "has no rope_scaling.factor"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": True}}, "factor is True"),
        (LLAMA | {"rope_scaling": without(YARN, "original_max_position_embeddings")},
         "has no rope_scaling.original_max_position_embeddings"),
        (LLAMA | {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor 4.0"),
        (LLAMA | {"rope_theta": -1}, "rope_theta is -1"),
        (LLAMA | {"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        (LLAMA | {"head_dim": 15}, "15 rotary dimensions"),
        (LLAMA | {"rope_theta": 1}, "rope_theta 1 do not form pairs"),
        (without(LLAMA, "rms_norm_eps"), "has no rms_norm_eps"),
        (LLAMA | {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        (LLAMA | {"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True"),
        (LLAMA | {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
         "layer_types"),
        (V3 | {"rope_scaling": V3["rope_scaling"] | {"mscale_all_dim": "1"}},
         "mscale_all_dim is '1'"),
        (LLAMA | {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        (V3 | {"scoring_func": "softmax"}, "scoring_func 'softmax' is not implemented"),
        (V3 | {"topk_method": "greedy"}, "topk_method 'greedy' is not implemented"),
        (V2 | {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc' is not implemented"),
        (V2 | {"norm_topk_prob": True}, "norm_topk_prob True is not implemented"),
        (without(V3, "routed_scaling_factor"), "has no routed_scaling_factor"),
        (V3 | {"n_group": None}, "has no n_group"),
        (V3 | {"n_group": 4.5}, "n_group is 4.5, not a whole number"),
        (V3 | {"n_group": 7}, "8 of 256 experts cannot be chosen from 4 of 7 groups"),
        (V3 | {"topk_group": 9}, "from 9 of 8 groups"),
        (V3 | {"n_group": 128, "topk_group": 3}, "8 of 256 experts .* from 3 of 128 groups"),
        (V3 | {"n_group": 256, "topk_group": 8}, "from 8 of 256 groups"),  # a sum of two is ranked
        (without(V32, "index_topk"), "has no index_topk"),
        (V32 | {"mlp_layer_types": ["sparse"] * 61}, "mlp_layer_types"),
        (V32 | {"layer_types": ["full_attention"] * 61}, "layer_types"),
    ],
)  # fmt: skip
def test_what_is_not_run_is_refused_by_its_key(config: dict[str, Any], said: str) -> None:
    with pytest.raises(DstoolsError, match=f"^config.json: .*{said}") as error:
        read_architecture(config)
    assert error.value.hint


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"layer_types": ["full_attention"] * 2},
        LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096},
        LLAMA | {"partial_rotary_factor": 1.0},
        V32 | {"layer_types": ["indexed_attention"] * 61,
               "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 58},
        {k: v for k, v in V3.items() if k not in ("scoring_func", "topk_method")},  # transformers 5
        {k: v for k, v in V2.items() if k not in ("scoring_func", "topk_method", "n_group")},
    ],
)  # fmt: skip
def test_what_changes_no_number_is_accepted(config: dict[str, Any]) -> None:
    assert isinstance(read_architecture(config), Architecture)


def test_reading_needs_no_torch() -> None:
    code = "import sys, dstools_converters.model.architecture; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
