"""The values of the config's keys that the tensors imply, where they contradict the config."""

from collections import defaultdict
from typing import Any

from dstools_converters.checkpoint.differences import Names, Tensors
from dstools_converters.families.names import Role
from dstools_converters.families.shapes import MLA, Attention, Model

# Only a layer for multi-token prediction has these. Source: DeepSeek-V3, README_WEIGHTS.md.
MTP_ROLES: tuple[Role, ...] = ("eh_proj", "enorm", "hnorm", "shared_head_norm")


class Evidence:
    """The layers, experts and shapes of a checkpoint, by role."""

    def __init__(self, tensors: Tensors, names: Names) -> None:
        self.shapes: dict[Role, set[tuple[int, ...]]] = defaultdict(set)
        self.biased: set[Role] = set()
        self.sparse: set[int] = set()  # layers with a router or routed experts
        self.experts: dict[int, set[int]] = defaultdict(set)  # layer -> numbers of its experts
        self.first: dict[int, str] = {}  # layer -> file and name of a tensor of it
        self.mtp: set[int] = set()  # layers with tensors that only an MTP layer has
        for name, parsed in names.items():
            if parsed is None:
                continue
            if parsed.part == "weight":
                self.shapes[parsed.role].add(tensors[name].shape)
            elif parsed.part == "bias":
                self.biased.add(parsed.role)
            elif parsed.role == "e_score_correction_bias":
                self.shapes[parsed.role].add(tensors[name].shape)
            if parsed.layer is None:
                continue
            self.first.setdefault(parsed.layer, tensors[name].where)
            if parsed.role in MTP_ROLES:
                self.mtp.add(parsed.layer)
            if parsed.role == "router" or parsed.expert is not None:
                self.sparse.add(parsed.layer)
            if parsed.expert is not None:
                self.experts[parsed.layer].add(parsed.expert)
        self.decoders = sorted(self.first.keys() - self.mtp)

    @property
    def is_contiguous(self) -> bool:
        """Return whether the layers are 0, 1, 2 and so on, those of MTP last."""
        layers = self.decoders + sorted(self.mtp)
        return bool(self.decoders) and layers == list(range(len(layers)))

    def size(self, role: Role, axis: int) -> int | None:
        """Return the size of all weights of a role along an axis; None where they differ."""
        sizes = {shape[axis] if axis < len(shape) else None for shape in self.shapes.get(role, ())}
        return sizes.pop() if len(sizes) == 1 else None


def implied(model: Model, evidence: Evidence) -> dict[str, Any]:
    """Return {key: value} of what the tensors say otherwise than the config.

    Each value is a guess from a few shapes: only comparing again proves that all of it fits.
    """
    values: dict[str, tuple[Any, Any]] = {  # key -> (of the config, of the tensors)
        "vocab_size": (model.vocab_size, evidence.size("embed_tokens", 0)),
        "hidden_size": (model.hidden_size, evidence.size("embed_tokens", 1)),
        "intermediate_size": (model.intermediate_size, evidence.size("dense_gate", 0)),
        "model_type": (model.model_type, _model_type(model, evidence)),
    }
    if evidence.is_contiguous:
        values["num_hidden_layers"] = model.num_hidden_layers, len(evidence.decoders)
        if model.model_type.startswith("deepseek"):
            values["num_nextn_predict_layers"] = model.num_mtp_layers, len(evidence.mtp)
    values |= _attention(model.attention, evidence)
    values |= _experts(model, evidence)
    values |= _biases(model, evidence)
    contradicted = {
        key: actual for key, (stated, actual) in values.items() if actual not in (None, stated)
    }
    return contradicted | ({"q_lora_rank": None} if _drops_q_lora(model, evidence) else {})


def _model_type(model: Model, evidence: Evidence) -> str | None:
    """Return the family that the roles belong to; None where several have them."""
    has = evidence.shapes.keys()
    if "kv_a_proj_with_mqa" in has:
        if "indexer_wk" in has:
            return "deepseek_v32"
        if "e_score_correction_bias" in has:
            return "deepseek_v3"
        # a router without a bias is V2's, or one of V3 that lost it
        is_v3 = model.model_type in ("deepseek_v3", "deepseek_v32")
        return "deepseek_v2" if "router" in has and not is_v3 else None
    if "k_proj" not in has:
        return None
    if "q_norm" in has:
        return "qwen3"
    if "k_proj" in evidence.biased and "o_proj" not in evidence.biased:
        return "qwen2"
    return None if model.model_type == "llama" else "llama"


