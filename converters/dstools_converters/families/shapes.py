"""Model dimensions read from config.json, and the names and shapes of the weights they require.

Shapes are [out, in]. Source: transformers' configuration_deepseek_v2.py,
configuration_deepseek_v3.py, configuration_llama.py, configuration_qwen2.py and
configuration_qwen3.py; the V3.2 release's config.json and the MTP layer of the V3 release
(README_WEIGHTS.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dstools_converters.errors import DstoolsError, UnsupportedError, printable
from dstools_converters.families.names import HUGGING_FACE, Role, Spelling, TensorName

ModelType = Literal["deepseek_v2", "deepseek_v3", "deepseek_v32", "llama", "qwen2", "qwen3"]
SUPPORTED: tuple[ModelType, ...] = get_args(ModelType)
MAX_SIZE = 1 << 24  # far above any dimension of a language model


@dataclass(frozen=True)
class Attention:
    """Plain or grouped multi-head attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    has_qk_norm: bool


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention; `indexer` holds (heads, head_dim) of V3.2's sparse attention."""

    num_heads: int
    q_lora_rank: int | None  # None: one q_proj, as in V2-Lite
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    bias: bool
    indexer: tuple[int, int] | None

    @property
    def latent_width(self) -> int:
        """Return how many elements a cache holds of a token: its latent and its rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True)
class MoE:
    """Routed and shared experts."""

    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    first_k_dense_replace: int
    layer_freq: int
    has_correction_bias: bool


@dataclass(frozen=True)
class Model:
    """The dimensions of one model, checked to be whole numbers below MAX_SIZE."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_mtp_layers: int
    attention: Attention | MLA
    moe: MoE | None
    mlp_bias: bool
    is_tied: bool

    @property
    def num_layers(self) -> int:
        """Return the number of layers, those of MTP included."""
        return self.num_hidden_layers + self.num_mtp_layers

    @property
    def spelling(self) -> Spelling:
        """Return how the family spells the names of its tensors."""
        return HUGGING_FACE  # of every ModelType

    def spell(self, name: TensorName) -> str:
        """Return the name of a tensor as text."""
        return self.spelling.spell(name)

    def is_moe(self, layer: int) -> bool:
        """Return whether a layer has experts; MTP layers do wherever the model has any."""
        moe = self.moe
        if moe is None:
            return False
        if layer >= self.num_hidden_layers:
            return True
        return layer >= moe.first_k_dense_replace and layer % moe.layer_freq == 0

    def weights(self) -> Iterator[tuple[TensorName, tuple[int, ...]]]:
        """Yield every weight that the model requires, with its shape, in order of the layers."""
        for name, shape, count in self.kinds():
            if name.expert is None:
                yield name, shape
            else:
                for expert in range(count):
                    yield TensorName(name.role, name.part, name.layer, expert, name.is_mtp), shape

    def kinds(self) -> Iterator[tuple[TensorName, tuple[int, ...], int]]:
        """Yield (name, shape, count); the experts of a layer are one item, named as the first."""
        hidden, vocab = self.hidden_size, self.vocab_size
        yield TensorName("embed_tokens", "weight"), (vocab, hidden), 1
        for layer in range(self.num_layers):
            is_mtp = layer >= self.num_hidden_layers
            for role, part, shape in self._layer(layer):
                is_routed = self.moe is not None and role.startswith("routed")
                count = self.moe.n_routed_experts if self.moe and is_routed else 1
                yield TensorName(role, part, layer, 0 if is_routed else None, is_mtp), shape, count
        yield TensorName("norm", "weight"), (hidden,), 1
        if not self.is_tied:
            yield TensorName("lm_head", "weight"), (vocab, hidden), 1

    def optional_weights(self) -> Iterator[tuple[TensorName, tuple[int, ...]]]:
        """Yield weights that a checkpoint may hold besides `weights`, with their shapes.

        These are tied heads and an MTP layer's shared weights.
        """
        shape = (self.vocab_size, self.hidden_size)
        if self.is_tied:
            yield TensorName("lm_head", "weight"), shape
        for layer in range(self.num_hidden_layers, self.num_layers):
            yield TensorName("mtp_embed_tokens", "weight", layer, None, True), shape
            yield TensorName("shared_head", "weight", layer, None, True), shape

    def _layer(self, layer: int) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
        hidden, attention = self.hidden_size, self.attention
        yield "input_layernorm", "weight", (hidden,)
        yield from (
            _mla(attention, hidden) if isinstance(attention, MLA) else _mha(attention, hidden)
        )
        yield "post_attention_layernorm", "weight", (hidden,)
        if self.moe is not None and self.is_moe(layer):
            yield from self._experts(self.moe)
        else:
            sides: tuple[Role, ...] = ("dense_gate", "dense_up")
            for role in sides:
                yield role, "weight", (self.intermediate_size, hidden)
                if self.mlp_bias:
                    yield role, "bias", (self.intermediate_size,)
            yield "dense_down", "weight", (hidden, self.intermediate_size)
            if self.mlp_bias:
                yield "dense_down", "bias", (hidden,)
        if layer >= self.num_hidden_layers:
            yield "eh_proj", "weight", (hidden, 2 * hidden)
            yield "enorm", "weight", (hidden,)
            yield "hnorm", "weight", (hidden,)
            yield "shared_head_norm", "weight", (hidden,)

    def _experts(self, moe: MoE) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
        hidden, shared = self.hidden_size, moe.n_shared_experts * moe.intermediate_size
        yield "router", "weight", (moe.n_routed_experts, hidden)
        if moe.has_correction_bias:
            yield "e_score_correction_bias", "e_score_correction_bias", (moe.n_routed_experts,)
        yield "routed_gate", "weight", (moe.intermediate_size, hidden)
        yield "routed_up", "weight", (moe.intermediate_size, hidden)
        yield "routed_down", "weight", (hidden, moe.intermediate_size)
        if shared:
            yield "shared_gate", "weight", (shared, hidden)
            yield "shared_up", "weight", (shared, hidden)
            yield "shared_down", "weight", (hidden, shared)


