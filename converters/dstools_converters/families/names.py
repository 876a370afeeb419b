"""Names of tensors: a structure that all families share, and the spellings of a family.

A `Spelling` parses a name into a TensorName and spells it again. The families read so far share
one, that of Hugging Face: `model.layers.L.` and a module path. `Model.spelling` chooses it.
Source: DeepSeek-V3 and V3.2 releases, their model.safetensors.index.json; transformers'
modeling_deepseek_v2.py, modeling_llama.py, modeling_qwen2.py, modeling_qwen3.py.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
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

# Engines run these as one matrix, so they are quantized together or not at all. Source: vLLM's
# packed_modules_mapping of deepseek_v2.py, llama.py and qwen2.py.
FUSED: tuple[tuple[Role, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("dense_gate", "dense_up"),
    ("routed_gate", "routed_up"),
    ("shared_gate", "shared_up"),
)
# Engines run all experts of a layer as one module, so this holds for all weights of these roles in
# a layer: one kept expert and the module is unquantized. Source: vLLM 0.32, RoutedExperts; SGLang
# 0.5.23, FusedMoE, and its DeepseekV2MLP of the shared experts.
EXPERTS: tuple[tuple[Role, ...], ...] = (
    ("routed_gate", "routed_up", "routed_down"),
    ("shared_gate", "shared_up", "shared_down"),
)
INPUT_SCALES = ("input_scale", "activation_scale")  # static, of the inputs of a module
# of attention, for an FP8 KV cache. Source: vLLM's maybe_remap_kv_scale_name and
# get_cache_scale_mapper, which read the spellings of AutoFP8, ModelOpt, compressed-tensors, Quark
CACHE_SCALES = (
    "k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale", "k_zero_point", "v_zero_point",
    "attn.k_scale", "attn.v_scale", "attn.q_scale", "attn.prob_scale",
    "k_proj.k_scale", "v_proj.v_scale", "qkv_proj.k_scale", "qkv_proj.v_scale",
    "q_proj.output_scale", "k_proj.output_scale", "v_proj.output_scale", "prob_output_scale",
)  # fmt: skip
# of modules in no layer
OUTSIDE_PARTS = ("weight", "bias", "weight_scale_inv", "weight_scale", *INPUT_SCALES)
INSIDE_PARTS = (*OUTSIDE_PARTS, "e_score_correction_bias")
PARTS = (*INSIDE_PARTS, *CACHE_SCALES)


class TensorName(NamedTuple):
    """A parsed name."""

    role: Role
    part: str  # one of PARTS
    layer: int | None = None
    expert: int | None = None
    is_mtp: bool = False  # of a layer after the last of `num_hidden_layers`

    @property
    def is_activation_scale(self) -> bool:
        """Return whether it scales activations: the inputs of a module, or a KV cache."""
        return self.role == "kv_cache" or self.part in INPUT_SCALES


@dataclass(frozen=True, eq=False)
class Spelling:
    """How a family spells names; `spell(parse(name)) == name` for every name that parses."""

    outside: dict[str, Role]  # module path -> role
    layers: str  # what precedes the number of a layer
    inside: dict[str, Role]  # module path after the number -> role; {} is the expert's number
    experts: str  # what precedes the number of an expert

    @cached_property
    def _paths(self) -> dict[Role, str]:
        paths = {role: path for path, role in (self.outside | self.inside).items()}
        return paths | {"e_score_correction_bias": paths["router"]}

    def layer(self, layer: int) -> str:
        """Return the path of a layer."""
        return f"{self.layers}{layer}"

    def experts_of(self, layer: int) -> str:
        """Return the path of the module that holds all routed experts of a layer."""
        return f"{self.layer(layer)}.{self.experts.removesuffix('.')}"

    def path(self, name: TensorName) -> str:
        """Return the path of a module inside its layer, or of one outside the layers."""
        return self._paths[name.role].format(name.expert)

    def module(self, name: TensorName) -> str:
        """Return the path of a module: the name of the tensor without its part."""
        path = self.path(name)
        return path if name.layer is None else f"{self.layer(name.layer)}.{path}"

    def spell(self, name: TensorName) -> str:
        """Return the name of a tensor as text."""
        return f"{self.module(name)}.{name.part}"

    def parse(self, text: str, num_hidden_layers: int) -> TensorName | None:
        """Return the structure of a tensor's name, or None for a name that the family lacks."""
        if not text.startswith(self.layers):
            module, _, part = text.rpartition(".")
            role = self.outside.get(module)
            return TensorName(role, part) if role and part in OUTSIDE_PARTS else None
        number, _, tail = text[len(self.layers) :].partition(".")
        layer, inside = _natural(number), _parse_inside(self, tail)
        if layer is None or inside is None:
            return None
        role, part, expert = inside
        return TensorName(role, part, layer, expert, layer >= num_hidden_layers)


@lru_cache(1 << 14)  # layers repeat each other: V3's 91,991 names have 1,600 different tails
def _parse_inside(spelling: Spelling, tail: str) -> tuple[Role, str, int | None] | None:
    """Return (role, part, expert) of `tail`, the name after the number of its layer."""
    module, _, part = tail.partition(".")
    if spelling.inside.get(module) == "kv_cache" and part in CACHE_SCALES:
        return "kv_cache", part, None
    module, _, part = tail.rpartition(".")
    expert = None
    if module.startswith(spelling.experts):
        number, _, rest = module[len(spelling.experts) :].partition(".")
        expert, module = _natural(number), f"{spelling.experts}{{}}.{rest}"
        if expert is None:
            return None
    role = spelling.inside.get(module)
    if part == "e_score_correction_bias":
        role = "e_score_correction_bias" if role == "router" else None
    if role is None or role == "kv_cache" or part not in INSIDE_PARTS:
        return None
    return role, part, expert


@lru_cache(1 << 14)
def _natural(text: str) -> int | None:
    """Return the number that `text` spells in canonical form: "7", but not "07" or "+7"."""
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None
    return number if number is not None and str(number) == text else None


HUGGING_FACE = Spelling(
    outside={"model.embed_tokens": "embed_tokens", "model.norm": "norm", "lm_head": "lm_head"},
    layers="model.layers.",
    inside={
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
    },
    experts="mlp.experts.",
)
