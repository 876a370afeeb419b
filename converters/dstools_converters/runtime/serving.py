"""The decoder in serving form: new tokens of all rows end to end, caches in pages.

The weights and nearly all of the maths are the modules of model/decoder.py, which is the definition
and runs whole sequences. Three things differ: attention reads what it needs from pages, for MLA on
the latents themselves with kv_b_proj absorbed (q . (W_k c) = (W_k' q) . c and sum p (W_v c) =
W_v sum p c; arXiv 2405.04434, section 2.1.2); a layer's experts are stacked, and run on rows sorted
by expert; and only the tokens that are asked for go through the head.

Shape suffixes as in decoder.py, and: T new tokens, C = L + R elements of a cached latent, P pages
of the pool, S tokens of a page, X tokens of all rows, I width of an expert.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.families import shapes as family
from dstools_converters.model.decoder import MLA, Attention, Decoder, DecoderLayer, MoE, MTPLayer
from dstools_converters.model.rotary import Rotary, rotary
from dstools_converters.runtime.attention import Plan, attention_plan, paged_attention
from dstools_converters.runtime.pages import Batch
from dstools_converters.runtime.products import Stack, swiglu, use_ops
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.latent_pages import token_slots, write_latents
from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.ops.mla_prefill import mla_prefill
from dstools_kernels.ops.permute import permute

MAX_ABSORBED = 2  # new tokens of a row; with more, keys and values are expanded
MOST = 2**27  # elements of keys and values that are expanded at a time; at least those of a head


class Whole(NamedTuple):
    """All tokens of all rows, those that the cache had too, end to end."""

    slots: Tensor  # [X] int64, rows of the flat pool
    cumulative: Tensor  # [B + 1] int32


class Places(NamedTuple):
    """Positions and slots of the new tokens of a batch, the same for all layers."""

    angles: Rotary  # of each
    slots: Tensor  # [T] int64, rows of the flat pool
    table: Tensor  # [B, N] int32
    lengths: Tensor  # [B] int32, with the new tokens
    cumulative: Tensor  # [B + 1] int32
    whole: Whole | None  # None: no row has more than MAX_ABSORBED new tokens
    plan: Plan | None  # None: MLA

    def last(self, rows: Tensor) -> "Places":
        """Return the places of the new tokens at `rows` [R] alone, each the last one of its row."""
        row = torch.searchsorted(self.cumulative[1:], rows.int(), right=True)
        angles = Rotary(self.angles.cos[rows], self.angles.sin[rows])
        cumulative = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
        table, lengths = self.table[row], self.lengths[row]
        return Places(angles, self.slots[rows], table, lengths, cumulative, None, self.plan)


class Experts(nn.Module):
    """The routed and shared experts of a layer, all routed ones in three tensors."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.gate, self.shared_experts = moe.gate, moe.shared_experts
        self.gate_proj, self.up_proj, self.down_proj = (  # [E, I, D] twice, [E, D, I]
            Stack(torch.stack([getattr(e, side).weight for e in moe.experts]))
            for side in ("gate_proj", "up_proj", "down_proj")
        )

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D]."""
        count = len(self.gate_proj.weight)
        experts_TK, weights_TK = self.gate(x_TD)
        identity = torch.arange(count, dtype=torch.int32, device=x_TD.device)  # all are local
        tokens, destination, offsets = permute(experts_TK, identity, count)
        y = swiglu(x_TD, tokens, offsets, self.gate_proj, self.up_proj, self.down_proj)
        shared_TD = None if self.shared_experts is None else self.shared_experts(x_TD)
        return combine(y, destination, weights_TK, shared_TD)


class Latents(nn.Module):
    """MLA on paged latents.

    kv_b_proj is divided into its two parts, of which both forms of attention read whole matrices:
    torch multiplies views of it up to 19 times slower (BF16, 16 heads, 2026-11-29).
    """

    def __init__(self, mla: MLA) -> None:
        super().__init__()
        self.mla, shape = mla, mla.shape
        w_HYL = mla.kv_b_proj.weight.view(shape.num_heads, -1, shape.kv_lora_rank)
        w_HNL, w_HWL = torch.split(w_HYL, [shape.qk_nope_head_dim, shape.v_head_dim], 1)
        self.w_k_HNL = nn.Parameter(w_HNL.contiguous(), requires_grad=False)
        self.w_v_HWL = nn.Parameter(w_HWL.contiguous(), requires_grad=False)
        self.absorbed = nn.Identity()  # a hook here sees absorbed queries
        del mla.kv_b_proj

    def forward(self, x_TD: Tensor, places: Places, cache_PSC: Tensor) -> Tensor:
        """Return [T, D], and write the latents of the new tokens into the cache."""
        self.write(x_TD, places, cache_PSC)
        return self.attend(x_TD, places, cache_PSC)

    def write(self, x_TD: Tensor, places: Places, cache_PSC: Tensor) -> None:
        """Write the latents of the new tokens into the cache."""
        latent = torch.cat(self.mla.latent(x_TD[None], places.angles), -1)
        write_latents(latent[0], cache_PSC, places.slots, self.mla.shape.kv_lora_rank)

    def attend(self, x_TD: Tensor, places: Places, cache_PSC: Tensor) -> Tensor:
        """Return [T, D] of new tokens whose latents are in the cache."""
        q_HTN, q_HTR = (part[0] for part in self.mla.queries(x_TD[None], places.angles))
        if places.whole is None:
            mixed_HTW = self._absorbed(q_HTN, q_HTR, places, cache_PSC)
        else:
            mixed_HTW = self._expanded(q_HTN, q_HTR, places, places.whole, cache_PSC)
        out_TD: Tensor = self.mla.o_proj(mixed_HTW.transpose(0, 1).flatten(1))
        return out_TD

    def _absorbed(self, q_HTN: Tensor, q_HTR: Tensor, places: Places, cache_PSC: Tensor) -> Tensor:
        """Return the attention [H, T, W] of rows with one or two new tokens, on the latents."""
        q_HTC = torch.cat((gemm(q_HTN, self.w_k_HNL.mT), q_HTR), -1)
        q_THC = self.absorbed(q_HTC.transpose(0, 1))
        table, lengths, cumulative = places.table, places.lengths, places.cumulative
        scale, rank = self.mla.scale, self.mla.shape.kv_lora_rank
        o_THL = mla_decode(q_THC, cache_PSC, table, lengths, cumulative, scale, rank)
        return gemm(o_THL.transpose(0, 1), self.w_v_HWL)

    def _expanded(
        self, q_HTN: Tensor, q_HTR: Tensor, places: Places, whole: Whole, cache_PSC: Tensor
    ) -> Tensor:
        """Return the attention [H, T, W] of rows with more, on keys and values of all tokens.

        Heads are taken so many at a time that their keys and values are at most MOST elements.
        """
        shape = self.mla.shape
        latents_XC = cache_PSC.flatten(0, 1).index_select(0, whole.slots)
        latent_XL, k_XR = torch.split(latents_XC, [shape.kv_lora_rank, shape.qk_rope_head_dim], -1)
        q_HTQ, ends = torch.cat((q_HTN, q_HTR), -1), (places.cumulative, whole.cumulative)
        count, mixed_HTW = heads_at_a_time(shape, len(latent_XL)), []
        parts = (torch.split(part, count) for part in (q_HTQ, self.w_k_HNL, self.w_v_HWL))
        for q, w_k, w_v in zip(*parts, strict=True):
            k_XHN = gemm(latent_XL, w_k.flatten(0, 1)).view(-1, *w_k.shape[:2])
            v_XHW = gemm(latent_XL, w_v.flatten(0, 1)).view(-1, *w_v.shape[:2])
            mixed = mla_prefill(q.transpose(0, 1), k_XHN, k_XR, v_XHW, *ends, self.mla.scale)
            mixed_HTW.append(mixed.transpose(0, 1))
        return torch.cat(mixed_HTW)


class KeysAndValues(nn.Module):
    """Grouped multi-head attention on paged keys and values."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x_TD: Tensor, places: Places, cache: Tensor) -> Tensor:
        """Return [T, D], and write the new keys and values into `cache` [P, S, 2, G, W]."""
        q_HTR, k_GTR, v_GTW = (p[0] for p in self.attention.project(x_TD[None], places.angles))
        cache.flatten(0, 1)[places.slots] = torch.stack((k_GTR, v_GTW)).permute(2, 0, 1, 3)
        assert places.plan is not None
        q_THR = q_HTR.transpose(0, 1)
        mixed_THW = paged_attention(q_THR, cache, places.plan, self.attention.scale)
        out_TD: Tensor = self.attention.o_proj(mixed_THW.flatten(1))
        return out_TD