def _mha(attention: Attention, hidden: int) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
    queries = attention.num_heads * attention.head_dim
    keys = attention.num_kv_heads * attention.head_dim
    sides: tuple[tuple[Role, int], ...] = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
    for role, rows in sides:
        yield role, "weight", (rows, hidden)
        if attention.qkv_bias:
            yield role, "bias", (rows,)
    yield "o_proj", "weight", (hidden, queries)
    if attention.o_bias:
        yield "o_proj", "bias", (hidden,)
    if attention.has_qk_norm:
        yield "q_norm", "weight", (attention.head_dim,)
        yield "k_norm", "weight", (attention.head_dim,)


def _mla(mla: MLA, hidden: int) -> Iterator[tuple[Role, str, tuple[int, ...]]]:
    queries = mla.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    latent = mla.latent_width
    if mla.q_lora_rank is None:
        yield "q_proj", "weight", (queries, hidden)
    else:
        yield "q_a_proj", "weight", (mla.q_lora_rank, hidden)
        yield "q_a_layernorm", "weight", (mla.q_lora_rank,)
        yield "q_b_proj", "weight", (queries, mla.q_lora_rank)
    yield "kv_a_proj_with_mqa", "weight", (latent, hidden)
    yield "kv_a_layernorm", "weight", (mla.kv_lora_rank,)
    values = mla.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield "kv_b_proj", "weight", (values, mla.kv_lora_rank)
    yield "o_proj", "weight", (hidden, mla.num_heads * mla.v_head_dim)
    if mla.bias:
        if mla.q_lora_rank is not None:
            yield "q_a_proj", "bias", (mla.q_lora_rank,)
        yield "kv_a_proj_with_mqa", "bias", (latent,)
        yield "o_proj", "bias", (hidden,)
    if mla.indexer is not None:
        heads, head_dim = mla.indexer
        yield "indexer_wq_b", "weight", (heads * head_dim, mla.q_lora_rank or hidden)
        yield "indexer_wk", "weight", (head_dim, hidden)
        yield "indexer_k_norm", "weight", (head_dim,)
        yield "indexer_k_norm", "bias", (head_dim,)
        yield "indexer_weights_proj", "weight", (heads, hidden)


def read_model(config: dict[str, Any]) -> Model:
    """Return the dimensions that `config` gives.

    Raises UnsupportedError for a model_type that is not read, and DstoolsError for a dimension that
    is missing or out of range.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        raise UnsupportedError(
            f"config.json: model_type {printable(str(model_type))!r} is not supported",
            f"supported are {', '.join(SUPPORTED)}",
        )
    size = _Sizes(config)
    is_deepseek = model_type.startswith("deepseek")
    heads = size("num_attention_heads")
    is_biased = bool(config.get("attention_bias", False))
    attention: Attention | MLA
    if is_deepseek:
        has_indexer = model_type == "deepseek_v32"
        attention = MLA(
            num_heads=heads,
            q_lora_rank=None if config.get("q_lora_rank") is None else size("q_lora_rank"),
            kv_lora_rank=size("kv_lora_rank"),
            qk_nope_head_dim=size("qk_nope_head_dim"),
            qk_rope_head_dim=size("qk_rope_head_dim"),
            v_head_dim=size("v_head_dim"),
            bias=is_biased,
            indexer=(size("index_n_heads"), size("index_head_dim")) if has_indexer else None,
        )
    else:
        given = config.get("head_dim") is not None
        usual = 128 if model_type == "qwen3" else size("hidden_size") // heads  # of transformers
        attention = Attention(
            num_heads=heads,
            num_kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim") if given else usual,
            qkv_bias=is_biased or model_type == "qwen2",
            o_bias=is_biased and model_type != "qwen2",
            has_qk_norm=model_type == "qwen3",
        )
    has_experts = is_deepseek and config.get("n_routed_experts") is not None
    return Model(
        model_type=model_type,
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_mtp_layers=size("num_nextn_predict_layers", 0) if is_deepseek else 0,
        attention=attention,
        moe=_read_moe(size, model_type) if has_experts else None,
        mlp_bias=bool(config.get("mlp_bias", False)) and not is_deepseek,
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _read_moe(size: "_Sizes", model_type: ModelType) -> MoE:
    return MoE(
        n_routed_experts=size("n_routed_experts"),
        n_shared_experts=size("n_shared_experts", 0),
        num_experts_per_tok=size("num_experts_per_tok"),
        intermediate_size=size("moe_intermediate_size"),
        first_k_dense_replace=size("first_k_dense_replace", 0),
        layer_freq=size("moe_layer_freq", 1),
        has_correction_bias=model_type != "deepseek_v2",
    )


class _Sizes:
    """Reads whole numbers from a config; only optional ones may be 0."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        least = 0 if default == 0 else 1
        if type(value) is not int or not least <= value < MAX_SIZE:
            raise DstoolsError(
                f"config.json: {key} is {printable(repr(value))}, not a whole number from {least} "
                f"to {MAX_SIZE - 1}",
                "download config.json again",
            )
        return value
