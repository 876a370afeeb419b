"""Tokens at position 160,000, near the end of V3's, with its YaRN: the logits of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from dstools_converters.model.rotary import Rotary
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.session import Session
from dstools_converters.runtime.weights import load
from dstools_kernels.ops.latent_pages import token_slots, write_latents

PAST = 160_000
CONFIG = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_routed_experts": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "v_head_dim": 16, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "max_position_embeddings": 163_840, "initializer_range": 0.1,
    "rope_theta": 10_000.0, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    },
}  # fmt: skip


@pytest.fixture
def model() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    config = DeepseekV3Config(**CONFIG, attn_implementation="eager")
    return DeepseekV3ForCausalLM(config).eval()


def theirs(model: DeepseekV3ForCausalLM, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the logits after the tokens past PAST; those before are cached without attention."""

    def nothing(module: Any, query: Tensor, keys: Tensor, *_: Any, **__: Any) -> Any:
        return query.new_zeros(1, query.shape[2], query.shape[1], module.v_head_dim), None

    trunk, cache = model.model, DynamicCache(config=model.config)
    layer, x = trunk.layers[0], trunk.embed_tokens(ids[None, :PAST])
    angles = trunk.rotary_emb(x, torch.arange(PAST)[None])
    with monkeypatch.context() as patch:
        patch.setattr(modeling_deepseek_v3, "eager_attention_forward", nothing)
        layer.self_attn(layer.input_layernorm(x), angles, None, past_key_values=cache)
    logits: Tensor = model(ids[None, PAST:], past_key_values=cache).logits[0]
    return logits


def ours(folder: Path, ids: Tensor) -> Tensor:
    """Return the same of the serving form, whose pages are in any order."""
    serving = load(folder, torch.float32, torch.device("cpu"))
    pool = Pool(-(-len(ids) // 64))
    session = Session(serving, pool)
    table = torch.randperm(pool.count)[None].int()
    layer, mla, cache = (
        serving.decoder.model.layers[0],
        serving.attentions[0].mla,
        session.caches[0],
    )
    x = layer.input_layernorm(serving.decoder.model.embed_tokens(ids[None, :PAST]))
    latents = torch.cat(mla.latent(x, Rotary(*(part[:PAST] for part in serving.angles))), -1)
    past, every = torch.tensor([PAST]).int(), torch.tensor([0, PAST]).int()
    slots = token_slots(table, past, every, *cache.shape[:2])
    write_latents(latents[0], cache, slots, mla.shape.kv_lora_rank)
    new = len(ids) - PAST
    batch = Batch(ids[PAST:], table, torch.tensor([0, new]).int(), past)
    return session.step(batch, torch.arange(new))[0]


@pytest.mark.parametrize("new", [1, 2, 3])
def test_tokens_at_160_000_have_the_logits_of_transformers(
    new: int, model: DeepseekV3ForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and two new tokens attend to latents, three to keys and values expanded from them."""
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 128, (PAST + new,))
    with torch.inference_mode():
        wanted, found = theirs(model, ids, monkeypatch), ours(tmp_path, ids)
    # one position off moves them by 0.02, cosines in BF16 by 0.001
    assert (found - wanted).abs().max() <= 1e-4