def _attention(
    attention: Attention | MLA, evidence: Evidence
) -> dict[str, tuple[int | None, int | None]]:
    """Return the dimensions of the attention, as (of the config, of the tensors)."""
    if isinstance(attention, Attention):
        head_dim = evidence.size("q_norm", 0) or attention.head_dim
        queries, keys = evidence.size("q_proj", 0), evidence.size("k_proj", 0)
        return {
            "head_dim": (attention.head_dim, head_dim),
            "num_attention_heads": (attention.num_heads, queries and queries // head_dim),
            "num_key_value_heads": (attention.num_kv_heads, keys and keys // head_dim),
        }
    heads = _mla_heads(attention, evidence) or attention.num_heads
    latent = evidence.size("kv_a_layernorm", 0)
    joined, values = evidence.size("kv_a_proj_with_mqa", 0), evidence.size("o_proj", 1)
    unrolled = evidence.size("kv_b_proj", 0)
    value = values and values // heads
    dimensions = {
        "num_attention_heads": (attention.num_heads, heads),
        "q_lora_rank": (attention.q_lora_rank, evidence.size("q_a_proj", 0)),
        "kv_lora_rank": (attention.kv_lora_rank, latent),
        "v_head_dim": (attention.v_head_dim, value),
        "qk_rope_head_dim": (attention.qk_rope_head_dim, joined and latent and joined - latent),
        "qk_nope_head_dim": (
            attention.qk_nope_head_dim,
            unrolled and value and unrolled // heads - value,
        ),
    }
    if attention.indexer is not None:
        dimensions["index_n_heads"] = attention.indexer[0], evidence.size("indexer_weights_proj", 0)
        dimensions["index_head_dim"] = attention.indexer[1], evidence.size("indexer_wk", 0)
    return dimensions


def _mla_heads(attention: MLA, evidence: Evidence) -> int | None:
    """Return how many heads queries, keys and outputs all have, by the config's sizes of a head."""
    nope, rope, value = (
        attention.qk_nope_head_dim, attention.qk_rope_head_dim, attention.v_head_dim
    )  # fmt: skip
    queries = evidence.size("q_b_proj", 0) or evidence.size("q_proj", 0)
    rows = (queries, evidence.size("kv_b_proj", 0), evidence.size("o_proj", 1))
    counts = {
        divmod(count or 0, width)
        for count, width in zip(rows, (nope + rope, nope + value, value), strict=True)
    }
    heads, rest = counts.pop()
    return heads if not counts and not rest else None


def _drops_q_lora(model: Model, evidence: Evidence) -> bool:
    """Return whether the config has a rank of queries, and the tensors have none."""
    has_rank = isinstance(model.attention, MLA) and model.attention.q_lora_rank is not None
    return has_rank and "q_proj" in evidence.shapes and "q_a_proj" not in evidence.shapes


def _experts(model: Model, evidence: Evidence) -> dict[str, tuple[Any, Any]]:
    """Return the dimensions of the experts, as (of the config, of the tensors)."""
    if not evidence.sparse or not model.model_type.startswith("deepseek"):
        return {}
    moe, width = model.moe, evidence.size("routed_gate", 0)
    rows, shared = evidence.size("router", 0), evidence.size("shared_gate", 0)
    if any(numbers != set(range(rows or 0)) for numbers in evidence.experts.values()):
        rows = None  # some experts are missing
    values: dict[str, tuple[Any, Any]] = {
        "n_routed_experts": (moe and moe.n_routed_experts, rows),
        "moe_intermediate_size": (moe and moe.intermediate_size, width),
        "n_shared_experts": (moe and moe.n_shared_experts, (shared or 0) // (width or 1)),
    }
    if any(model.is_moe(layer) != (layer in evidence.sparse) for layer in evidence.decoders):
        sparse = sorted(evidence.sparse - evidence.mtp)
        first, step = sparse[0] if sparse else len(evidence.decoders), 1
        if len(sparse) > 1 and sparse != evidence.decoders[first:]:  # every few layers
            step = sparse[1] - sparse[0]
        values["first_k_dense_replace"] = moe and moe.first_k_dense_replace, first
        values["moe_layer_freq"] = moe and moe.layer_freq, step
    return values


def _biases(model: Model, evidence: Evidence) -> dict[str, tuple[bool, bool]]:
    """Return whether projections have biases, as (of the config, of the tensors)."""
    attention = model.attention
    if "o_proj" not in evidence.shapes:
        return {}
    if isinstance(attention, MLA):
        return {"attention_bias": (attention.bias, "kv_a_proj_with_mqa" in evidence.biased)}
    return {
        "attention_bias": (attention.o_bias, "o_proj" in evidence.biased),
        "mlp_bias": (model.mlp_bias, "dense_gate" in evidence.biased),
    }
