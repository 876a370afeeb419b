"""Model architecture read from config.json: dimensions, and all else that the results depend on.

A setting that would change the results and is not implemented is refused here, by its key.
Source: transformers' modeling_rope_utils.py, modeling_deepseek_v2.py, modeling_deepseek_v3.py and
modeling_deepseek_v32.py, modeling_llama.py, modeling_qwen2.py, modeling_qwen3.py.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from dstools_converters.errors import DstoolsError, UnsupportedError, printable
from dstools_converters.families.shapes import MLA, Model, MoE, read_model

TopkMethod = Literal["noaux_tc", "group_limited_greedy", "greedy"]
Parameters = dict[str, Any]
AGAIN = "download config.json again"
YARN_KEYS: tuple[str, ...] = ("factor", "original_max_position_embeddings", "beta_fast")
YARN_KEYS += ("beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Linear:
    """Every frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3:
    """Low frequencies divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: float


@dataclass(frozen=True)
class Yarn:
    """As Llama3, the ramp in steps of the dimension; cos and sin times `attention_factor`."""

    factor: float
    original_length: float
    beta_fast: float
    beta_slow: float
    is_truncated: bool
    attention_factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary positions of `dim` elements of a head."""

    theta: float
    dim: int
    is_interleaved: bool  # pairs are neighbours (DeepSeek), else one element from each half (Llama)
    scaling: Linear | Llama3 | Yarn | None


@dataclass(frozen=True)
class Router:
    """How the experts of a token are chosen and weighted."""

    scoring: Literal["sigmoid", "softmax"]
    topk_method: TopkMethod
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float


@dataclass(frozen=True)
class Architecture:
    """Everything besides the weights that running a model needs. The activation is always SiLU."""

    model: Model
    rms_norm_eps: float
    rope: Rope
    softmax_scale: float
    router: Router | None  # as model.moe
    index_topk: int | None  # V3.2: up to this many tokens sparse attention equals dense


def read_architecture(config: Parameters) -> Architecture:
    """Return the architecture that `config`, the content of a config.json, describes.

    Raises DstoolsError where `read_model` does, for a value that is missing or out of range, and
    UnsupportedError for a setting that changes the results and is not implemented.
    """
    model = read_model(config)
    _refuse_unknown_layers(config, model)
    attention = model.attention
    where, parameters = _rope_parameters(config)
    theta, scaling = _number(parameters, "rope_theta"), _scaling(where, parameters)
    if isinstance(attention, MLA):
        dim, is_interleaved = attention.qk_rope_head_dim, config.get("rope_interleave") is not False
        softmax_scale = (attention.qk_nope_head_dim + dim) ** -0.5
        if parameters.get("mscale_all_dim"):  # DeepSeek only: YaRN's temperature on the logits
            mscale = _mscale(parameters["factor"], _number(parameters, "mscale_all_dim", where))
            softmax_scale = softmax_scale * mscale * mscale
    else:
        dim, is_interleaved = attention.head_dim, False
        softmax_scale = dim**-0.5
    if dim % 2 or theta <= 1:
        raise DstoolsError(
            f"config.json: {dim} rotary dimensions of rope_theta {theta:g} do not form pairs", AGAIN
        )
    return Architecture(
        model=model,
        rms_norm_eps=_number(config, "rms_norm_eps"),
        rope=Rope(theta, dim, is_interleaved, scaling),
        softmax_scale=softmax_scale,
        router=None if model.moe is None else _read_router(config, model.moe),
        index_topk=_whole(config, "index_topk") if model.model_type == "deepseek_v32" else None,
    )


def _refuse_unknown_layers(config: Parameters, model: Model) -> None:
    """Raise for activations, windows and orders of layers that the decoder does not implement."""
    if config.get("hidden_act", "silu") != "silu":
        raise _not_implemented("hidden_act", config["hidden_act"], "silu")
    layers = range(model.num_hidden_layers)
    full = "indexed_attention" if model.model_type == "deepseek_v32" else "full_attention"
    types = config.get("layer_types")
    if types not in (None, [full for _ in layers]):
        raise _not_implemented("layer_types", types, f"{full} in every layer")
    if types is None and config.get("use_sliding_window"):
        raise _not_implemented("use_sliding_window", True, "false")
    kinds = config.get("mlp_layer_types")
    if kinds not in (None, ["sparse" if model.is_moe(layer) else "dense" for layer in layers]):
        raise _not_implemented("mlp_layer_types", kinds, "first_k_dense_replace dense layers first")


