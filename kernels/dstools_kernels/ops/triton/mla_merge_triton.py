"""Triton twin of `mla_merge`. Statically verified for sm_90a, never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import Config


@triton.jit
def merge_kernel(
    partial_ptr,  # [capacity, H, RANK] float32
    lse_ptr,  # [capacity, H] float32
    offsets_ptr,  # [T + 1]
    out_ptr,  # [T, H, RANK]
    heads,
    capacity,
    RANK: tl.constexpr,
):
    """Join the splits of a token and head, in their order. The grid is tokens x heads."""
    token = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    d = tl.arange(0, RANK)
    first = tl.load(offsets_ptr + token)
    end = tl.load(offsets_ptr + token + 1)
    fits = (end <= capacity).to(tl.int32)
    end = tl.minimum(end, capacity)
    top = tl.full((), float("-inf"), tl.float32)
    at = first.to(tl.int64) * heads + head
    for i in range(end - first):
        top = tl.maximum(top, tl.load(lse_ptr + at + i * heads))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros((), tl.float32)
    out = tl.zeros((RANK,), tl.float32)
    for _ in range(end - first):
        share = tl.exp2(tl.load(lse_ptr + at) - top)  # NaN stays NaN
        total += share
        out += tl.where(share == 0.0, 0.0, share * tl.load(partial_ptr + at * RANK + d))
        at += heads
    out = tl.where(total == 0.0, 0.0, tl.div_rn(out, tl.zeros_like(out) + total))
    out = tl.where(fits == 1, out, float("nan"))
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * RANK + d, out.to(out_ptr.dtype.element_ty))


CONFIGS = {
    "mla_merge/512": Config(
        merge_kernel,
        {
            "partial_ptr": "*fp32",
            "lse_ptr": "*fp32",
            "offsets_ptr": "*i32",
            "out_ptr": "*bf16",
            "heads": "i32",
            "capacity": "i32",
        },
        {"RANK": 512},
        num_warps=2,  # of 4, each thread would store 8 bytes
        unaligned=("heads", "capacity"),
        needs=("LDG.128", "STG.128", "div.rn.f32"),
    )
}


def mla_merge(partial: Tensor, lse: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the definition does; the output is NaN where `offsets` pass the splits."""
    partial, lse = partial.contiguous(), lse.contiguous()
    capacity, heads, rank = partial.shape
    tokens = len(offsets) - 1
    out = partial.new_empty(tokens, heads, rank, dtype=dtype)
    if tokens and heads:
        CONFIGS["mla_merge/512"].launch(
            (tokens * heads,), partial, lse, offsets, out, heads, capacity, RANK=rank
        )
    return out
