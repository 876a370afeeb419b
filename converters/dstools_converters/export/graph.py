"""The modules of which the graphs of a DeepSeek model are traced: the decoder's, and ops between.

Inputs and outputs have the names of onnxruntime-genai's Engine. It wants a key and a value cache of
one geometry a layer, so layer 2i of the model is its key i and layer 2i + 1 its value i: latents
lie once. A layer without a partner gets a cache that the graph returns as it is.

Between the nodes of functions.py are the modules of model/decoder.py. Initializers have the names
of the checkpoint's tensors, except for these of a layer:

    self_attn.w_k, .w_v              kv_b_proj [H, N + W, L], divided
    mlp.experts.gate_proj.weight     those of all experts of this rank, [e, I, D]
    ....weight_scale_inv             float32, whatever it is in the checkpoint
    mlp.experts.map                  int32 [E]: which of them is each expert of the model, or -1
    rotary.cos, .sin                 float32 [positions, R / 2]

Shape suffixes: decoder.py and functions.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.export.functions import ALL_REDUCE, DOMAIN, PLUGIN, VERSION
from dstools_converters.export.ranks import WHOLE, Ranks
from dstools_converters.families import shapes as family
from dstools_converters.families.names import TensorName
from dstools_converters.model.architecture import Architecture
from dstools_converters.model.decoder import MLA, MLP, Decoder, DecoderLayer, MTPLayer, Router
from dstools_converters.model.rotary import Rotary
from dstools_converters.runtime.weights import STACKS

ONNX_DTYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
MAP = "map"
One = int | float | str | bool
Attribute = One | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]  # torch.onnx's
SIDES = tuple(STACKS.values())  # gate_proj, up_proj, down_proj


@dataclass(frozen=True)
class Form:
    """The dtype, sizes and ranks that a graph is traced for."""

    dtype: torch.dtype  # of activations, caches and weights that are not codes
    positions: int  # that the tables of angles have
    page: int  # tokens of a page of a cache
    codes: frozenset[TensorName] = frozenset()  # weights that stay FP8
    ranks: Ranks = WHOLE
    expert_inputs: bool = False  # experts and their map are inputs
    picks_rows: bool = False  # `logits_indices` says whose logits are wanted


class Weight(nn.Module):
    """A weight without values: in the dtype of the model, or E4M3 codes with their scales."""

    def __init__(self, shape: tuple[int, ...], is_coded: bool) -> None:
        super().__init__()
        dtype = torch.float8_e4m3fn if is_coded else None
        self.weight = _parameter(*shape, dtype=dtype)
        self.weight_scale_inv: nn.Parameter | None = None
        if is_coded:
            *count, rows, columns = shape
            grid = (*count, -(-rows // 128), -(-columns // 128))
            self.weight_scale_inv = _parameter(*grid, dtype=torch.float32)


class Product(Weight):
    """A linear map by FP8 codes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__((linear.out_features, linear.in_features), is_coded=True)
        self.bias: Tensor | None = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., N] of x [..., K]; the op takes two dimensions."""
        x_TK, size = x.flatten(0, -2) if x.dim() > 2 else x, len(self.weight)
        inputs = (x_TK, self.weight, self.weight_scale_inv)
        y_TN = _node("DsFp8BlockLinear", inputs, x.dtype, (x_TK.shape[0], size))
        y = y_TN.view(*x.shape[:-1], size)
        return y if self.bias is None else y + self.bias


class Latents(MLA):
    """MLA on paged latents, kv_b_proj absorbed."""

    def __init__(self, architecture: Architecture, shape: family.MLA) -> None:
        super().__init__(architecture, shape)
        del self.kv_b_proj
        heads, rank = shape.num_heads, shape.kv_lora_rank
        self.w_k = _parameter(heads, shape.qk_nope_head_dim, rank)
        self.w_v = _parameter(heads, shape.v_head_dim, rank)

    def step(
        self, x_TD: Tensor, angles: Rotary, places: tuple[Tensor, ...], cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return [T, D], and the cache [P, S, 1, C] with the latents of the new tokens.

        places: cumulative [B + 1], past [B] and table [B, N], int32.
        """
        q_HTN, q_HTR = (part[0] for part in self.queries(x_TD[None], angles))
        latent_TC = torch.cat(self.latent(x_TD[None], angles), -1)[0]
        q_THC = torch.cat((torch.matmul(q_HTN, self.w_k), q_HTR), -1).transpose(0, 1)
        rank = self.shape.kv_lora_rank
        attributes: dict[str, Attribute] = {
            "scale": float(self.scale),
            "rank": rank,
            "dtype": ONNX_DTYPES[q_THC.dtype],
            **PLUGIN,
        }
        o_THL, cache = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::DsMlaAttention",
            (q_THC, latent_TC, cache, *places),
            attributes,
            dtypes=(q_THC.dtype, cache.dtype),
            shapes=((*q_THC.shape[:2], rank), cache.shape),
            version=VERSION,
        )
        mixed_HTW = torch.matmul(o_THL.transpose(0, 1), self.w_v.mT)
        out_TD: Tensor = self.o_proj(mixed_HTW.transpose(0, 1).flatten(1))
        return out_TD, cache


