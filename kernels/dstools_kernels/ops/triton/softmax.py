"""The online softmax of attention twins: the keys of a query a block at a time, in one pass."""

import math

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # a hidden score; -inf - -inf is NaN
LOG2_E = tl.constexpr(math.log2(math.e))  # exp(x) is exp2(x log2 e), which is what a GPU has


@triton.jit
def add_block(scores, values, top, total, out):
    """Return the largest score, the sum of exp2 and of its products, with one more block of keys.

    `scores` [rows, keys] float32 are in units of log2, `values` [keys, columns] BF16.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp2(top - new_top)
    shares = tl.exp2(scores - new_top[:, None])
    total = total * shrink + tl.sum(shares, 1)
    out = tl.dot(shares.to(tl.bfloat16), values, out * shrink[:, None])
    return new_top, total, out