class Serving(nn.Module):
    """A decoder that generates: `forward` is a step of the model, `draft` one of its MTP layer.

    `positions` is how many the model has. The weights of `decoder` are not copied, but for experts
    and kv_b_proj, which it loses: it cannot run whole sequences any more.
    """

    def __init__(self, decoder: Decoder, positions: int) -> None:
        super().__init__()
        trunk = decoder.model
        self.decoder, self.positions = decoder, positions
        architecture = trunk.architecture
        self.model = architecture.model
        device = trunk.embed_tokens.weight.device
        self.angles = rotary(architecture, torch.arange(positions, device=device))
        prepare(decoder)
        layers = [layer for layer in trunk.layers if isinstance(layer, DecoderLayer)]
        self.attentions = nn.ModuleList(_paged(layer.self_attn) for layer in layers)
        self.entries = [entry_shape(self.model.attention) for _ in layers]

    def new_caches(self, pages: int, size: int) -> list[Tensor]:
        """Return a cache [P, S, ...] for each layer, MTP included, whose content is arbitrary."""
        weight = self.decoder.model.embed_tokens.weight
        return [weight.new_empty(pages, size, *entry) for entry in self.entries]

    @torch.inference_mode()
    def forward(self, batch: Batch, rows: Tensor, caches: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] after the new tokens at `rows`, and the normed states [T, D]."""
        trunk, places = self.decoder.model, self._places(batch, caches[0])
        x_TD = trunk.embed_tokens(batch.input_ids)
        for layer in range(self.model.num_hidden_layers):
            x_TD = self._layer(layer, x_TD, places, caches[layer])
        hidden_TD = trunk.norm(x_TD)
        return self.decoder.logits(hidden_TD[rows]), hidden_TD

    @torch.inference_mode()
    def draft(
        self, batch: Batch, hidden_TD: Tensor, rows: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] of the token after next at `rows`, and the states [R, D] there.

        `rows` are the last new tokens of some rows: of the others, only latents are needed.
        `hidden_TD` are the states before the new tokens: those that `forward` returned or, for a
        further draft, those returned here, before the layer's last norm, as vLLM has it.
        """
        number = self.model.num_hidden_layers
        layer = self.decoder.model.layers[number]
        attention = self.attentions[number]
        assert isinstance(layer, MTPLayer)
        assert isinstance(attention, Latents)
        places = self._places(batch, caches[number])
        x_TD = layer.project(self.decoder.model.embed_tokens(batch.input_ids), hidden_TD)
        normed_TD = layer.input_layernorm(x_TD)
        attention.write(normed_TD, places, caches[number])
        x_RD = x_TD[rows]
        if len(rows):
            x_RD = x_RD + attention.attend(normed_TD[rows], places.last(rows), caches[number])
            x_RD = x_RD + layer.mlp(layer.post_attention_layernorm(x_RD))
        return self.decoder.logits(layer.shared_head["norm"](x_RD)), x_RD

    def _layer(self, number: int, x_TD: Tensor, places: Places, cache: Tensor) -> Tensor:
        layer = self.decoder.model.layers[number]
        assert isinstance(layer, DecoderLayer)
        x_TD = x_TD + self.attentions[number](layer.input_layernorm(x_TD), places, cache)
        fed_TD: Tensor = layer.mlp(layer.post_attention_layernorm(x_TD))
        return x_TD + fed_TD

    def _places(self, batch: Batch, cache: Tensor) -> Places:
        """Return the places of new tokens; raise ValueError where one has no page of the pool."""
        _, table, cumulative, past = batch
        counts = cumulative.diff()
        lengths = past + counts
        row = torch.repeat_interleave(counts.long())
        token = torch.arange(len(row), device=row.device)
        positions = token + (past - cumulative[:-1]).long()[row]
        slots = token_slots(table, lengths, cumulative, *cache.shape[:2])
        angles = Rotary(self.angles.cos[positions], self.angles.sin[positions])
        whole = None
        if int(counts.max()) > MAX_ABSORBED and isinstance(self.model.attention, family.MLA):
            ends = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            whole = Whole(token_slots(table, lengths, ends, *cache.shape[:2]), ends)
        if bool(((slots if whole is None else whole.slots) < 0).any()):
            raise ValueError("block_table must name a page of the pool for every token of a row")
        plan = None
        if isinstance(self.model.attention, family.Attention):
            heads = self.model.attention.num_heads
            plan = attention_plan(table, lengths, cumulative, cache.shape, heads)
        return Places(angles, slots, table, lengths, cumulative, whole, plan)