class Experts(nn.Module):
    """The routed experts of a layer as one node, and the shared ones."""

    def __init__(
        self, architecture: Architecture, shape: family.MoE, ranks: Ranks, is_coded: bool
    ) -> None:
        super().__init__()
        hidden, tp, self.is_summed = architecture.model.hidden_size, ranks.tp, ranks.ep > ranks.tp
        with default_dtype(torch.float32):
            self.gate = Router(architecture, shape)
        count = len(ranks.experts(shape.n_routed_experts, 0))
        width = shape.intermediate_size // (tp if ranks.ep == 1 else 1)
        shapes = ((count, width, hidden), (count, width, hidden), (count, hidden, width))
        self.experts = nn.ModuleDict(
            {side: Weight(size, is_coded) for side, size in zip(SIDES, shapes, strict=True)}
        )
        self.experts.register_buffer(MAP, torch.empty(shape.n_routed_experts, dtype=torch.int32))
        shared = shape.n_shared_experts * shape.intermediate_size // tp
        self.shared_experts = MLP(hidden, shared, bias=False) if shared else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D]: of this rank's share, unless only routed experts are divided."""
        ids_TK, weights_TK = self.gate(x_TD)
        stacks = [part for side in SIDES for part in self.experts[side].parameters()]
        inputs = (x_TD, ids_TK, weights_TK, self.experts.get_buffer(MAP), *stacks)
        op = "DsMoE" if len(stacks) == len(SIDES) else "DsFp8BlockMoE"
        y_TD = _node(op, inputs, x_TD.dtype, x_TD.shape)
        if self.is_summed:
            y_TD = _all_reduce(y_TD)
        return y_TD if self.shared_experts is None else y_TD + self.shared_experts(x_TD)


class Places(NamedTuple):
    """The positions of new tokens, as inputs of the graph."""

    cumulative: Tensor  # [B + 1] int32, where the new tokens of each row begin
    past: Tensor  # [B] int32, tokens that the cache has of each row
    table: Tensor  # [B, N] int32, the pages of each row


