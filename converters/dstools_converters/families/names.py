"""A tensor's name as a structure, and back.

One spelling serves the families we read, that of Hugging Face: `model.layers.L.` and a module path.
Source: DeepSeek-V3 and V3.2 releases, their model.safetensors.index.json; transformers'
modeling_deepseek_v2.py, modeling_llama.py, modeling_qwen2.py, modeling_qwen3.py.
"""

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

Role = Literal[
    "embed_tokens", "norm", "lm_head",
    "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm",
    "q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj",
    "indexer_wq_b", "indexer_wk", "indexer_k_norm", "indexer_weights_proj",
    "dense_gate", "dense_up", "dense_down",
    "router", "e_score_correction_bias",
    "routed_gate", "routed_up", "routed_down",
    "shared_gate", "shared_up", "shared_down",
    "input_layernorm", "post_attention_layernorm",
    "eh_proj", "enorm", "hnorm", "mtp_embed_tokens", "shared_head_norm", "shared_head",
    "kv_cache",
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)

# module path -> role; what stands behind `model.layers.L.`, with {} for the expert's number
_OUTSIDE: dict[str, Role] = {
    "model.embed_tokens": "embed_tokens",
    "model.norm": "norm",
    "lm_head": "lm_head",
}
_INSIDE: dict[str, Role] = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "o_proj",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "self_attn.q_a_proj": "q_a_proj",
    "self_attn.q_a_layernorm": "q_a_layernorm",
    "self_attn.q_b_proj": "q_b_proj",
    "self_attn.kv_a_proj_with_mqa": "kv_a_proj_with_mqa",
    "self_attn.kv_a_layernorm": "kv_a_layernorm",
    "self_attn.kv_b_proj": "kv_b_proj",
    "self_attn.indexer.wq_b": "indexer_wq_b",
    "self_attn.indexer.wk": "indexer_wk",
    "self_attn.indexer.k_norm": "indexer_k_norm",
    "self_attn.indexer.weights_proj": "indexer_weights_proj",
    "mlp.gate_proj": "dense_gate",
    "mlp.up_proj": "dense_up",
    "mlp.down_proj": "dense_down",
    "mlp.gate": "router",
    "mlp.experts.{}.gate_proj": "routed_gate",
    "mlp.experts.{}.up_proj": "routed_up",
    "mlp.experts.{}.down_proj": "routed_down",
    "mlp.shared_experts.gate_proj": "shared_gate",
    "mlp.shared_experts.up_proj": "shared_up",
    "mlp.shared_experts.down_proj": "shared_down",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "eh_proj": "eh_proj",
    "enorm": "enorm",
    "hnorm": "hnorm",
    "embed_tokens": "mtp_embed_tokens",
    "shared_head.norm": "shared_head_norm",
    "shared_head.head": "shared_head",
    "self_attn": "kv_cache",
}  # fmt: skip
_PATHS = {role: path for path, role in (_OUTSIDE | _INSIDE).items()}
_PATHS["e_score_correction_bias"] = "mlp.gate"
# Engines run these as one matrix, so they are quantized together or not at all. Source: vLLM's
# packed_modules_mapping of deepseek_v2.py, llama.py and qwen2.py.
FUSED: tuple[tuple[Role, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("dense_gate", "dense_up"),
    ("routed_gate", "routed_up"),
    ("shared_gate", "shared_up"),
)
PARTS = (
    "weight", "bias", "weight_scale_inv", "weight_scale", "e_score_correction_bias", "k_scale", "v_scale",
)  # fmt: skip


class TensorName(NamedTuple):
    """A parsed name. `str(parse(name)) == name` for every name that parses."""

    role: Role
    part: str  # one of PARTS
    layer: int | None = None
    expert: int | None = None
    is_mtp: bool = False  # a layer behind the last of `num_hidden_layers`

    @property
    def module(self) -> str:
        """Spell the module: the name without its part."""
        path = _PATHS[self.role].format(self.expert)
        return path if self.layer is None else f"model.layers.{self.layer}.{path}"

    def __str__(self) -> str:
        return f"{self.module}.{self.part}"


def parse(name: str, num_hidden_layers: int) -> TensorName | None:
    """Return the structure of a tensor's name, or None for a name that no family of ours has."""
    if not name.startswith("model.layers."):
        module, _, part = name.rpartition(".")
        role = _OUTSIDE.get(module)
        return TensorName(role, part) if role and part in PARTS[:4] else None
    number, _, tail = name[13:].partition(".")
    layer, inside = _natural(number), _parse_inside(tail)
    if layer is None or inside is None:
        return None
    role, part, expert = inside
    return TensorName(role, part, layer, expert, layer >= num_hidden_layers)


@lru_cache(1 << 14)  # the layers of a model repeat each other: V3's 91,991 names end in 1,600 ways
def _parse_inside(tail: str) -> tuple[Role, str, int | None] | None:
    """Return (role, part, expert) of what stands behind `model.layers.L.`."""
    module, _, part = tail.rpartition(".")
    expert = None
    if module.startswith("mlp.experts."):
        number, _, rest = module[12:].partition(".")
        expert, module = _natural(number), f"mlp.experts.{{}}.{rest}"
        if expert is None:
            return None
    role = _INSIDE.get(module)
    if part == "e_score_correction_bias":
        role = "e_score_correction_bias" if role == "router" else None
    if (role == "kv_cache") != (part in ("k_scale", "v_scale")):
        role = None
    return None if role is None or part not in PARTS else (role, part, expert)


@lru_cache(1 << 14)
def _natural(text: str) -> int | None:
    """Return the number that `text` spells the one canonical way: "7", and neither "07" nor "+7"."""
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None
    return number if number is not None and str(number) == text else None
