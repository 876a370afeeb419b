"""Roles of weights: those that engines read in high precision, and those that belong together."""

from collections import defaultdict
from collections.abc import Iterator

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES
from dstools_converters.checkpoint.storage import CODE_DTYPES, FLOATS
from dstools_converters.errors import Finding, printable
from dstools_converters.families.names import EXPERTS, FUSED, Role, TensorName


def check_roles(inventory: Inventory) -> Iterator[Finding]:
    """Yield FP8 weights that engines do not read as FP8, and a router bias of low precision."""
    for info, parsed in _known(inventory):
        is_weight = parsed.part == "weight"
        if is_weight and parsed.role not in QUANTIZED_ROLES and info.dtype not in FLOATS:
            yield Finding.error(
                "role-quantized",
                info.where,
                f"is {info.dtype}; engines read {parsed.role} in high precision only",
                "take it in BF16 from the model that this one was made from",
            )
        if parsed.role == "e_score_correction_bias" and info.dtype != "F32":
            yield Finding.warning(
                "router-bias",
                info.where,
                f"is {info.dtype}; DeepSeek ships F32, and less precision changes the experts",
            )


def check_fused(inventory: Inventory) -> Iterator[Finding]:
    """Yield weights that engines run as one matrix, of which some are FP8 and some are not."""
    number_of = {role: number for number, roles in enumerate(FUSED) for role in roles}
    groups: defaultdict[tuple[int | None, int | None, int], list[TensorInfo]] = defaultdict(list)
    for info, parsed in _known(inventory):
        number = number_of.get(parsed.role)
        if parsed.part == "weight" and number is not None:
            groups[parsed.layer, parsed.expert, number].append(info)
    for (_, _, number), infos in groups.items():
        fp8 = [printable(info.name) for info in infos if info.dtype in CODE_DTYPES]
        kept = [info for info in infos if info.dtype not in CODE_DTYPES]
        if fp8 and kept:
            yield Finding.error(
                "fused-apart",
                kept[0].where,
                f"is {kept[0].dtype}, {', '.join(fp8)} FP8; engines run them as one matrix",
                'quantize this folder with a recipe whose rule is scheme = "fp8-block" for '
                f"{', '.join(FUSED[number])}",
            )


def check_experts(inventory: Inventory, engine: str) -> Iterator[Finding]:
    """Yield layers whose experts are partly FP8 and partly not, which the engine runs as one.

    Routed experts: vLLM 0.32 raises KeyError (w13_weight_scale_inv) or "All MoE projections need to
    have same quantization scheme", SGLang 0.5.23 raises AttributeError or answers nonsense (both
    seen); TensorRT-LLM: NVIDIA/Model-Optimizer#1979 (read). Shared experts: SGLang alone (seen).
    """
    for roles in EXPERTS if engine == "sglang" else EXPERTS[:1]:
        apart = list(layers_apart(inventory, roles).values())
        if apart:
            kept, fp8 = apart[0][False], apart[0][True]
            more = f" (and in {len(apart) - 1} more layers)" if len(apart) > 1 else ""
            yield Finding.error(
                "experts-apart",
                kept.where,
                f"is {kept.dtype}, {printable(fp8.name)} FP8{more}; {engine} runs the "
                f"{roles[0].removesuffix('_gate')} experts of a layer as one module",
                f"quantize again from BF16 with one rule for {', '.join(roles)}",
            )


def layers_apart(
    inventory: Inventory, roles: tuple[Role, ...]
) -> dict[int | None, dict[bool, TensorInfo]]:
    """Return a kept and an FP8 weight of each layer that has both among these roles.

    The inner keys say whether the weight is FP8.
    """
    layers: defaultdict[int | None, dict[bool, TensorInfo]] = defaultdict(dict)
    for info, parsed in _known(inventory):
        if parsed.part == "weight" and parsed.role in roles:
            layers[parsed.layer].setdefault(info.dtype in CODE_DTYPES, info)
    return {layer: infos for layer, infos in layers.items() if len(infos) == 2}


def _known(inventory: Inventory) -> Iterator[tuple[TensorInfo, TensorName]]:
    """Yield the tensors that have a role."""
    for name, parsed in inventory.names.items():
        if parsed is not None:
            yield inventory.tensors[name], parsed