class Graph(nn.Module):
    """Some layers of a decoder with its embedding and head: what both graphs are made of."""

    def __init__(self, decoder: Decoder, form: Form) -> None:
        super().__init__()
        self.model, self.lm_head = decoder.model, decoder.lm_head
        self.is_summed = form.ranks.tp > 1
        attention = decoder.model.architecture.model.attention
        assert isinstance(attention, family.MLA)
        self.rotary = nn.Module()
        for table in ("cos", "sin"):
            angles = torch.empty(form.positions, attention.qk_rope_head_dim // 2)
            self.rotary.register_buffer(table, angles.float())

    def run(
        self, layers: range, x_TD: Tensor, places: Places, caches: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the states [T, D] after some layers, and the caches with the new latents."""
        angles, written = self.angles(x_TD.shape[0], places), list(caches)
        for place, number in enumerate(layers):
            layer = self.model.layers[number]
            assert isinstance(layer, DecoderLayer)
            assert isinstance(layer.self_attn, Latents)
            normed_TD = layer.input_layernorm(x_TD)
            y_TD, written[place] = layer.self_attn.step(normed_TD, angles, places, caches[place])
            x_TD = x_TD + self.whole(y_TD)
            x_TD = x_TD + self.whole(layer.mlp(layer.post_attention_layernorm(x_TD)))
        return x_TD, tuple(written)

    def angles(self, tokens: int, places: Places) -> Rotary:
        """Return the rotation [T, R/2] of each new token."""
        cumulative, past = places.cumulative.long(), places.past.long()
        token = torch.arange(tokens)
        row = (token[:, None] >= cumulative[None, 1:]).sum(-1)
        begins = cumulative.index_select(0, row)  # x[row] would be GatherND
        position = token - begins + past.index_select(0, row)
        tables = (self.rotary.get_buffer(table) for table in ("cos", "sin"))
        return Rotary(*(table.index_select(0, position) for table in tables))

    def whole(self, x: Tensor) -> Tensor:
        """Return the sum over all ranks of what is divided among them."""
        return _all_reduce(x) if self.is_summed else x

    def logits(self, normed_TD: Tensor, rows: Tensor | None) -> Tensor:
        """Return the logits [R, V] float32 of the states at `rows`, or those of all."""
        x = normed_TD if rows is None else normed_TD.index_select(0, rows)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(x, head.weight).float()


class Main(Graph):
    """The graph of the model without MTP."""

    def forward(
        self,
        ids: Tensor,
        table: Tensor,
        cumulative: Tensor,
        past: Tensor,
        metadata: Tensor,
        caches: tuple[Tensor, ...],
        rows: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return logits, the normed states [T, D], and the caches."""
        layers = range(self.model.architecture.model.num_hidden_layers)
        x_TD, places = self.model.embed_tokens(ids), Places(cumulative, past, table)
        x_TD, written = self.run(layers, x_TD, places, caches)
        hidden_TD = self.model.norm(x_TD)
        return self.logits(hidden_TD, rows), hidden_TD, *written


class Draft(Graph):
    """The graph of the first MTP layer."""

    def forward(
        self,
        ids: Tensor,
        hidden: Tensor,
        table: Tensor,
        cumulative: Tensor,
        past: Tensor,
        metadata: Tensor,
        caches: tuple[Tensor, ...],
        rows: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return logits, the states [T, D] before the layer's last norm, and the caches.

        `hidden` are the states of `Main`, or those returned here for the draft before.
        """
        number = self.model.architecture.model.num_hidden_layers
        layer, places = self.model.layers[number], Places(cumulative, past, table)
        assert isinstance(layer, MTPLayer)
        x_TD = layer.project(self.model.embed_tokens(ids), hidden)
        x_TD, written = self.run(range(number, number + 1), x_TD, places, caches)
        return self.logits(layer.shared_head["norm"](x_TD), rows), x_TD, *written


def is_of_experts(name: str) -> bool:
    """Return whether an initializer holds routed experts, or their map."""
    return ".mlp.experts." in name


def decoder_of(architecture: Architecture, form: Form) -> Decoder:
    """Return a decoder whose layers are those of a graph, for one of the ranks."""
    model, ranks = architecture.model, form.ranks
    attention, moe = model.attention, model.moe
    assert isinstance(attention, family.MLA)
    own = replace(attention, num_heads=attention.num_heads // ranks.tp, indexer=None)
    dense = replace(
        model, attention=own, moe=None, intermediate_size=model.intermediate_size // ranks.tp
    )
    decoder = Decoder(replace(architecture, model=dense))  # experts one by one would take minutes
    coded = {model.spelling.module(name) for name in form.codes}
    for number, layer in enumerate(decoder.model.layers):
        layer.self_attn = Latents(architecture, own)
        if moe is not None and model.is_moe(number):
            first = model.spelling.module(TensorName("routed_gate", "weight", number, 0))
            layer.mlp = Experts(architecture, moe, ranks, first in coded)
    for path, module in list(decoder.named_modules()):
        if type(module) is nn.Linear and path in coded:
            parent, _, name = path.rpartition(".")
            setattr(decoder.get_submodule(parent), name, Product(module))
    return decoder.requires_grad_(False)


def _parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


def _node(
    op: str, inputs: tuple[Tensor | None, ...], dtype: torch.dtype, shape: Sequence[Any]
) -> Tensor:
    """Return the result of an op of functions.py, as the tracer is to write it."""
    attributes: dict[str, Attribute] = {**PLUGIN}
    node: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op}", inputs, attributes, dtype=dtype, shape=shape, version=VERSION
    )
    return node


def _all_reduce(x: Tensor) -> Tensor:
    """Return the sum of `x` over all ranks, as the tracer is to write it."""
    name = f"{DOMAIN}::DistCollective"
    attributes: dict[str, Attribute] = {**ALL_REDUCE}
    node: Tensor = torch.onnx.ops.symbolic(
        name, (x,), attributes, dtype=x.dtype, shape=x.shape, version=VERSION
    )
    return node


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this dtype where none is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
