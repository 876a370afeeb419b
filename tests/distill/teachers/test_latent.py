"""Attention on cached latents gives the outputs of transformers' own, up to rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from dstools_distill.teachers.latent import absorb

ROWS, TOKENS, HIDDEN = 2, 6, 32


def attention(implementation: str = "sdpa", **changes: Any) -> DeepseekV3Attention:
    """Return the attention of a small DeepSeek-V3 with random weights, in float64."""
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape |= {"q_lora_rank": 12, "kv_lora_rank": 8, "v_head_dim": 5}
    shape |= {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "num_hidden_layers": 1}
    config = DeepseekV3Config(**shape | changes)
    config._attn_implementation = implementation
    layer: DeepseekV3Attention = DeepseekV3Attention(config, 0).double().eval()
    return layer


def mask(kept: Tensor, implementation: str) -> Tensor:
    """Return a mask as each implementation gets it: booleans, or numbers to add to the scores."""
    return kept if implementation == "sdpa" else torch.where(kept, 0.0, -1e9).double()


@torch.no_grad()
def run(layer: DeepseekV3Attention, start: int) -> Tensor:
    """Return the output for the tokens from `start` on; those before it are in the cache."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, TOKENS, HIDDEN, dtype=torch.float64, generator=generator)
    rotary = DeepseekV3RotaryEmbedding(layer.config)
    cos, sin = rotary(hidden, torch.arange(TOKENS).expand(ROWS, -1))
    kept = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().repeat(ROWS, 1, 1, 1)
    kept[1, :, 2:, :2] = False  # the second row has two tokens of padding
    kind = layer.config._attn_implementation
    cache = DynamicCache(config=layer.config)
    for part, past in ((slice(0, start), start), (slice(start, None), TOKENS)):
        if part.stop != 0:
            part_mask = mask(kept[:, :, part, :past], kind)
            rope = (cos[:, part], sin[:, part])
            output, _ = layer(hidden[:, part], rope, part_mask, cache)
    result: Tensor = output
    return result


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"rope_interleave": False}])
def test_a_token_decoded_on_latents_has_the_output_of_expanded_ones(
    changes: dict[str, Any], implementation: str
) -> None:
    layer = attention(implementation, **changes)
    expanded = run(layer, TOKENS - 1)
    absorb(layer)
    absorbed = run(layer, TOKENS - 1)
    # All is float64 but for the softmax. Scores, all below 16, are rounded to float32 for it: they
    # are off by 2**-21, shares by 2**-20 of themselves, and a sum of values weighted with them by
    # 2**-20 of the largest value, which is below 4 times the largest output here.
    bound = 4 * 2**-20 * expanded.abs().max()
    assert (absorbed - expanded).abs().max() < bound
    assert not torch.equal(absorbed, expanded)  # it was computed in another way


def test_several_tokens_at_once_are_still_computed_by_transformers() -> None:
    layer = attention()
    before = run(layer, 0)
    absorb(layer)
    assert torch.equal(run(layer, 0), before)
    assert torch.equal(run(layer, 2), before[:, 2:])


def test_a_model_in_training_is_still_computed_by_transformers() -> None:
    layer = attention().train()
    before = run(layer, TOKENS - 1)
    absorb(layer)
    assert torch.equal(run(layer, TOKENS - 1), before)


class Quantized(nn.Linear):
    """A projection whose weight would not be a plain matrix."""


def test_attention_whose_projection_is_not_a_plain_matrix_is_left_unchanged() -> None:
    layers = nn.ModuleList([attention(), attention(), nn.Linear(2, 2)])
    layers[0].kv_b_proj.__class__ = Quantized
    absorb(layers)
    assert ["forward" in vars(layer) for layer in layers] == [False, True, False]
