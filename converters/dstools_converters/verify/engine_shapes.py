"""Shapes of block FP8 that vLLM, SGLang and TensorRT-LLM refuse, or load and misread.

An engine fuses weights with the same input, and cuts the result by tensor parallelism; scales stay
right only where each part begins on a block. Seen by running vLLM 0.32 and SGLang 0.5.23 on a CPU,
with tiny models of such shapes. Read in their sources: what other versions do, and TensorRT-LLM.
Sources: vLLM, fp8_utils.py (validate_fp8_block_shape) and linear.py
(_maybe_allow_fp8_block_shape_mismatch); SGLang, fp8.py, sgl-project/sglang#3345.
"""

from collections.abc import Callable, Iterator
from math import gcd
from typing import Literal, NamedTuple

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding
from dstools_converters.families.names import FUSED, Role
from dstools_converters.families.shapes import MLA
from dstools_converters.plan.merged import is_followed_inside_a_block, keeping

BlockEngine = Literal["vllm", "sglang", "trtllm"]

# How tensor parallelism cuts a weight [out, in]: its rows, its columns, or not at all.
CUT_ROWS: frozenset[Role] = frozenset({
    "q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "dense_gate", "dense_up",
    "routed_gate", "routed_up", "shared_gate", "shared_up",
})  # fmt: skip
CUT_COLUMNS: frozenset[Role] = frozenset({"o_proj", "dense_down", "routed_down", "shared_down"})
ROUTED: frozenset[Role] = frozenset({"routed_gate", "routed_up", "routed_down"})
MERGED: frozenset[Role] = frozenset(role for roles in FUSED for role in roles)
LEAST_REFINED = 32  # vLLM, the smallest block that its Triton MoE kernel takes


class Fault(NamedTuple):
    """Why an engine cannot run a weight."""

    message: str
    is_cut: bool = False  # by tensor parallelism, so that another --tp may help


def check_shapes(inventory: Inventory, engine: BlockEngine, tp: int) -> Iterator[Finding]:
    """Yield the shapes that `engine` on `tp` GPUs cannot run, one finding for each role."""
    refined = _refined_block(inventory, tp) if engine == "vllm" else 0

    def fault(role: Role, info: TensorInfo) -> Fault | None:
        if refined and role in ROUTED:
            return None
        return _fault(inventory, engine, tp, role, info)

    for role, infos, shape in by_role(inventory, fault):
        keep = f"quantize from BF16 with a recipe that keeps it: {keeping(role)}"
        yield Finding.error(
            "engine-shape",
            infos[0].where,
            shape.message + and_more(infos),
            f"choose a --tp that divides the blocks, or {keep}" if shape.is_cut else keep,
        )
    if refined:
        yield from _note_refined(inventory, tp, refined)


def _fault(
    inventory: Inventory, engine: BlockEngine, tp: int, role: Role, info: TensorInfo
) -> Fault | None:
    """Return why `engine` cannot run the weight `info` [out, in], None where it can."""
    model, scheme = inventory.model, inventory.scheme
    assert scheme is not None
    (rows, cols), (out, inputs) = scheme.block_size, info.shape
    if role in CUT_COLUMNS and tp > 1 and inputs % (tp * cols):
        return Fault(
            f"{engine} refuses it: its {inputs} columns cut in {tp} do not end on blocks of {cols}",
            is_cut=True,
        )
    parts = tp
    if role in ("k_proj", "v_proj") and not isinstance(model.attention, MLA):
        parts = min(tp, model.attention.num_kv_heads)  # fewer heads than GPUs: they are repeated
    verdict = _verdict(inventory, engine, role)
    if role in CUT_ROWS and tp > 1 and out % (parts * rows):
        message = f"{verdict}: its {out} rows cut in {parts} do not end on blocks of {rows}"
        return Fault(message, is_cut=True)
    if is_followed_inside_a_block(model, role, out, rows):
        message = f"its {out} rows do not end on a block of {rows}, and another weight follows it"
        return Fault(f"{verdict}: {message}")
    return None


def _verdict(inventory: Inventory, engine: BlockEngine, role: Role) -> str:
    """Return what `engine` does with ragged rows of a weight of this role."""
    scheme, is_mla = inventory.scheme, isinstance(inventory.model.attention, MLA)
    assert scheme is not None
    is_merged = role in MERGED and not (role == "q_proj" and is_mla)
    if engine == "vllm" and scheme.format == "native" and is_merged and role not in ROUTED:
        return (
            "vLLM 0.14 and later loads it and reads scales from the wrong rows, silently (seen in "
            "0.32, vllm-project/vllm#52997; 0.13 refuses it)"
        )
    if engine == "sglang" and role == "q_a_proj":
        return (
            "SGLang loads it and reads the scales of kv_a_proj_with_mqa from the wrong rows, "
            "silently (seen in 0.5.23)"
        )
    return f"{engine} refuses it"


def _refined_block(inventory: Inventory, tp: int) -> int:
    """Return the side of the smaller blocks that vLLM makes of those of cut routed experts, or 0.

    vLLM 0.29 and later (0.26 refuses) repeats the scales of native FP8 for blocks of the greatest
    common divisor with the part, from 32 on. Experts whose own rows end inside a block still fail.
    """
    model, scheme = inventory.model, inventory.scheme
    assert scheme is not None
    rows, cols = scheme.block_size
    if model.moe is None or scheme.format != "native":
        return 0
    size = model.moe.intermediate_size
    if size % (tp * rows) == 0 or size % tp or size % rows or size % cols:
        return 0
    block = gcd(rows, cols, size // tp, model.hidden_size)
    return block if block >= LEAST_REFINED else 0


def _note_refined(inventory: Inventory, tp: int, block: int) -> Iterator[Finding]:
    for name in inventory.quantized():
        parsed, info = inventory.names[name], inventory.tensors[name]
        if parsed is not None and parsed.role == "routed_gate":
            yield Finding.note(
                "engine-refined",
                info.where,
                f"its {info.shape[0]} rows cut in {tp} need blocks of {block}, which vLLM 0.29 and "
                "later makes of the scales of routed experts (seen in 0.32 on a CPU; on CUDA only "
                "its Triton MoE kernel takes them); 0.26 refuses it",
            )
            return


def by_role(
    inventory: Inventory, fault: Callable[[Role, TensorInfo], Fault | None]
) -> Iterator[tuple[Role, list[TensorInfo], Fault]]:
    """Yield role, quantized weights and fault for each role and fault, in order of the first."""
    faulty: dict[tuple[Role, Fault], list[TensorInfo]] = {}
    for name in inventory.quantized():
        parsed, info = inventory.names[name], inventory.tensors[name]
        if parsed is not None and (reason := fault(parsed.role, info)) is not None:
            faulty.setdefault((parsed.role, reason), []).append(info)
    for (role, reason), infos in faulty.items():
        yield role, infos, reason


def and_more(infos: list[TensorInfo]) -> str:
    """Return the number of tensors after the first, as text that ends a message."""
    return f" (and {len(infos) - 1} more like it)" if len(infos) > 1 else ""
