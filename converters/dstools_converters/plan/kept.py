"""Kept weights of an output: the list that names them, and those that must be kept together."""

from collections.abc import Iterator

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES, Format
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import EXPERTS, FUSED, Role, TensorName
from dstools_converters.plan.layout import TensorPlan

# Matrices that are kept by default, and that an engine may take for a linear layer to quantize.
KEPT_MATRICES: frozenset[Role] = frozenset(
    {"lm_head", "router", "eh_proj", "shared_head", "indexer_weights_proj"}
)
FROM_SOURCE = "FP8 in the source"
KEPT_IN_SOURCE = "not FP8 in the source"
FROM_BASE = "FP8 in the base"
KEPT_IN_BASE = "not FP8 in the base"
GIVEN = {FROM_SOURCE, KEPT_IN_SOURCE, FROM_BASE, KEPT_IN_BASE}  # by no rule of the user's


def kept_modules(draft: list[TensorPlan], inventory: Inventory, format: Format) -> tuple[str, ...]:
    """Return the names of the modules that an engine must not take for quantized.

    They come from the tensors alone; a list in the source is not read. DeepSeek's own config.json
    has none: its engines know the roles. Nor has a native output that keeps only what DeepSeek
    keeps, as some engines match the names of the list as parts of longer ones.
    Where all routed experts of a layer are kept, the native list names the module that holds them:
    transformers and TensorRT-LLM look for no other, vLLM and SGLang for either.
    compressed-tensors names each expert, the first of which vLLM looks for.
    """
    kept = [
        parsed
        for tensor, parsed in _weights(draft, inventory)
        if parsed.role in QUANTIZED_ROLES | KEPT_MATRICES and not tensor.target.is_quantized
    ]
    if format == "native" and not any(parsed.role in QUANTIZED_ROLES for parsed in kept):
        return ()
    has_experts = any(parsed.role in EXPERTS[0] for parsed in kept)
    whole = _whole_layers(draft, inventory) if has_experts and format == "native" else set[int]()
    names = dict.fromkeys(_names(kept, inventory, whole))
    if inventory.model.is_tied:
        # no tensor, but a module, which "Linear" and a list that lacks it would quantize
        names |= {"lm_head": None}
    return tuple(names)


def _names(kept: list[TensorName], inventory: Inventory, whole: set[int]) -> Iterator[str]:
    spelling = inventory.model.spelling
    for parsed in kept:
        if parsed.role in EXPERTS[0] and parsed.layer in whole:
            yield spelling.experts_of(parsed.layer)
        else:
            yield spelling.module(parsed)


def _whole_layers(draft: list[TensorPlan], inventory: Inventory) -> set[int]:
    """Return the layers whose routed experts are all kept."""
    layers = {True: set[int](), False: set[int]()}
    for tensor, parsed in _weights(draft, inventory):
        if parsed.role in EXPERTS[0] and parsed.layer is not None:
            layers[tensor.target.is_quantized].add(parsed.layer)
    return layers[False] - layers[True]


def _weights(
    draft: list[TensorPlan], inventory: Inventory
) -> Iterator[tuple[TensorPlan, TensorName]]:
    for tensor in draft:
        parsed = inventory.names[tensor.source.name]
        if parsed is not None and parsed.part == "weight":
            yield tensor, parsed


def check_together(draft: list[TensorPlan], inventory: Inventory) -> None:
    """Raise DstoolsError where weights that engines run as one are not all kept or all quantized.

    Experts that the source or base has so stay so; `verify --engine` says which engines read that.
    """
    units = {role: (roles, False) for roles in FUSED for role in roles}
    experts = {role: (roles, True) for roles in EXPERTS for role in roles}
    seen: dict[tuple[int | None, int | None, tuple[Role, ...]], TensorPlan] = {}
    for tensor, parsed in _weights(draft, inventory):
        for unit in (units.get(parsed.role), experts.get(parsed.role)):
            if unit is None:
                continue
            roles, is_layer = unit
            expert = None if is_layer else parsed.expert
            first = seen.setdefault((parsed.layer, expert, roles), tensor)
            if first.target.is_quantized == tensor.target.is_quantized:
                continue
            if is_layer and {first.rule, tensor.rule} <= GIVEN:
                continue
            kept, quantized = sorted((first, tensor), key=lambda t: t.target.is_quantized)
            kind = "routed" if parsed.role in EXPERTS[0] else "shared"
            module = f"the {kind} experts of a layer as one module"
            what = module if is_layer else "them as one matrix"
            raise DstoolsError(
                f"{kept.source.where}: is kept ({kept.rule}), but {quantized.source.name} is "
                f"quantized ({quantized.rule})",
                f"give {', '.join(roles)} one rule: engines run {what}",
            )
