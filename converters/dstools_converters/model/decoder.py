"""The decoder of DeepSeek V2, V3 and V3.2, Llama, Qwen2 and Qwen3 in plain torch, layer by layer.

    with torch.device("meta"):
        layer = DecoderLayer(architecture, 3)          # no memory, no initialisation
    layer.load_state_dict(tensors, assign=True)        # under Hugging Face's names
    hidden_BSD = layer(hidden_BSD, rotary(architecture, torch.arange(S)))

Parameters have Hugging Face's names: `HUGGING_FACE.path` gives that of a weight inside its layer.
Every linear map is an nn.Linear or, for the router, a module of its own, so a forward pre-hook sees
the input of every weight (except a tied head, and V3.2's indexer, which does not run: see Indexer).
In float32 the results equal those of transformers' eager classes except for the order of sums in
`attention`; tests/converters/model/test_decoder.py bounds the difference.

Shape suffixes: B sequences, S tokens of one, T = B S tokens, V vocabulary, D hidden size, H heads,
G key/value heads, N elements of a head without position, R rotary elements, Q = N + R, W elements
of a value head, L latent, E experts, K experts of a token, X several of these in a row.
Source: arXiv 2405.04434 (MLA), 2412.19437 (router, MTP); the modules of transformers 5.23.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.families import shapes as family
from dstools_converters.model.architecture import Architecture
from dstools_converters.model.rotary import Rotary, rotary, rotate
from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.router import Rule
from dstools_kernels.ops.router import router as route

LATENT_EPS = 1e-6  # of q_a_layernorm and kv_a_layernorm for any rms_norm_eps, as in DeepSeek's


class Decoder(nn.Module):
    """A whole model in memory; MTP layers follow the others."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape = architecture.model
        self.model = Trunk(architecture)
        self.lm_head = (
            None if shape.is_tied else nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        )

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return the logits [B, S, V] of the token after each."""
        return self.logits(self.model(ids_BS))

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """Return the head's logits for normed hidden states: the trunk's, or an MTP layer's."""
        if self.lm_head is None:
            return F.linear(hidden_BSD, self.model.embed_tokens.weight)
        logits_BSV: Tensor = self.lm_head(hidden_BSD)
        return logits_BSV


class Trunk(nn.Module):
    """The decoder without its head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape = architecture.model
        self.architecture = architecture
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(
            [DecoderLayer(architecture, layer) for layer in range(shape.num_hidden_layers)]
            + [
                MTPLayer(architecture, shape.num_hidden_layers + i)
                for i in range(shape.num_mtp_layers)
            ]
        )
        self.norm = RMSNorm(shape.hidden_size, architecture.rms_norm_eps)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return the hidden states [B, S, D] after the final norm; MTP layers do not run."""
        hidden_BSD = self.embed_tokens(ids_BS)
        angles = rotary(self.architecture, torch.arange(ids_BS.shape[1], device=ids_BS.device))
        for layer in self.layers[: self.architecture.model.num_hidden_layers]:
            hidden_BSD = layer(hidden_BSD, angles)
        normed_BSD: Tensor = self.norm(hidden_BSD)
        return normed_BSD


