"""Angles and rotations by hand; test_decoder.py compares them with transformers to the bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from dstools_converters.errors import DstoolsError
from dstools_converters.model.architecture import Linear, Llama3, Rope, Yarn, read_architecture
from dstools_converters.model.rotary import Rotary, frequencies, rotary, rotate

Checkpoint = Callable[..., Path]
V3_LAYER: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 64,
    "moe_intermediate_size": 32, "num_hidden_layers": 1, "first_k_dense_replace": 0,
    "n_routed_experts": 1, "n_shared_experts": 0, "num_experts_per_tok": 1, "n_group": 1,
    "topk_group": 1, "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 16,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "v_head_dim": 32, "rms_norm_eps": 1e-6,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip


def rope(scaling: Linear | Llama3 | Yarn | None, dim: int = 4, theta: float = 10000.0) -> Rope:
    return Rope(theta, dim, False, scaling)


def test_the_angles_of_a_position_are_powers_of_theta() -> None:
    assert frequencies(rope(None)).tolist() == pytest.approx([1, 0.01])


def test_linear_scaling_divides_every_angle() -> None:
    assert frequencies(rope(Linear(2.5))).tolist() == pytest.approx([0.4, 0.004])


def test_llama3_keeps_fast_angles_divides_slow_ones_and_mixes_between() -> None:
    """Turns within 64 positions: 64 / 2 pi = 10.2, 1.02 and 0.102 for theta 10^6 and dim 12."""
    scaling = Llama3(8.0, 1.0, 4.0, 64.0)
    fast, middle, slow = frequencies(rope(scaling, 6, 1000.0)).tolist()
    kept = (64 / (2 * math.pi) * 0.1 - 1) / 3
    assert fast == 1
    assert middle == pytest.approx(0.1 * (kept + (1 - kept) / 8), rel=1e-5)
    assert slow == pytest.approx(0.01 / 8)


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_a_pair_is_turned_by_the_angle_of_its_position(is_interleaved: bool) -> None:
    """Position 0 stays; position 1 turns the first pair by 90 degrees and leaves the second."""
    angles = Rotary(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    row = [1.0, 3.0, 2.0, 4.0] if is_interleaved else [1.0, 2.0, 3.0, 4.0]  # pairs (1, 3), (2, 4)
    turned = rotate(torch.tensor([row, row]), angles, is_interleaved)
    assert turned.tolist() == [[1, 2, 3, 4], [-3, 2, 1, 4]]


def test_a_rotation_keeps_the_dtype() -> None:
    angles = Rotary(torch.ones(1, 1), torch.zeros(1, 1))
    assert rotate(torch.ones(1, 2, dtype=torch.bfloat16), angles, False).dtype == torch.bfloat16


def test_yarns_attention_factor_multiplies_both_parts() -> None:
    config = V3_LAYER | {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 0.75}}
    config["rope_scaling"]["original_max_position_embeddings"] = 64
    angles = rotary(read_architecture(config), torch.arange(3))
    assert angles.cos[0].tolist() == [0.75] * 32
    assert (angles.cos**2 + angles.sin**2).flatten().tolist() == pytest.approx([0.75**2] * 96)


V3_YARN: dict[str, Any] = {  # of V3's config.json
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


def test_positions_far_apart_and_out_of_order_have_transformers_angles() -> None:
    """A row that begins at 160,000, near the end of V3's positions, and one token of another."""
    config = V3_LAYER | {"rope_theta": 10000, "rope_scaling": V3_YARN}
    positions = torch.tensor([160_000, 160_001, 7])
    angles = rotary(read_architecture(config), positions)
    theirs = DeepseekV3RotaryEmbedding(DeepseekV3Config(**config, max_position_embeddings=163_840))
    cos, sin = theirs(torch.zeros(1), positions[None])
    assert torch.equal(angles.cos, cos[0, :, :32])  # repeated for the other elements of the pairs
    assert torch.equal(angles.sin, sin[0, :, :32])


def test_angles_are_float32_whatever_the_default_dtype_is() -> None:
    architecture = read_architecture(V3_LAYER | {"rope_theta": 10000, "rope_scaling": V3_YARN})
    wanted = rotary(architecture, torch.tensor([500]))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rotary(architecture, torch.tensor([500]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.cos.dtype == found.sin.dtype == torch.float32
    assert torch.equal(found.cos, wanted.cos)
    assert torch.equal(found.sin, wanted.sin)


def test_a_sequence_that_needs_sparse_attention_is_refused(checkpoint: Checkpoint) -> None:
    config = json.loads((checkpoint("tiny-v32") / "config.json").read_text())
    architecture = read_architecture(config)
    assert len(rotary(architecture, torch.arange(16)).cos) == 16
    with pytest.raises(DstoolsError, match="a sequence of 17 tokens") as error:
        rotary(architecture, torch.arange(17))
    assert "at most 16" in error.value.hint


def test_v3_s_yarn_is_the_published_one() -> None:
    """Of 32 frequencies the first 10 are kept and from the 23rd on divided by 40 (V3's config)."""
    config = V3_LAYER | {"rope_theta": 10000, "rope_scaling": V3_YARN}
    scaled, plain = (
        rotary(read_architecture(c), torch.arange(2)).sin[1].asin()
        for c in (config, config | {"rope_scaling": None})
    )
    ratio = plain / scaled
    # 64 ln(4096 / (32 2 pi)) / (2 ln 10000) = 10.5 and, for one turn, 22.5
    assert torch.allclose(ratio[:11], torch.ones(11), rtol=1e-5)
    assert torch.allclose(ratio[23:], torch.full((9,), 40.0), rtol=1e-4)
    assert 1 < ratio[12] < ratio[20] < 40
    mscale = 0.1 * math.log(40) + 1
    assert read_architecture(config).softmax_scale == pytest.approx(mscale**2 / math.sqrt(16 + 64))
