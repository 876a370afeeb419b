"""The config.json of every kind of checkpoint that make_checkpoint.py writes."""

from typing import Any, Literal

Config = dict[str, Any]
ScaleFormat = Literal["float32", "ue8m0"]

# fmt: off
YARN = {
    "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
V3 = {  # deepseek-ai/DeepSeek-V3, config.json; auto_map left out, as its code is not shipped here
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": YARN, "rope_theta": 10000,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True,
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}
V32 = V3 | {  # deepseek-ai/DeepSeek-V3.2-Exp
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
    "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
}
V2 = {key: value for key, value in V3.items() if key != "num_nextn_predict_layers"} | {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_shared_experts": 2,
    "norm_topk_prob": False, "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0, "scoring_func": "softmax", "topk_method": "group_limited_greedy",
}
# The tiny kinds have 1024 rows of vocabulary: 129280 would be 132 MB of embedding and head. Their
# tokenizer is DeepSeek's, of the first 1024 tokens.
TINY = {
    "first_k_dense_replace": 1, "hidden_size": 256, "max_position_embeddings": 4096, "n_group": 4,
    "n_routed_experts": 8, "num_attention_heads": 2, "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2, "topk_group": 2, "vocab_size": 1024,
}
RAGGED = TINY | {  # in blocks of 128: 192 = 1.5, 224 = 1.75, 336 = 2.625, 160 = 1.25, 96 = 0.75
    "q_lora_rank": 96, "kv_lora_rank": 192,  # kv_a_proj_with_mqa [224, 256]
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,  # q_b_proj [192, 96]
    "intermediate_size": 336, "moe_intermediate_size": 160,
}
ALIGNED = TINY | {
    "q_lora_rank": 128, "kv_lora_rank": 128,  # kv_a_proj_with_mqa [256, 256]
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 128, "v_head_dim": 128,
    "intermediate_size": 384, "moe_intermediate_size": 128,
}
NO_Q_LORA = {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
DENSE = {
    "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 640,
    "max_position_embeddings": 4096, "num_attention_heads": 4, "num_hidden_layers": 3,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 1024,
}
CONFIGS: dict[str, Config] = {
    "tiny": V3 | RAGGED,
    "tiny-aligned": V3 | ALIGNED,
    "tiny-v2": V2 | ALIGNED,
    "tiny-v2-lite": V2 | ALIGNED | NO_Q_LORA,
    "tiny-v32": V32 | ALIGNED | {"index_head_dim": 256, "index_n_heads": 2, "index_topk": 16},
    "tiny-llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | DENSE,
    "tiny-qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | DENSE
    | {"tie_word_embeddings": True},
    "tiny-qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | DENSE
    | {"head_dim": 128},
    "v3-headers": V3,
    "v3-headers-bf16": V3,
    "v32-headers": V32,
}
RELEASED_FP8: dict[str, ScaleFormat] = {"v3-headers": "float32", "v32-headers": "ue8m0"}
KINDS = [*CONFIGS, "v3-layer", "smollm2"]
# fmt: on


def v3_layer(gb: float) -> Config:
    """Return a config with V3's dimensions and about `gb` GB of BF16.

    From 3 GB on it has a dense, an MoE and the MTP layer, below that one MoE layer alone. A single
    expert (0.5 GB) is for measuring: no router runs on it.
    """
    full = gb >= 3
    vocab = 1024  # 129280 rows would be 3.7 GB of embedding and head
    shape = {"num_hidden_layers": 1 + full, "first_k_dense_replace": int(full)}
    shape |= {"num_nextn_predict_layers": int(full), "vocab_size": vocab}
    mlp, expert = 3 * 18432 * 7168, 3 * 2048 * 7168
    attention = 7168 * (1536 + 576 + 128 * 128) + 128 * (192 * 1536 + 256 * 512)
    fixed = (attention + expert + 2 * vocab * 7168) * (1 + full)
    fixed += (attention + mlp + 2 * 7168 * 7168) * full  # a dense layer, and the MTP's eh_proj
    experts = max(1, round((gb * 5e8 - fixed) / expert / (1 + full)))
    groups = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": min(8, experts)}
    return V3 | shape | groups | {"n_routed_experts": experts}