class DecoderLayer(nn.Module):
    """Attention, then experts or one MLP, each on normed input and added to the residual."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        shape = architecture.model
        hidden, eps = shape.hidden_size, architecture.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn: MLA | Attention
        if isinstance(shape.attention, family.MLA):
            self.self_attn = MLA(architecture, shape.attention)
        else:
            self.self_attn = Attention(architecture, shape.attention)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp: MoE | MLP
        if shape.moe is not None and shape.is_moe(layer):
            self.mlp = MoE(architecture, shape.moe)
        else:
            self.mlp = MLP(hidden, shape.intermediate_size, shape.mlp_bias)

    def attend(self, hidden_BSD: Tensor, angles: Rotary) -> Tensor:
        """Return the hidden states after the attention half of the layer."""
        attended_BSD: Tensor = self.self_attn(self.input_layernorm(hidden_BSD), angles)
        return hidden_BSD + attended_BSD

    def forward(self, hidden_BSD: Tensor, angles: Rotary) -> Tensor:
        """Return the hidden states [B, S, D] after this layer."""
        hidden_BSD = self.attend(hidden_BSD, angles)
        fed_BSD: Tensor = self.mlp(self.post_attention_layernorm(hidden_BSD))
        return hidden_BSD + fed_BSD


class MTPLayer(DecoderLayer):
    """A multi-token prediction module: predicts token i + 2 from hidden state i and token i + 1.

    A checkpoint's copies of embedding and head (embed_tokens, shared_head.head) equal the main
    model's, and are not parameters here.
    """

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__(architecture, layer)
        hidden, eps = architecture.model.hidden_size, architecture.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps)
        self.hnorm = RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden, eps)})

    def project(self, embedded_BSD: Tensor, hidden_BSD: Tensor) -> Tensor:
        """Return the input of the decoder block."""
        both = torch.cat((self.enorm(embedded_BSD), self.hnorm(hidden_BSD)), dim=-1)
        projected_BSD: Tensor = self.eh_proj(both)
        return projected_BSD

    def forward(self, embedded_BSD: Tensor, hidden_BSD: Tensor, angles: Rotary) -> Tensor:  # type: ignore[override]  # two inputs
        """Return normed hidden states [B, S, D], for the head and for a next MTP layer.

        `hidden_BSD` are the trunk's (after its final norm) or an MTP layer's at positions i, and
        `embedded_BSD` the embeddings of the tokens at i + 1, as in transformers' MtpModel.
        """
        hidden_BSD = super().forward(self.project(embedded_BSD, hidden_BSD), angles)
        normed_BSD: Tensor = self.shared_head["norm"](hidden_BSD)
        return normed_BSD


class Attention(nn.Module):
    """Grouped multi-head attention: Llama, Qwen2 (biases), Qwen3 (normed queries and keys)."""

    def __init__(self, architecture: Architecture, shape: family.Attention) -> None:
        super().__init__()
        hidden, self.head_dim = architecture.model.hidden_size, shape.head_dim
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.scale, self.cache = architecture.softmax_scale, Cache()
        self.q_proj = nn.Linear(hidden, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(hidden, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(hidden, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=shape.o_bias)
        self.q_norm = self.k_norm = None
        if shape.has_qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, architecture.rms_norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, architecture.rms_norm_eps)

    def project(self, x_BSD: Tensor, angles: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries [B, H, S, R] and keys [B, G, S, R], and values [B, G, S, W]."""
        heads = (*x_BSD.shape[:-1], -1, self.head_dim)
        q_BSHR, k_BSGR = self.q_proj(x_BSD).view(heads), self.k_proj(x_BSD).view(heads)
        v_BGSW = self.v_proj(x_BSD).view(heads).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BSHR, k_BSGR = self.q_norm(q_BSHR), self.k_norm(k_BSGR)
        q_BHSR = rotate(q_BSHR.transpose(1, 2), angles, is_interleaved=False)
        return q_BHSR, rotate(k_BSGR.transpose(1, 2), angles, is_interleaved=False), v_BGSW

    def forward(self, x_BSD: Tensor, angles: Rotary) -> Tensor:
        """Return [B, S, D]: attention of each token to itself and those before it."""
        q_BHSR, k_BGSR, v_BGSW = self.project(x_BSD, angles)
        k_BGSR, v_BGSW = self.cache(k_BGSR, v_BGSW)
        mixed_BHSW = attention(q_BHSR, k_BGSR, v_BGSW, self.scale)
        out_BSD: Tensor = self.o_proj(mixed_BHSW.transpose(1, 2).flatten(2))
        return out_BSD


