"""Triton twin of `combine`: float32, in the order of slots, no atomics. Never run on a GPU."""

import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import DTYPES, Config

BLOCK = 1024  # columns of a program
SLOTS = 8  # of a token, of what is compiled ahead of time


@triton.jit
def combine_kernel(
    y_ptr,  # [R, D]
    destination_ptr,  # [T, SLOTS] int32
    weights_ptr,  # [T, SLOTS] float32
    out_ptr,  # [T, D]
    D,
    shared_ptr,  # [T, D] or None
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write BLOCK columns of a token; grid (T, ceil(D / BLOCK))."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    if shared_ptr is not None:
        total = tl.load(shared_ptr + token * D + column, mask=column < D, other=0.0).to(tl.float32)
    for slot in tl.static_range(SLOTS):
        row = tl.load(destination_ptr + token * SLOTS + slot).to(tl.int64)
        weight = tl.where(row >= 0, tl.load(weights_ptr + token * SLOTS + slot), 0.0)
        mask = column < tl.where(row >= 0, D, 0)  # no column of a slot that is left out
        total += weight * tl.load(y_ptr + row * D + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * D + column, total.to(out_ptr.dtype.element_ty), mask=column < D)


def _config(dtype: str, has_shared: bool) -> Config:
    pointers = {"y_ptr": f"*{dtype}", "destination_ptr": "*i32", "weights_ptr": "*fp32"}
    shared = {"shared_ptr": f"*{dtype}"} if has_shared else {}
    return Config(
        combine_kernel,
        {**pointers, "out_ptr": f"*{dtype}", "D": "i32", **shared},
        {"SLOTS": SLOTS, "BLOCK": BLOCK, **({} if has_shared else {"shared_ptr": None})},
        num_warps=4,
        needs=("LDG.128", "STG.128"),
    )


def _name(dtype: str, has_shared: bool) -> str:
    return f"combine/{dtype}{'.shared' if has_shared else ''}"


CONFIGS = {
    _name(dtype, has_shared): _config(dtype, has_shared)
    for dtype in DTYPES.values()
    for has_shared in (False, True)
}


def combine(y: Tensor, destination: Tensor, weights: Tensor, shared: Tensor | None) -> Tensor:
    """Return the sums [T, D] as the definition does."""
    y, columns = y.contiguous(), y.shape[-1]
    tokens, slots = destination.shape
    out = y.new_empty(tokens, columns)
    if out.numel():
        config = CONFIGS[_name(DTYPES[y.dtype], shared is not None)]
        tensors = (y, destination.contiguous(), weights.contiguous(), out)
        more = () if shared is None else (shared.contiguous(),)
        grid = (tokens, -(-columns // BLOCK))
        config.launch(grid, *tensors, columns, *more, SLOTS=slots)
    return out
