"""The accumulator of Hopper's tensor cores, emulated for FP8 products of interpreted kernels.

A Hopper tensor core does not add FP8 products in float32: of each group of 32 and the sum so far
it keeps 13 fractional bits under the largest, and truncates. A kernel has to take the sum out of
the tensor core every 128 of K and add it up in float32 (two-level accumulation); in the plain
interpreter one that does not looks just as good. The emulation is mmaemu's preset `hopper`, which
claims the bits of cuBLAS on an H100 PCIe: it serves for bounds, not for the bits of another card.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmaemu
import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

COLUMNS = 16  # of the product at a time, so that float64 operands stay small


@contextmanager
def hopper_accumulator() -> Iterator[None]:
    """Emulate `tl.dot` of E4M3 with E4M3, its third operand included, in this context."""
    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, c: Any, *options: Any) -> Any:
        if {a.dtype.scalar, b.dtype.scalar} != {tl.float8e4nv}:
            return original(self, a, b, c, *options)
        product = accumulate(_tensor(a), _tensor(b).T, torch.from_numpy(np.array(c.data)))
        return interpreter.TensorHandle(product.numpy(), c.dtype.scalar)

    builder.create_dot = create_dot
    try:
        yield
    finally:
        builder.create_dot = original


def accumulate(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return c + a b^T as the tensor core does: a [M, K] and b [N, K] E4M3, c [M, N] float32."""
    if not c.any():  # the same bits three times as fast
        product: Tensor = mmaemu.accumulate(a, b, use_fast_accum=True, splitk=1)
        return product
    wide_a, wide_b = a.double(), b.double()
    parts = []
    for some, start in zip(torch.split(wide_b, COLUMNS), torch.split(c, COLUMNS, 1), strict=True):
        shape = (len(a), len(some), a.shape[1])
        left, right = wide_a[:, None].expand(shape), some[None].expand(shape)
        part = mmaemu.model.dot(left, right, start.contiguous(), preset="hopper", fmt="e4m3")
        parts.append(part)
    return torch.cat(parts, 1)


def _tensor(handle: Any) -> Tensor:
    return torch.from_numpy(np.array(handle.data)).view(torch.float8_e4m3fn)
