"""A config gives exactly the weights of transformers' own classes, and V3's published figures."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError
from dstools_converters.families.shapes import MLA, SUPPORTED, Attention, MoE, read_model

Checkpoint = Callable[..., Path]
KINDS = ["tiny", "tiny-aligned", "tiny-v2", "tiny-v2-lite", "tiny-v32"]
KINDS += ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "v3-headers", "v32-headers"]

V3: dict[str, Any] = {  # deepseek-ai/DeepSeek-V3, config.json
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_s_weights_are_those_on_disk(kind: str, checkpoint: Checkpoint) -> None:
    found = open_checkpoint(checkpoint(kind))
    model = read_model(found.config)
    disk = {n: i.shape for n, i in found.tensors.items() if not n.endswith("_scale_inv")}
    wanted = [(model.spell(name), shape) for name, shape in model.weights()]
    optional = {model.spell(name): shape for name, shape in model.optional_weights()}
    assert len(dict(wanted)) == len(wanted)
    # the MTP layer's embedding and head are there as in the releases; a tied head is not
    extras = {} if kind == "tiny-qwen2" else optional
    assert dict(wanted) | extras == disk
    assert not set(dict(wanted)) & set(optional)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        # transformers' LlamaAttention and LlamaMLP: biases [out] of q 64, k 64, v 64, o 64
        ({"attention_bias": True}, {"self_attn.q_proj": 64, "self_attn.k_proj": 64,
                                    "self_attn.v_proj": 64, "self_attn.o_proj": 64}),
        ({"mlp_bias": True}, {"mlp.gate_proj": 96, "mlp.up_proj": 96, "mlp.down_proj": 64}),
    ],
)  # fmt: skip
def test_biases_are_there_where_the_config_says_so(
    change: dict[str, Any], more: dict[str, int]
) -> None:
    def weights(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        model = read_model(config)
        return {model.spell(name): shape for name, shape in model.weights()}

    plain, biased = weights(LLAMA), weights(LLAMA | change)
    assert biased == plain | {f"model.layers.0.{k}.bias": (v,) for k, v in more.items()}


def test_mla_biases_are_those_of_transformers() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = V3 | {"num_hidden_layers": 1, "attention_bias": True, "n_routed_experts": 8,
                   "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0}  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model = read_model(config)
    ours = {model.spell(name): shape for name, shape in model.weights()}
    assert {n: s for n, s in ours.items() if "self_attn" in n} == {
        n: s for n, s in shapes.items() if "self_attn" in n
    }


def test_v3_has_671_billion_parameters_by_hand() -> None:
    hidden, heads = 7168, 128
    attention = hidden * 1536 + 1536  # q_a and its norm
    attention += 1536 * heads * (128 + 64)  # q_b
    attention += hidden * (512 + 64) + 512  # kv_a and its norm
    attention += 512 * heads * (128 + 128)  # kv_b
    attention += heads * 128 * hidden  # o
    assert attention == 187_105_280 + 2_048
    layer = attention + 2 * hidden
    dense = layer + 3 * 18432 * hidden
    expert = 3 * 2048 * hidden
    moe = layer + 257 * expert + 256 * hidden + 256  # the router and its bias
    main = 3 * dense + 58 * moe + 2 * 129280 * hidden + hidden
    mtp = moe + 2 * hidden * hidden + 3 * hidden  # eh_proj, enorm, hnorm, shared_head.norm
    assert main == 671_026_419_200  # README_WEIGHTS.md: 671B

    counted = {False: 0, True: 0}
    for name, shape in read_model(V3).weights():
        counted[name.is_mtp] += math.prod(shape)
    assert counted == {False: main, True: mtp}
    # README_WEIGHTS.md speaks of 11.5B, without the embedding and head that it shares
    assert round(mtp / 1e9, 2) == 11.61


def test_the_config_s_dimensions_are_read_into_their_places() -> None:
    model = read_model(V3)
    assert model.attention == MLA(128, 1536, 512, 128, 64, 128, False, None)
    assert model.moe == MoE(256, 1, 8, 2048, 3, 1, True)
    assert [model.is_moe(layer) for layer in (0, 2, 3, 60, 61)] == [False, False, True, True, True]
    v32 = V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128}
    attention = read_model(v32).attention
    assert isinstance(attention, MLA)
    assert attention.indexer == (64, 128)
    every_other = read_model(V3 | {"moe_layer_freq": 2})
    assert [every_other.is_moe(layer) for layer in (2, 3, 4, 5)] == [False, False, True, False]
    # defaults: as many key-value heads as heads, and head_dim = 64 / 4
    assert read_model(LLAMA).attention == Attention(4, 4, 16, False, False, False)
    assert read_model(LLAMA | {"head_dim": 32}).attention == Attention(
        4, 4, 32, False, False, False
    )
    qwen2 = {"model_type": "qwen2", "num_key_value_heads": 2}
    assert read_model(LLAMA | qwen2).attention == Attention(4, 2, 16, True, False, False)
    # Qwen3Config has heads of 128 unless told otherwise
    assert read_model(LLAMA | {"model_type": "qwen3"}).attention == Attention(
        4, 4, 128, False, False, True
    )
    assert not read_model(LLAMA | {"num_nextn_predict_layers": 1}).num_mtp_layers


@pytest.mark.parametrize(
    "model_type", ["deepseek_v4", "mistral", "", None, 5, ["deepseek_v3"], "deep\x1b[2Jseek"]
)
def test_another_model_type_is_refused_by_name_with_the_supported_list(model_type: object) -> None:
    with pytest.raises(DstoolsError) as error:
        read_model(V3 | {"model_type": model_type})
    text = str(error.value)
    assert text.startswith("config.json: model_type ")
    shown = "deep\\\\x1b[2Jseek" if model_type == "deep\x1b[2Jseek" else str(model_type)
    assert shown in text or repr(shown) in text
    assert text.isprintable()
    assert error.value.hint == f"supported are {', '.join(SUPPORTED)}"


SIZES = [key for key, value in V3.items() if type(value) is int]
MAY_BE_LEFT_OUT = {
    "num_nextn_predict_layers", "first_k_dense_replace", "moe_layer_freq", "n_shared_experts",
}  # fmt: skip
BAD = [10**12, 1 << 24, -1, True, "7168", 1.0, [1], {"a": 1}, 10**4000]


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", [*SIZES, "index_n_heads", "index_head_dim"])
def test_a_size_that_is_no_size_is_refused_by_its_key(key: str, value: object) -> None:
    config = V3 | {"index_n_heads": 64, "index_head_dim": 128, "model_type": "deepseek_v32"}
    if key == "num_key_value_heads":
        config = LLAMA
    with pytest.raises(DstoolsError, match=rf"^config\.json: {key} is ") as error:
        read_model(config | {key: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("key", sorted(set(SIZES) - {"num_key_value_heads"}))
def test_a_size_that_must_be_there_is_missed(key: str) -> None:
    config = {k: v for k, v in V3.items() if k != key}
    if key in MAY_BE_LEFT_OUT or key in ("q_lora_rank", "n_routed_experts"):
        read_model(config)  # no MTP, no dense or shared layers, a plain query, no experts
    else:
        with pytest.raises(DstoolsError, match=rf"^config\.json: {key} is None"):
            read_model(config)


@pytest.mark.parametrize("key", SIZES)
def test_zero_is_refused_where_it_would_mean_no_model(key: str) -> None:
    config = LLAMA if key == "num_key_value_heads" else V3
    if key in MAY_BE_LEFT_OUT - {"moe_layer_freq"}:
        read_model(config | {key: 0})
    else:
        with pytest.raises(
            DstoolsError, match=f"{key} is 0, not a whole number from 1 to 16777215"
        ):
            read_model(config | {key: 0})