class MLA(nn.Module):
    """Multi-head latent attention, keys and values expanded from the latent."""

    def __init__(self, architecture: Architecture, shape: family.MLA) -> None:
        super().__init__()
        hidden, self.shape = architecture.model.hidden_size, shape
        self.scale, self.cache = architecture.softmax_scale, Cache()
        self.is_interleaved = architecture.rope.is_interleaved
        queries = shape.num_heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)
        self.q_lora_rank = shape.q_lora_rank
        if shape.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, shape.q_lora_rank, bias=shape.bias)
            self.q_a_layernorm = RMSNorm(shape.q_lora_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(shape.q_lora_rank, queries, bias=False)
        latent = shape.latent_width
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent, bias=shape.bias)
        self.kv_a_layernorm = RMSNorm(shape.kv_lora_rank, LATENT_EPS)
        expanded = shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
        self.kv_b_proj = nn.Linear(shape.kv_lora_rank, expanded, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.v_head_dim, hidden, bias=shape.bias)
        if shape.indexer is not None:
            self.indexer = Indexer(hidden, shape.q_lora_rank or hidden, *shape.indexer)

    def queries(self, x_BSD: Tensor, angles: Rotary) -> tuple[Tensor, Tensor]:
        """Return the queries without position [B, H, S, N] and the rotated ones [B, H, S, R]."""
        if self.q_lora_rank is None:
            q_BSX = self.q_proj(x_BSD)
        else:
            q_BSX = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        sizes = [self.shape.qk_nope_head_dim, self.shape.qk_rope_head_dim]
        q_BHSQ = q_BSX.unflatten(-1, (-1, sum(sizes))).transpose(1, 2)
        q_BHSN, q_BHSR = q_BHSQ.split(sizes, dim=-1)
        return q_BHSN, rotate(q_BHSR, angles, self.is_interleaved)

    def latent(self, x_BSD: Tensor, angles: Rotary) -> tuple[Tensor, Tensor]:
        """Return the normed latents [B, S, L] and the rotated keys [B, S, R] of all heads."""
        sizes = [self.shape.kv_lora_rank, self.shape.qk_rope_head_dim]
        latent_BSL, k_BSR = self.kv_a_proj_with_mqa(x_BSD).split(sizes, dim=-1)
        return self.kv_a_layernorm(latent_BSL), rotate(k_BSR, angles, self.is_interleaved)

    def forward(self, x_BSD: Tensor, angles: Rotary) -> Tensor:
        """Return [B, S, D]: attention of each token to itself and those before it."""
        q_BHSN, q_BHSR = self.queries(x_BSD, angles)
        latent_BSL, k_BSR = self.cache(*self.latent(x_BSD, angles))
        sizes = [self.shape.qk_nope_head_dim, self.shape.v_head_dim]
        kv_BHSX = self.kv_b_proj(latent_BSL).unflatten(-1, (-1, sum(sizes))).transpose(1, 2)
        k_BHSN, v_BHSW = kv_BHSX.split(sizes, dim=-1)
        k_BHSR = k_BSR[:, None].expand(-1, self.shape.num_heads, -1, -1)
        q_BHSQ, k_BHSQ = torch.cat((q_BHSN, q_BHSR), -1), torch.cat((k_BHSN, k_BHSR), -1)
        mixed_BHSW = attention(q_BHSQ, k_BHSQ, v_BHSW, self.scale)
        out_BSD: Tensor = self.o_proj(mixed_BHSW.transpose(1, 2).flatten(2))
        return out_BSD


