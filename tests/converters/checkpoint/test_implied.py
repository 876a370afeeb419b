"""Tensors imply the keys of their own config, whatever another config says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.implied import Evidence, implied
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.families.shapes import read_model

Checkpoint = Callable[..., Path]
KINDS = ["tiny", "tiny-v2", "tiny-v2-lite", "tiny-v32", "tiny-llama", "tiny-qwen2", "tiny-qwen3"]
KEYS: dict[str, list[Any]] = {  # key of the config -> other values that it can have
    "vocab_size": [7],
    "hidden_size": [512],
    "intermediate_size": [7],
    "num_hidden_layers": [1, 2, 4, 61],
    "num_nextn_predict_layers": [2, 0],
    "n_routed_experts": [4, 256],
    "n_shared_experts": [3],
    "moe_intermediate_size": [7],
    "first_k_dense_replace": [0, 2, 3],
    "kv_lora_rank": [512],
    "q_lora_rank": [64],
    "v_head_dim": [32],
    "qk_nope_head_dim": [16],
    "qk_rope_head_dim": [16],
    "index_n_heads": [64],
    "index_head_dim": [64],
    "num_key_value_heads": [1],
    "attention_bias": [True],
    "mlp_bias": [True],
}


def told(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config, and what the tensors say otherwise than it with these changes."""
    config = json.loads((folder / "config.json").read_text())
    inventory = take_inventory(open_checkpoint(folder))
    model = read_model(config | changes)
    return config, implied(model, Evidence(inventory.tensors, inventory.names))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_do_not_contradict_their_own_config(kind: str, checkpoint: Checkpoint) -> None:
    assert told(checkpoint(kind))[1] == {}
    assert told(checkpoint(kind, fp8="float32"))[1] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_with_another_value_gets_its_own_back(kind: str, checkpoint: Checkpoint) -> None:
    tried = 0
    config = json.loads((checkpoint(kind) / "config.json").read_text())
    unused = {"num_key_value_heads"} if "kv_lora_rank" in config else set()  # MLA has no such heads
    for key, values in KEYS.items():
        for value in values:
            if config.get(key) not in (None, value) and key not in unused:
                found = told(checkpoint(kind), **{key: value})[1]
                assert found[key] == config[key], (key, value, found)
                tried += 1
    assert tried > 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_that_of_the_tensors(kind: str, checkpoint: Checkpoint) -> None:
    config = json.loads((checkpoint(kind) / "config.json").read_text())
    own = config["model_type"]
    others = ("deepseek_v2", "deepseek_v3") if "kv_lora_rank" in config else ("llama", "qwen3")
    for other in set(others) - {own}:
        if (own, other) == ("deepseek_v2", "deepseek_v3"):
            continue  # it may be V3's, without the bias of its routers
        assert told(checkpoint(kind), model_type=other)[1]["model_type"] == own


@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-v32"])
@pytest.mark.parametrize("heads", [1, 3, 16])
def test_a_number_of_heads_is_not_taken_for_their_sizes(
    heads: int, kind: str, checkpoint: Checkpoint
) -> None:
    config, found = told(checkpoint(kind), num_attention_heads=heads)
    assert found == {"num_attention_heads": config["num_attention_heads"]}


def test_every_second_layer_of_experts_is_seen(checkpoint: Checkpoint) -> None:
    """Layers 1 and 3 of 4 dense and expert layers: the first is 1, the step 2."""
    folder = checkpoint("tiny-v2-lite")
    inventory = take_inventory(open_checkpoint(folder))
    evidence = Evidence(inventory.tensors, inventory.names)
    evidence.decoders, evidence.sparse = [0, 1, 2, 3], {1, 3}
    found = implied(inventory.model, evidence)
    assert (found["moe_layer_freq"], found["num_hidden_layers"]) == (2, 4)


def test_layers_with_a_gap_imply_no_number(tiny: Path) -> None:
    inventory = take_inventory(open_checkpoint(tiny))
    names = {n: p for n, p in inventory.names.items() if p is None or p.layer != 1}
    assert "num_hidden_layers" not in implied(inventory.model, Evidence(inventory.tensors, names))


def test_experts_with_a_gap_imply_no_number(tiny: Path) -> None:
    inventory = take_inventory(open_checkpoint(tiny))
    names = {n: p for n, p in inventory.names.items() if p is None or p.expert != 5}
    model = read_model(inventory.checkpoint.config | {"n_routed_experts": 7})
    assert "n_routed_experts" not in implied(model, Evidence(inventory.tensors, names))
