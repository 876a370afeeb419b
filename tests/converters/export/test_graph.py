import json
from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dstools_converters.export.graph import Form, Product, decoder_of, default_dtype, is_of_experts
from dstools_converters.export.ranks import Ranks
from dstools_converters.families.names import TensorName
from dstools_converters.model.architecture import read_architecture

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"
FORM = Form(torch.bfloat16, 128, 64)


def shapes(form: Form) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    with FakeTensorMode(), default_dtype(form.dtype):
        decoder = decoder_of(read_architecture(json.loads(SAMPLE.read_text())), form)
    return {name: (tuple(p.shape), p.dtype) for name, p in decoder.named_parameters()}


def test_routers_stay_float32_whatever_the_dtype() -> None:
    found = shapes(FORM)
    assert found["model.layers.1.mlp.gate.weight"] == ((16, 256), torch.float32)
    assert found["model.layers.1.mlp.gate.e_score_correction_bias"] == ((16,), torch.float32)
    assert found["model.layers.1.input_layernorm.weight"] == ((256,), torch.bfloat16)


def test_kv_b_proj_is_there_as_its_parts_alone() -> None:
    found = shapes(FORM)
    assert found["model.layers.0.self_attn.w_k"][0] == (4, 32, 128)
    assert found["model.layers.4.self_attn.w_v"][0] == (4, 32, 128)
    assert not [name for name in found if "kv_b_proj" in name]


def test_each_of_two_ranks_has_half_of_the_heads_and_widths() -> None:
    found = shapes(replace(FORM, ranks=Ranks(tp=2)))
    assert found["model.layers.0.self_attn.q_b_proj.weight"][0] == (192, 128)
    assert found["model.layers.0.self_attn.w_k"][0] == (2, 32, 128)
    assert found["model.layers.0.self_attn.o_proj.weight"][0] == (256, 64)
    assert found["model.layers.0.mlp.down_proj.weight"][0] == (256, 192)
    assert found["model.layers.1.mlp.experts.up_proj.weight"][0] == (16, 20, 256)
    assert found["model.layers.1.mlp.shared_experts.up_proj.weight"][0] == (20, 256)


def test_each_of_four_ranks_has_a_quarter_of_the_experts() -> None:
    found = shapes(replace(FORM, ranks=Ranks(ep=4)))
    assert found["model.layers.1.mlp.experts.up_proj.weight"][0] == (4, 40, 256)
    assert found["model.layers.1.mlp.shared_experts.up_proj.weight"][0] == (40, 256)
    assert found["model.layers.0.self_attn.w_k"][0] == (4, 32, 128)


def test_weights_that_stay_codes_are_codes_with_scales() -> None:
    routed = TensorName("routed_gate", "weight", 1, 0)
    codes = frozenset({TensorName("o_proj", "weight", 0), routed})
    found = shapes(replace(FORM, codes=codes))
    prefix = "model.layers.0.self_attn.o_proj"
    assert found[f"{prefix}.weight"] == ((256, 128), torch.float8_e4m3fn)
    assert found[f"{prefix}.weight_scale_inv"] == ((2, 1), torch.float32)
    experts = "model.layers.1.mlp.experts.gate_proj"
    assert found[f"{experts}.weight"] == ((16, 40, 256), torch.float8_e4m3fn)
    assert found[f"{experts}.weight_scale_inv"] == ((16, 1, 2), torch.float32)
    assert found["model.layers.2.mlp.experts.gate_proj.weight"][1] == torch.bfloat16


def test_a_product_by_codes_keeps_the_bias() -> None:
    with FakeTensorMode():
        product = Product(torch.nn.Linear(256, 130))
    assert product.weight_scale_inv is not None
    assert product.weight_scale_inv.shape == (2, 2)
    assert product.bias is not None


def test_names_of_experts_are_known() -> None:
    assert is_of_experts("model.layers.1.mlp.experts.map")
    assert not is_of_experts("model.layers.1.mlp.shared_experts.up_proj.weight")
