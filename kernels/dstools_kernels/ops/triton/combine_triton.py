"""Weighted sum of the rows of a token's experts: float32, in the order of slots, no atomics."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # columns of a program


def combine(y: Tensor, destination: Tensor, weights: Tensor, shared: Tensor | None) -> Tensor:
    """Return the sums [T, D]: the twin of `ops.combine`."""
    y, columns = y.contiguous(), y.shape[-1]
    tokens, slots = destination.shape
    out = y.new_empty(tokens, columns)
    if out.numel():
        kernel[(tokens, triton.cdiv(columns, BLOCK))](
            y, destination.contiguous(), weights.contiguous(),
            out if shared is None else shared.contiguous(), out, columns,
            slots, shared is not None, BLOCK,
        )  # fmt: skip
    return out


@triton.jit
def kernel(
    y_ptr, destination_ptr, weights_ptr, shared_ptr, out_ptr, D,
    SLOTS: tl.constexpr, HAS_SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write some columns of a token; `shared` is read only with HAS_SHARED."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    if HAS_SHARED:
        total = tl.load(shared_ptr + token * D + column, mask=column < D, other=0.0).to(tl.float32)
    for slot in tl.static_range(SLOTS):
        row = tl.load(destination_ptr + token * SLOTS + slot).to(tl.int64)
        weight = tl.where(row >= 0, tl.load(weights_ptr + token * SLOTS + slot), 0.0)
        mask = column < tl.where(row >= 0, D, 0)  # no column of a slot that is left out
        total += weight * tl.load(y_ptr + row * D + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * D + column, total.to(out_ptr.dtype.element_ty), mask=column < D)