class Cache(nn.Module):
    """The place of a KV cache: keys and values, or MLA's latents and key parts, pass through.

    A hook here sees what a cache would hold.
    """

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged."""
        return k, v


class Indexer(nn.Module):
    """The weights of V3.2's sparse attention, which do not run.

    For up to index_topk tokens it picks all, and `rotary` refuses more. The input of wq_b is that
    of q_b_proj; the input of wk and weights_proj is that of q_a_proj.
    """

    def __init__(self, hidden: int, q_rank: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.wq_b = nn.Linear(q_rank, num_heads * head_dim, bias=False)
        self.wk = nn.Linear(hidden, head_dim, bias=False)
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.weights_proj = nn.Linear(hidden, num_heads, bias=False)


class MoE(nn.Module):
    """Routed experts, each on the tokens that chose it, and shared experts on all tokens."""

    def __init__(self, architecture: Architecture, shape: family.MoE) -> None:
        super().__init__()
        hidden, width = architecture.model.hidden_size, shape.intermediate_size
        self.gate = Router(architecture, shape)
        self.experts = nn.ModuleList(
            MLP(hidden, width, bias=False) for _ in range(shape.n_routed_experts)
        )
        self.shared_experts = None
        if shape.n_shared_experts:
            self.shared_experts = MLP(hidden, shape.n_shared_experts * width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return [B, S, D]."""
        x_TD = x_BSD.flatten(0, -2)
        experts_TK, weights_TK = self.gate(x_TD)
        y_TD = self.combine(x_TD, experts_TK, weights_TK, lambda e, x: self.experts[e](x))
        return y_TD.view_as(x_BSD)

    def combine(
        self,
        x_TD: Tensor,
        experts_TK: Tensor,
        weights_TK: Tensor,
        run: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Return the weighted sum [T, D] of the experts' outputs, and the shared experts' output.

        `run(e, x)` is called once, in order, for each expert that has tokens, with their rows of x.
        """
        routed_TD = torch.zeros_like(x_TD)
        counts_E = experts_TK.flatten().bincount()
        for expert in counts_E.nonzero().flatten().tolist():
            slots, tokens = torch.where(experts_TK.T.eq(expert))
            weighted = run(expert, x_TD[tokens]) * weights_TK[tokens, slots, None]
            routed_TD.index_add_(0, tokens, weighted.to(x_TD.dtype))
        if self.shared_experts is None:
            return routed_TD
        shared_TD: Tensor = self.shared_experts(x_TD)
        return routed_TD + shared_TD


class Router(nn.Module):
    """Chooses K experts for a token. Source: arXiv 2412.19437, section 2.1.2; 2405.04434, 2.2.2."""

    def __init__(self, architecture: Architecture, shape: family.MoE) -> None:
        super().__init__()
        assert architecture.router is not None
        router = architecture.router
        self.rule = Rule(
            scoring=router.scoring,
            group_score="top2" if router.topk_method == "noaux_tc" else "max",
            n_group=router.n_group,
            topk_group=router.topk_group,
            count=shape.num_experts_per_tok,
            is_normed=router.norm_topk_prob,
            scale=router.routed_scaling_factor,
        )
        self.weight = nn.Parameter(
            torch.empty(shape.n_routed_experts, architecture.model.hidden_size)
        )
        self.e_score_correction_bias = None
        if shape.has_correction_bias:
            self.e_score_correction_bias = nn.Parameter(torch.empty(shape.n_routed_experts))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts [T, K] int32 of each token and their weights [T, K] float32."""
        x_TD = x_TD if x_TD.dtype == self.weight.dtype else x_TD.float()
        logits_TE = gemm(x_TD, self.weight.to(x_TD.dtype), torch.float32)
        return route(logits_TE, self.e_score_correction_bias, self.rule)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.up_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape [..., D]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape and dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def attention(q_BHSQ: Tensor, k_BGSQ: Tensor, v_BGSW: Tensor, scale: float) -> Tensor:
    """Return softmax(q k' scale) v over each token and those before it, [B, H, S, W].

    Narrow values are padded with zeros to the width of the keys: only for equal widths does torch
    have a fused kernel, which never holds the [S, S] scores of all heads. A zero column does not
    change the others.
    """
    width = v_BGSW.shape[-1]
    v_BGSQ = F.pad(v_BGSW, (0, max(0, q_BHSQ.shape[-1] - width)))
    is_grouped = q_BHSQ.shape[1] != k_BGSQ.shape[1]
    mixed = F.scaled_dot_product_attention(
        q_BHSQ, k_BGSQ, v_BGSQ, is_causal=True, scale=scale, enable_gqa=is_grouped
    )
    return mixed[..., :width]
