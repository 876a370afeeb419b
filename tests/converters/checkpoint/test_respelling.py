"""Other spellings lead to the family's names, packed tensors to the weights in them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.checkpoint.respelling import Respelled, respell, split
from dstools_converters.families.names import HUGGING_FACE

Checkpoint = Callable[..., Path]
Q = "model.layers.0.self_attn.q_proj.weight"


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, "BF16", shape, "model.safetensors", 0, 0)


def respelled(*names: str) -> Respelled | None:
    parsed = {name: HUGGING_FACE.parse(name, 3) for name in names}
    return respell({name: info(name, 2) for name in names}, parsed, HUGGING_FACE)


@pytest.mark.parametrize(
    ("name", "new", "changes"),
    [
        ("layers.0.self_attn.q_proj.weight", Q, [("", "model.")]),
        ("norm.weight", "model.norm.weight", [("", "model.")]),
        (f"language_model.{Q}", Q, [("language_model.", "")]),
        ("model.language_model.norm.weight", "model.norm.weight",
         [("model.language_model.", "model.")]),
        (f"a.b.c.d.{Q}", Q, [("a.b.c.d.", "")]),
        (f"module._orig_mod.{Q}", Q, [("module.", ""), ("_orig_mod.", "")]),
        ("thinker.model.layers.0.self_attn.q_proj.base_layer.weight", Q,
         [("base_layer.", ""), ("thinker.", "")]),
        ("model.layers.1.mlp.experts.7.w2.weight_scale_inv",
         "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv", [("w2", "down_proj")]),
    ],
)  # fmt: skip
def test_a_few_changes_lead_to_a_known_name(
    name: str, new: str, changes: list[tuple[str, str]]
) -> None:
    found = respelled(name)
    assert found is not None
    assert found.renamed == {name: new}
    assert found.tensors == {new: info(new, 2)}
    assert list(found.changes) == changes


def test_names_too_far_away_are_left_alone() -> None:
    assert respelled("transformer.h.0.attn.c_attn.weight", "vision.weight") is None
    assert respelled(f"a.b.c.d.e.{Q}") is None


def test_a_name_that_is_taken_is_not_given_again() -> None:
    assert respelled(Q, f"draft.{Q}") is None
    # two towers: the larger group gets the names
    tower = [f"vision.encoder.layers.{n}.self_attn.q_proj.weight" for n in range(2)]
    text = [f"text.{Q.replace('0', str(n))}" for n in range(3)]
    found = respelled(*tower, *text)
    assert found is not None
    assert list(found.renamed) == text


def test_a_tensor_without_a_role_shares_the_prefix() -> None:
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    for before, after in {"language_model.": "", "model.language_model.": "model."}.items():
        found = respelled(before + Q.removeprefix(after), before + fused.removeprefix(after))
        assert found is not None
        assert set(found.tensors) == {Q, fused}
    found = respelled(Q.removeprefix("model."), fused.removeprefix("model."), "vision.weight")
    assert found is not None
    assert set(found.tensors) == {Q, fused, "vision.weight"}


@pytest.fixture
def tiny_v2(checkpoint: Checkpoint) -> Inventory:
    return take_inventory(open_checkpoint(checkpoint("tiny-v2")))


def test_rows_that_do_not_add_up_are_not_split(tiny_v2: Inventory) -> None:
    """moe_intermediate_size 128, hidden 256, 8 experts; q_a 128 and kv_a 256 rows."""
    experts, attention = "model.layers.1.mlp.experts.", "model.layers.0.self_attn."

    def parts(name: str, *shape: int) -> list[tuple[str, str]]:
        whole = split({name: info(name, *shape)} | rest, {name: None}, tiny_v2.model)
        return [(p.weight, p.place) for p in whole.examples] if whole else []

    rest = {f"x{n}": info(f"x{n}", 1) for n in range(100)}
    assert parts(f"{experts}gate_up_proj", 8, 256, 256) == [
        (f"{experts}0.gate_proj.weight", "gate_up_proj[0, 0:128]"),
        (f"{experts}0.up_proj.weight", "gate_up_proj[0, 128:256]"),
    ]
    assert parts(f"{experts}gate_up_proj", 8, 255, 256) == []
    assert parts(f"{experts}gate_up_proj", 256, 256) == []
    assert parts(f"{experts}down_proj.weight", 8, 256, 128) == [
        (f"{experts}0.down_proj.weight", "down_proj[0]")
    ]
    assert parts(f"{experts}down_proj", 8, 128, 256) == []
    assert parts(f"{experts}3.gate_up_proj.weight", 256, 256) == []  # its layer's weights are 0's
    assert parts(f"{attention}fused_qkv_a_proj_with_mqa.weight", 384, 256) == [
        (f"{attention}q_a_proj.weight", "fused_qkv_a_proj_with_mqa[0:128]"),
        (f"{attention}kv_a_proj_with_mqa.weight", "fused_qkv_a_proj_with_mqa[128:384]"),
    ]
    assert parts("model.layers.0.mlp.gate_up_proj.bias", 768) == []  # no biases in this model
    assert parts("vision.patch.weight", 8, 256, 256) == []


def test_weights_that_are_there_already_are_not_split_again(tiny_v2: Inventory) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensors = dict(tiny_v2.tensors) | {name: info(name, 8, 256, 256)}
    assert split(tensors, {name: None}, tiny_v2.model) is None


def test_a_config_of_far_more_layers_is_not_asked(tiny_v2: Inventory) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert split({name: info(name, 8, 256, 256)}, {name: None}, tiny_v2.model) is None
