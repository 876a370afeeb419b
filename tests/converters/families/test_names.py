"""Names parse to a structure and spell back; a name that is nearly a family's does not parse."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.families.names import (
    FUSED,
    HUGGING_FACE,
    PARTS,
    ROLES,
    Spelling,
    TensorName,
)

TINY = ["tiny", "tiny-v2", "tiny-v2-lite", "tiny-v32", "tiny-llama", "tiny-qwen2", "tiny-qwen3"]
KINDS = {  # the names of a checkpoint, by what they are; counted in the release, and by hand below
    **dict.fromkeys(TINY, None),
    "v3-headers": 91_991,
    # V3's and, in each of 62 layers, wq_b and wk with scales, weights_proj, k_norm weight and bias
    "v32-headers": 91_991 + 62 * 7,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_of_every_family_parses_and_spells_back(
    kind: str, checkpoint: Callable[..., Path]
) -> None:
    found = open_checkpoint(checkpoint(kind))
    layers = found.config["num_hidden_layers"]
    parsed = {name: HUGGING_FACE.parse(name, layers) for name in found.tensors}
    assert [name for name, p in parsed.items() if p is None or HUGGING_FACE.spell(p) != name] == []
    assert len(set(parsed.values())) == len(parsed)
    assert KINDS[kind] in (None, len(parsed))
    mtp = {name for name in parsed if name.startswith(f"model.layers.{layers}.")}
    assert {name for name, p in parsed.items() if p is not None and p.is_mtp} == mtp
    assert bool(mtp) == (found.config.get("num_nextn_predict_layers", 0) == 1)


def test_the_families_together_have_every_role(checkpoint: Callable[..., Path]) -> None:
    roles = set()
    for kind in TINY:
        found = open_checkpoint(checkpoint(kind))
        for name in found.tensors:
            parsed = HUGGING_FACE.parse(name, found.config["num_hidden_layers"])
            assert parsed is not None
            roles.add(parsed.role)
    # scales of a KV cache are in no release; quantize adds them where it is asked to
    assert roles == set(ROLES) - {"kv_cache"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lm_head.weight", TensorName("lm_head", "weight")),
        ("model.norm.weight", TensorName("norm", "weight")),
        ("model.layers.0.mlp.gate.weight", TensorName("router", "weight", 0)),
        ("model.layers.0.mlp.gate_proj.weight", TensorName("dense_gate", "weight", 0)),
        (
            "model.layers.3.mlp.gate.e_score_correction_bias",
            TensorName("e_score_correction_bias", "e_score_correction_bias", 3),
        ),
        (
            "model.layers.60.mlp.experts.255.down_proj.weight_scale_inv",
            TensorName("routed_down", "weight_scale_inv", 60, 255),
        ),
        (
            "model.layers.61.mlp.shared_experts.up_proj.weight",
            TensorName("shared_up", "weight", 61, None, True),
        ),
        ("model.layers.61.eh_proj.weight", TensorName("eh_proj", "weight", 61, None, True)),
        (
            "model.layers.61.embed_tokens.weight",
            TensorName("mtp_embed_tokens", "weight", 61, None, True),
        ),
        (
            "model.layers.5.self_attn.indexer.k_norm.bias",
            TensorName("indexer_k_norm", "bias", 5),
        ),
        ("model.layers.5.self_attn.q_proj.weight_scale", TensorName("q_proj", "weight_scale", 5)),
        ("model.layers.5.self_attn.k_scale", TensorName("kv_cache", "k_scale", 5)),
        ("model.layers.61.self_attn.v_scale", TensorName("kv_cache", "v_scale", 61, None, True)),
        ("model.layers.5.self_attn.kv_scale", TensorName("kv_cache", "kv_scale", 5)),  # AutoFP8
        # ModelOpt; compressed-tensors and Quark; vLLM's own module
        ("model.layers.5.self_attn.k_proj.k_scale", TensorName("kv_cache", "k_proj.k_scale", 5)),
        (
            "model.layers.5.self_attn.v_proj.output_scale",
            TensorName("kv_cache", "v_proj.output_scale", 5),
        ),
        ("model.layers.5.self_attn.attn.q_scale", TensorName("kv_cache", "attn.q_scale", 5)),
        ("model.layers.5.self_attn.prob_scale", TensorName("kv_cache", "prob_scale", 5)),
        ("model.layers.5.self_attn.q_proj.input_scale", TensorName("q_proj", "input_scale", 5)),
        (
            "model.layers.5.mlp.experts.7.up_proj.input_scale",
            TensorName("routed_up", "input_scale", 5, 7),
        ),
        ("lm_head.input_scale", TensorName("lm_head", "input_scale")),
    ],
)  # fmt: skip
def test_a_name_is_what_it_says(name: str, wanted: TensorName) -> None:
    assert HUGGING_FACE.parse(name, 61) == wanted
    assert HUGGING_FACE.spell(wanted) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        ".weight",
        "model.layers.0.mlp.gate_proj",  # no part
        "model.layers.0.mlp.gate_proj.weight.",
        ".model.layers.0.mlp.gate_proj.weight",
        "model.layers.0..mlp.gate_proj.weight",
        "model.layers.0.mlp.gate_proj.weights",
        "model.layers.0.mlp.gate_proj.weight_scale_inv_",
        "model.layers.0.mlp.gate_proj_.weight",
        "model.layers.0.mlp.xgate.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlpXgate_proj.weight",
        "model.layers.07.mlp.gate.weight",
        "model.layers.+7.mlp.gate.weight",
        "model.layers.-1.mlp.gate.weight",
        "model.layers. 7.mlp.gate.weight",
        "model.layers.7_0.mlp.gate.weight",
        "model.layers.\u0667.mlp.gate.weight",  # a digit, of another script
        "model.layers.\u00b2.mlp.gate.weight",
        "model.layers.12345678901.mlp.gate.weight",
        "model.layers..mlp.gate.weight",
        "model.layers.0.mlp.experts.gate_up_proj",  # fused, as transformers holds it in memory
        "model.layers.0.mlp.experts.gate_proj.weight",
        "model.layers.0.mlp.experts.{}.gate_proj.weight",
        "model.layers.0.mlp.experts.01.gate_proj.weight",
        "model.layers.0.mlp.experts.1.1.gate_proj.weight",
        "model.layers.0.mlp.experts.1.gate_proj",
        "model.layers.0.mlp.experts.1.gate.weight",
        "model.layers.{}.mlp.gate.weight",
        "model.eh_proj.weight",
        "eh_proj.weight",
        "model.layers.61.lm_head.weight",
        "model.layers.0.model.norm.weight",
        "model.lm_head.weight",
        "model.model.norm.weight",
        "self_attn.q_proj.weight",
        "layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.e_score_correction_bias",
        "model.norm.e_score_correction_bias",
        "model.norm.k_scale",
        "model.layers.0.self_attn.weight",
        "model.layers.0.self_attn.q_proj.k_scale",
        "model.layers.0.self_attn.k_proj.v_scale",
        "model.layers.0.self_attn.o_proj.output_scale",
        "model.layers.0.self_attn.input_scale",
        "model.layers.0.mlp.k_scale",
        "model.layers.0.mlp.gate_proj.kv_scale",
        # DeepSeek-V4's own spelling
        "layers.0.attn.wq_a.weight",
        "layers.0.attn.wq_a.scale",
        "layers.0.ffn.experts.0.w1.weight",
        "mtp.0.e_proj.weight",
        "embed.weight",
        "head.weight",
        "norm.weight",
        "hc_head_scale",
    ],
)
def test_a_near_miss_does_not_parse(name: str) -> None:
    assert HUGGING_FACE.parse(name, 61) is None


@given(st.from_regex(
    r"(model\.)?(layers\.)?([0-9+ ]{0,3}\.)?(mlp\.(experts\.([0-9]{0,2}\.)?)?|self_attn\.)?"
    r"(gate|gate_proj|q_proj|norm|lm_head|eh_proj)\.(weight|bias|weight_scale_inv|scale)",
    fullmatch=True,
))  # fmt: skip
def test_what_parses_spells_back(name: str) -> None:
    parsed = HUGGING_FACE.parse(name, 3)
    assert parsed is None or HUGGING_FACE.spell(parsed) == name


@pytest.mark.parametrize(
    ("layer", "layers", "is_mtp"), [(0, 1, False), (60, 61, False), (61, 61, True), (62, 61, True)]
)
def test_a_layer_after_the_last_is_mtp(layer: int, layers: int, is_mtp: bool) -> None:
    parsed = HUGGING_FACE.parse(f"model.layers.{layer}.input_layernorm.weight", layers)
    assert parsed is not None
    assert parsed.is_mtp == is_mtp


def test_the_module_is_the_name_without_its_part() -> None:
    for part in PARTS[:4]:
        parsed = HUGGING_FACE.parse(f"model.layers.2.mlp.experts.7.up_proj.{part}", 3)
        assert parsed is not None
        assert HUGGING_FACE.module(parsed) == "model.layers.2.mlp.experts.7.up_proj"


def test_a_path_is_the_module_inside_its_layer() -> None:
    expert = TensorName("routed_up", "weight", 2, 7)
    assert HUGGING_FACE.path(expert) == "mlp.experts.7.up_proj"
    assert HUGGING_FACE.layer(2) == "model.layers.2"
    assert HUGGING_FACE.path(TensorName("norm", "weight")) == "model.norm"
    bias = TensorName("e_score_correction_bias", "e_score_correction_bias", 3)
    assert HUGGING_FACE.path(bias) == HUGGING_FACE.path(TensorName("router", "weight", 3))


def test_another_spelling_gives_the_same_structures() -> None:
    other = Spelling(
        outside={"embed": "embed_tokens"},
        layers="layers.",
        inside={"ffn.gate": "router", "ffn.experts.{}.w2": "routed_down"},
        experts="ffn.experts.",
    )
    for name, wanted in {
        "embed.weight": TensorName("embed_tokens", "weight"),
        "layers.4.ffn.experts.31.w2.weight": TensorName("routed_down", "weight", 4, 31, True),
    }.items():
        assert other.parse(name, 4) == wanted
        assert other.spell(wanted) == name
        assert HUGGING_FACE.parse(name, 4) is None
    # the same tail, read by one spelling, is not remembered for the other
    assert other.parse("layers.0.mlp.gate.weight", 4) is None
    assert HUGGING_FACE.parse("model.layers.0.mlp.gate.weight", 4) is not None
    assert other.parse("layers.0.mlp.gate.weight", 4) is None


def test_each_role_is_fused_with_one_group_at_most() -> None:
    roles = [role for group in FUSED for role in group]
    assert len(set(roles)) == len(roles)
