"""Triton twin of `weight_quant`: byte for byte its definition. Never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.fp8 import AMAX_FLOOR
from dstools_kernels.ops.triton.act_quant_triton import scale_of
from dstools_kernels.ops.triton.config import DTYPES, Config

FLOOR = tl.constexpr(AMAX_FLOOR["float32"])


@triton.jit
def weight_quant_kernel(w_ptr, codes_ptr, scales_ptr, rows, columns):
    """Quantize one block of 128 x 128 of a matrix [rows, columns]; grid: the blocks."""
    row = tl.program_id(0).to(tl.int64) * 128 + tl.arange(0, 128)
    column = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = row[:, None] * columns + column[None, :]
    is_inside = (row < rows)[:, None] & (column < columns)[None, :]
    w = tl.load(w_ptr + at, mask=is_inside, other=0.0).to(tl.float32)
    has_nan = tl.max(tl.max((w != w).to(tl.int32), 1), 0) > 0
    scale = scale_of(tl.max(tl.max(tl.abs(w), 1), 0), has_nan, FLOOR, False)
    codes = tl.div_rn(w, tl.broadcast_to(scale, w.shape)).to(tl.float8e4nv)
    tl.store(codes_ptr + at, codes, mask=is_inside)
    wide = tl.num_programs(1)
    tl.store(scales_ptr + tl.program_id(0).to(tl.int64) * wide + tl.program_id(1), scale)


CONFIGS = {
    f"weight_quant/{dtype}": Config(
        weight_quant_kernel,
        {
            "w_ptr": f"*{dtype}",
            "codes_ptr": "*fp8e4nv",
            "scales_ptr": "*fp32",
            "rows": "i32",
            "columns": "i32",
        },
        {},
        num_warps=8,
        unaligned=("rows",),
        needs=("LDG.128", "STG.128", "div.rn.f32", "cvt.rn.satfinite.e4m3x2.f32"),
        lacks=("div.full", "div.approx"),
    )
    for dtype in DTYPES.values()
}


def weight_quant(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `weight` [N, K] as the definition does; F16 is widened first."""
    weight = (weight if weight.dtype in DTYPES else weight.float()).contiguous()
    rows, columns = weight.shape
    grid = (-(-rows // 128), -(-columns // 128))
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(grid, dtype=torch.float32, device=weight.device)
    if codes.numel():
        config = CONFIGS[f"weight_quant/{DTYPES[weight.dtype]}"]
        config.launch(grid, weight, codes, scales, rows, columns)
    return codes, scales