def _paged(attention: MLA | Attention) -> Latents | KeysAndValues:
    """Return the form of a layer's attention that reads pages."""
    return Latents(attention) if isinstance(attention, MLA) else KeysAndValues(attention)


def entry_shape(attention: family.MLA | family.Attention) -> tuple[int, ...]:
    """Return the shape of what a layer's cache holds of a token."""
    if isinstance(attention, family.MLA):
        return (attention.latent_width,)
    return 2, attention.num_kv_heads, attention.head_dim


def heads_at_a_time(shape: family.MLA, tokens: int) -> int:
    """Return of how many heads the keys and values of `tokens` are expanded at a time."""
    most = MOST // (max(tokens, 1) * (shape.qk_nope_head_dim + shape.v_head_dim))
    return min(max(most, 1), shape.num_heads)


def step_elements(attention: family.MLA | family.Attention, tokens: int) -> int:
    """Return how many elements of keys and values a step holds of a layer of a row of `tokens`."""
    if isinstance(attention, family.MLA):
        of_head = attention.qk_nope_head_dim + attention.v_head_dim
        return heads_at_a_time(attention, tokens) * of_head * tokens
    return math.prod(entry_shape(attention)) * tokens


def prepare(decoder: Decoder) -> None:
    """Stack the experts of all layers and let ops multiply all weights, where that is not done."""
    for layer in decoder.model.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp = Experts(layer.mlp)
    use_ops(decoder)