def _rope_parameters(config: Parameters) -> tuple[str, Parameters]:
    """Return the key, that of releases or of transformers 5, and its values with rope_theta."""
    where = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(where) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise _not_implemented(where, given, "one set for all layers")
    parameters = {key: value for key, value in given.items() if value is not None}
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    partial = parameters.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise _not_implemented("partial_rotary_factor", partial, "1")
    return where, parameters


def _scaling(where: str, parameters: Parameters) -> Linear | Llama3 | Yarn | None:
    def number(key: str) -> float:
        return _number(parameters, key, where)

    def only(*keys: str) -> None:
        unknown = parameters.keys() - {"rope_type", "type", "rope_theta", *keys}
        if unknown:
            key = min(unknown)
            raise _not_implemented(f"{where}.{key}", parameters[key], ", ".join(keys) or "none")

    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        only()
        return None
    if kind == "linear":
        only("factor")
        return Linear(number("factor"))
    if kind == "llama3":
        only("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise DstoolsError(
                f"config.json: {where}.low_freq_factor {low} is not below high_freq_factor {high}",
                AGAIN,
            )
        return Llama3(number("factor"), low, high, number("original_max_position_embeddings"))
    if kind == "yarn":
        only(*YARN_KEYS)
        factor = number("factor")
        if "attention_factor" in parameters:
            attention_factor = number("attention_factor")
        elif parameters.get("mscale") and parameters.get("mscale_all_dim"):
            attention_factor = _mscale(factor, number("mscale"))
            attention_factor /= _mscale(factor, number("mscale_all_dim"))
        else:
            attention_factor = _mscale(factor, 1.0)
        return Yarn(
            factor=factor,
            original_length=number("original_max_position_embeddings"),
            beta_fast=number("beta_fast") if parameters.get("beta_fast") else 32.0,
            beta_slow=number("beta_slow") if parameters.get("beta_slow") else 1.0,
            is_truncated=parameters.get("truncate", True) is not False,
            attention_factor=attention_factor,
        )
    raise _not_implemented(f"{where}.type", kind, "default, linear, llama3, yarn")


def _mscale(factor: float, mscale: float) -> float:
    """Return YaRN's temperature. Source: yarn_get_mscale, DeepSeek-V3's modeling_deepseek.py."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_router(config: Parameters, moe: MoE) -> Router:
    scoring: Literal["sigmoid", "softmax"] = "sigmoid" if moe.has_correction_bias else "softmax"
    methods = ["noaux_tc"] if moe.has_correction_bias else ["greedy", "group_limited_greedy"]
    method = config.get("topk_method", methods[0])  # transformers omits what a class implies
    if method not in methods:
        raise _not_implemented("topk_method", method, " or ".join(methods))
    if config.get("scoring_func", scoring) != scoring:
        raise _not_implemented("scoring_func", config["scoring_func"], scoring)
    norm_topk_prob = bool(config.get("norm_topk_prob", moe.has_correction_bias))
    if norm_topk_prob and not moe.has_correction_bias:
        # transformers never norms in V2, DeepSeek's code norms instead of scaling; no release does
        raise _not_implemented("norm_topk_prob", True, "false")
    n_group = topk_group = 1
    if method != "greedy":
        n_group, topk_group = _whole(config, "n_group"), _whole(config, "topk_group")
    experts, chosen, members = moe.n_routed_experts, moe.num_experts_per_tok, 0
    if experts % n_group == 0 and topk_group <= n_group:
        members = experts // n_group
    ranked = 2 if method == "noaux_tc" and topk_group < n_group else 1  # summed for a group's score
    if members < ranked or chosen > members * topk_group:
        raise DstoolsError(
            f"config.json: {chosen} of {experts} experts cannot be chosen from {topk_group} of "
            f"{n_group} groups",
            "compare num_experts_per_tok, n_routed_experts, topk_group, n_group with the release",
        )
    return Router(
        scoring=scoring,
        topk_method=method,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=_number(config, "routed_scaling_factor"),
    )


def _number(config: Parameters, key: str, inside: str = "") -> float:
    """Return a positive, finite number."""
    value = config.get(key)
    where = f"{inside}.{key}" if inside else key
    if value is None:
        raise DstoolsError(f"config.json: has no {where}", AGAIN)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise DstoolsError(
            f"config.json: {where} is {printable(repr(value))}, not a positive number", AGAIN
        )
    return float(value)


def _whole(config: Parameters, key: str) -> int:
    value = _number(config, key)
    if value != int(value):
        raise DstoolsError(f"config.json: {key} is {value}, not a whole number", AGAIN)
    return int(value)


def _not_implemented(key: str, value: object, known: str) -> UnsupportedError:
    return UnsupportedError(
        f"config.json: {key} {printable(repr(value))} is not implemented", f"implemented: {known}"
    )
