"""The settings of DeepSeek's inference code, from a model's config.json.

That code has a number of them fixed, or no word for a setting at all. A model that it would run
with other results is refused; one that it would refuse itself is not, as a line of it can be
edited.
Source: deepseek-ai/DeepSeek-V3 at 9b4e978, inference/{model.py, configs/*.json}.
"""

from collections.abc import Iterator
from typing import Any

from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.errors import UnsupportedError, printable
from dstools_converters.families.shapes import MLA
from dstools_converters.model.architecture import Architecture, Yarn

RMS_NORM_EPS = 1e-6  # RMSNorm
MAX_SEQ_LEN = 4096 * 4  # ModelArgs: positions that its cache has
BIAS_DIM = 7168  # Gate has a bias where the model has this hidden size, and there alone
CONFIG_NAME = "inference_config.json"


def inference_config(
    architecture: Architecture, config: dict[str, Any], scheme: QuantScheme | None
) -> dict[str, Any]:
    """Return the fields of ModelArgs that run this model, of DeepSeek's V2 or V3.

    Raises UnsupportedError where DeepSeek's code computes other logits from any settings.
    """
    for key, value, fixed in _other_results(architecture):
        raise UnsupportedError(
            f"config.json: {key} {printable(repr(value))} is not what DeepSeek's inference code "
            f"computes, {fixed}",
            "its logits would differ; `dstools generate` and export as ONNX take this model",
        )
    model, router = architecture.model, architecture.router
    assert isinstance(model.attention, MLA)
    assert model.moe is not None
    assert router is not None
    quantization: dict[str, Any] = {"dtype": "fp8" if scheme else "bf16"}
    if scheme is not None and scheme.scale_format == "ue8m0":
        quantization["scale_fmt"] = "ue8m0"
    return {
        "vocab_size": model.vocab_size,
        "dim": model.hidden_size,
        "inter_dim": model.intermediate_size,
        "moe_inter_dim": model.moe.intermediate_size,
        "n_layers": model.num_hidden_layers,
        "n_dense_layers": model.moe.first_k_dense_replace,
        "n_heads": model.attention.num_heads,
        "n_routed_experts": model.moe.n_routed_experts,
        "n_shared_experts": model.moe.n_shared_experts,
        "n_activated_experts": model.moe.num_experts_per_tok,
        "n_expert_groups": router.n_group,
        "n_limited_groups": router.topk_group,
        "score_func": router.scoring,
        "route_scale": router.routed_scaling_factor,
        "q_lora_rank": model.attention.q_lora_rank or 0,
        "kv_lora_rank": model.attention.kv_lora_rank,
        "qk_nope_head_dim": model.attention.qk_nope_head_dim,
        "qk_rope_head_dim": model.attention.qk_rope_head_dim,
        "v_head_dim": model.attention.v_head_dim,
        **_positions(architecture, config),
        **quantization,
    }


def _positions(architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of positions. Theirs are scaled if max_seq_len is above the original."""
    rope = architecture.rope
    positions = min(int(config.get("max_position_embeddings", MAX_SEQ_LEN)), MAX_SEQ_LEN)
    if rope.scaling is None:
        return {"max_seq_len": positions, "original_seq_len": positions, "rope_theta": rope.theta}
    assert isinstance(rope.scaling, Yarn)
    original = int(rope.scaling.original_length)
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return {
        "max_seq_len": max(positions, original + 1),
        "original_seq_len": original,
        "rope_theta": rope.theta,
        "rope_factor": rope.scaling.factor,
        "beta_fast": rope.scaling.beta_fast,
        "beta_slow": rope.scaling.beta_slow,
        "mscale": float(given.get("mscale_all_dim") or 0),  # 0: its factor on the logits is 1
    }


def _other_results(architecture: Architecture) -> Iterator[tuple[str, object, str]]:
    """Yield (key, value, what DeepSeek's code does) of all that it cannot be told."""
    model, rope, router = architecture.model, architecture.rope, architecture.router
    if architecture.rms_norm_eps != RMS_NORM_EPS:
        yield "rms_norm_eps", architecture.rms_norm_eps, f"which has {RMS_NORM_EPS}"
    if not rope.is_interleaved:
        yield "rope_interleave", False, "which turns neighbours"
    if rope.scaling is not None and not isinstance(rope.scaling, Yarn):
        yield "rope_scaling", type(rope.scaling).__name__.lower(), "which has YaRN"
    if isinstance(rope.scaling, Yarn):
        if not rope.scaling.is_truncated:
            yield "rope_scaling.truncate", False, "which rounds the ramp to whole dimensions"
        if rope.scaling.attention_factor != 1:
            yield (
                "rope_scaling.attention_factor",
                rope.scaling.attention_factor,
                "which has 1: mscale equal to mscale_all_dim",
            )
    if model.moe is None or router is None:
        yield "n_routed_experts", None, "which has experts"
        return
    if not model.moe.n_shared_experts:
        yield "n_shared_experts", 0, "which has one or more"
    if model.moe.layer_freq != 1:
        yield "moe_layer_freq", model.moe.layer_freq, "which has 1"
    if router.norm_topk_prob != (router.scoring == "sigmoid"):
        yield "norm_topk_prob", router.norm_topk_prob, f"which norms {router.scoring} otherwise"
    if isinstance(model.attention, MLA) and model.attention.bias:
        yield "attention_bias", True, "which has none"


def refused_by_loader(architecture: Architecture) -> str:
    """Return why DeepSeek's loader refuses the shards of this model as its code is, or ""."""
    model = architecture.model
    if model.moe is None or model.moe.has_correction_bias == (model.hidden_size == BIAS_DIM):
        return ""
    wanted = "needs" if model.moe.has_correction_bias else "must not have"
    return (
        f"Gate in DeepSeek's model.py has a bias at dim {BIAS_DIM} alone; this model, of dim "
        f"{model.hidden_size}, {wanted} one: edit that line"
    )
