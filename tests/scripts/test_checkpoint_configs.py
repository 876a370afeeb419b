"""scripts/checkpoint_configs.py: transformers and dstools read every config."""

import math
from types import ModuleType
from typing import Any

import pytest

from dstools_converters.families.shapes import read_model


@pytest.fixture(scope="module")
def script(load_script: Any) -> Any:
    return load_script("checkpoint_configs")


def weights(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {str(name): shape for name, shape in read_model(config).weights()}


def test_dstools_and_transformers_see_the_same_layers(script: ModuleType) -> None:
    from transformers import AutoConfig

    for kind, config in script.CONFIGS.items():
        theirs = AutoConfig.for_model(**config)
        ours = read_model(config)
        assert ours.num_hidden_layers == theirs.num_hidden_layers, kind
        assert ours.vocab_size == theirs.vocab_size, kind
        assert ours.is_tied == theirs.tie_word_embeddings, kind


def test_v3_layer_is_about_the_size_asked_for(
    script: ModuleType, make_checkpoint: ModuleType
) -> None:
    import torch

    for gb in (0.5, 1, 2, 4, 8):
        entries = make_checkpoint.inventory(script.v3_layer(gb), torch.bfloat16, False)
        # a step is one expert, 88 MB, or two with the MTP layer
        assert abs(sum(entry.nbytes for entry in entries) / 1e9 - gb) < 0.09


def test_of_the_deepseek_kinds_only_tiny_is_ragged(script: ModuleType) -> None:
    """The others have whole blocks of 128 in every expert and latent."""
    for kind, config in script.CONFIGS.items():
        if kind.startswith("tiny") and config["model_type"].startswith("deepseek"):
            sides = [config[key] for key in ("kv_lora_rank", "moe_intermediate_size")]
            assert any(side % 128 for side in sides) == (kind == "tiny"), kind


def test_the_headers_of_v3_are_671_billion_weights(script: ModuleType) -> None:
    config = script.CONFIGS["v3-headers"] | {"num_nextn_predict_layers": 0}
    assert round(sum(map(math.prod, weights(config).values())) / 1e9, 2) == 671.03
