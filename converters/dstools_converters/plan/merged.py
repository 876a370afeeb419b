"""Weights that engines merge into one matrix, whose scales stay right only on whole blocks."""

import json
from collections.abc import Iterator

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.errors import Finding, printable
from dstools_converters.families.names import EXPERTS, FUSED, Role
from dstools_converters.families.shapes import MLA, Model
from dstools_converters.plan.plan import Plan

BUT_LAST: frozenset[Role] = frozenset(role for roles in FUSED for role in roles[:-1])


def is_followed_inside_a_block(model: Model, role: Role, out: int, rows: int) -> bool:
    """Return whether another weight is merged to one of `out` rows, and not on a block of `rows`.

    The last of a merged matrix may end anywhere, and MLA's q_proj is a matrix of its own.
    """
    is_alone = role == "q_proj" and isinstance(model.attention, MLA)
    return role in BUT_LAST and not is_alone and out % rows > 0


def keeping(*roles: Role) -> str:
    """Return a recipe of one line that keeps these roles and those that must be kept with them."""
    together = [group for group in (*EXPERTS, *FUSED) if set(group) & set(roles)]
    named = dict.fromkeys([role for group in together for role in group] + list(roles))
    return f'rule = [{{ role = {json.dumps(list(named))}, scheme = "keep" }}]'


def check_merged(plan: Plan) -> Iterator[Finding]:
    """Yield one warning where merged weights of the output do not end on blocks."""
    if plan.scheme is None:
        return
    rows = plan.scheme.block_size[0]
    ragged: dict[Role, TensorInfo] = {}
    for tensor in plan.decisions:
        parsed, info = plan.inventory.names[tensor.source.name], tensor.source
        if parsed is None or parsed.part != "weight" or not tensor.target.is_quantized:
            continue
        if is_followed_inside_a_block(plan.inventory.model, parsed.role, info.shape[0], rows):
            ragged.setdefault(parsed.role, info)
    if ragged:
        info = next(iter(ragged.values()))
        yield Finding.warning(
            "merged",
            printable(info.name),
            f"its {info.shape[0]} rows are not whole blocks of {rows}, and engines merge it with "
            f"other weights: vLLM and SGLang refuse or misread such {', '.join(ragged)}",
            f"for these engines use a recipe with {keeping(*ragged)}",
        )
