"""Decoding attention of DeepSeek-V3 on the cached latents themselves, one new token a row.

For each token drawn, transformers expands every cached latent into keys and values again. Both maps
are linear and can be moved to the other side: q · (W_k c) = (W_k^T q) · c, and
sum p (W_v c) = W_v (sum p c). The results are equal up to rounding.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2 and appendix C.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

# Shapes: B rows, H heads, L cached tokens, C latent, N nope, R rope, V value


def absorb(model: nn.Module) -> None:
    """Make the DeepSeek-V3 attentions of a model, if it has any, decode on latents; in place.

    One whose kv_b_proj is not a plain matrix, such as FP8 blocks, is left unchanged.
    """
    for module in model.modules():
        if isinstance(module, deepseek.DeepseekV3Attention) and type(module.kv_b_proj) is nn.Linear:
            setattr(module, "forward", partial(_forward, module, module.forward))  # noqa: B010


def _forward(
    self: Any,
    expanding: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Replace DeepseekV3Attention.forward; that, `expanding`, still handles longer inputs."""
    if hidden_states.shape[1] != 1 or past_key_values is None or self.training:
        result: tuple[Tensor, Tensor | None] = expanding(
            hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
        )
        return result
    rows, heads, nope = len(hidden_states), self.num_heads, self.qk_nope_head_dim
    if self.q_lora_rank is None:
        query = self.q_proj(hidden_states)
    else:
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
    q_nope_BHN, q_rope_BHR = query.view(rows, heads, -1).split([nope, self.qk_rope_head_dim], -1)
    latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).split(
        [self.kv_lora_rank, self.qk_rope_head_dim], -1
    )
    interleaved = self.config.rope_interleave
    rotate = (
        deepseek.apply_rotary_pos_emb_interleave if interleaved else deepseek.apply_rotary_pos_emb
    )
    q_rope, k_rope = rotate(q_rope_BHR[:, :, None], k_rope[:, None], *position_embeddings)
    latents, k_ropes = past_key_values.update(
        self.kv_a_layernorm(latent)[:, None], k_rope, self.layer_idx
    )
    latents_BLC, k_ropes_BLR = latents[:, 0], k_ropes[:, 0]

    w_HXC = self.kv_b_proj.weight.view(heads, nope + self.v_head_dim, self.kv_lora_rank)
    q_latent_BHC = torch.bmm(q_nope_BHN.transpose(0, 1), w_HXC[:, :nope]).transpose(0, 1)
    scores_BHL = torch.bmm(q_latent_BHC, latents_BLC.transpose(1, 2))
    scores_BHL = torch.baddbmm(scores_BHL, q_rope[:, :, 0], k_ropes_BLR.transpose(1, 2))
    scores_BHL = scores_BHL * self.scaling
    if attention_mask is not None:
        mask_B1L = attention_mask[:, 0]
        if mask_B1L.dtype == torch.bool:
            scores_BHL = scores_BHL.masked_fill(~mask_B1L, float("-inf"))
        else:
            scores_BHL = scores_BHL + mask_B1L
    shares_BHL = torch.softmax(scores_BHL, -1, dtype=torch.float32).to(latents.dtype)
    mixed_BHC = torch.bmm(shares_BHL, latents_BLC)
    values_HBV = torch.bmm(mixed_BHC.transpose(0, 1), w_HXC[:, nope:].transpose(1, 2))
    return self.o_proj(values_HBV.transpose(0, 1).reshape(rows, 1, -1)), None
