"""Triton twin of `weight_dequant`: bit for bit its definition. Never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import DTYPES, Config


@triton.jit
def weight_dequant_kernel(codes_ptr, scales_ptr, out_ptr, rows, columns):
    """Widen one block of 128 x 128 of a matrix [rows, columns]; grid: the blocks."""
    row = tl.program_id(0).to(tl.int64) * 128 + tl.arange(0, 128)
    column = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = row[:, None] * columns + column[None, :]
    is_inside = (row < rows)[:, None] & (column < columns)[None, :]
    wide = tl.num_programs(1)
    scale = tl.load(scales_ptr + tl.program_id(0).to(tl.int64) * wide + tl.program_id(1))
    values = tl.load(codes_ptr + at, mask=is_inside, other=0.0).to(tl.float32) * scale
    tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty), mask=is_inside)


CONFIGS = {
    f"weight_dequant/{dtype}": Config(
        weight_dequant_kernel,
        {
            "codes_ptr": "*fp8e4nv",
            "scales_ptr": "*fp32",
            "out_ptr": f"*{dtype}",
            "rows": "i32",
            "columns": "i32",
        },
        {},
        num_warps=8,
        unaligned=("rows",),
        needs=("LDG.128", "STG.128"),
    )
    for dtype in DTYPES.values()
}


def weight_dequant(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight [N, K] of `codes` and `scales` as the definition does."""
    rows, columns = codes.shape
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    if out.numel():
        grid = tuple(scales.shape)
        tensors = (codes.contiguous(), scales.contiguous(), out)
        CONFIGS[f"weight_dequant/{DTYPES[dtype]}"].launch(grid, *tensors, rows, columns)
    return out
