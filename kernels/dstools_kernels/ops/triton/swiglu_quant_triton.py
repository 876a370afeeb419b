"""Triton twins of `swiglu` and `swiglu_quant`. Never run on a GPU.

Their exponential is not that of torch: where silu(gate) x up is within an ulp of the middle between
two BF16 numbers, the two may round apart, and a code may be its neighbour.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.act_quant_triton import encode
from dstools_kernels.ops.triton.config import Config

ROWS = 16  # of a program that quantizes
COLUMNS = 1024  # of a program that does not


@triton.jit
def _hidden(gate_ptr, up_ptr, at, mask):
    """Return silu(gate) x up at `at`, rounded to the dtype of the two."""
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=mask, other=0.0).to(tl.float32)
    hidden = tl.div_rn(gate, 1.0 + tl.exp(-gate)) * up
    return hidden.to(gate_ptr.dtype.element_ty)


@triton.jit
def swiglu_kernel(
    gate_ptr,  # [R, columns]
    up_ptr,  # [R, columns]
    out_ptr,  # [R, columns]
    columns,
    COLUMNS: tl.constexpr,
):
    """Compute COLUMNS columns of a row; grid (R, ceil(columns / COLUMNS))."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * columns + column
    mask = column < columns
    tl.store(out_ptr + at, _hidden(gate_ptr, up_ptr, at, mask), mask=mask)


@triton.jit
def swiglu_quant_kernel(
    gate_ptr,  # [rows, columns]
    up_ptr,  # [rows, columns]
    codes_ptr,  # [rows, columns]
    scales_ptr,  # [groups, rows]
    rows,
    columns,
    ROWS: tl.constexpr,
):
    """Compute and quantize ROWS rows of one group of 128 columns; grid (row tiles, groups)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = row[:, None] * columns + column[None, :]
    is_row = row < rows
    is_inside = is_row[:, None] & (column < columns)[None, :]
    codes, scale = encode(_hidden(gate_ptr, up_ptr, at, is_inside).to(tl.float32), False)
    tl.store(codes_ptr + at, codes, mask=is_inside)
    tl.store(scales_ptr + tl.program_id(1).to(tl.int64) * rows + row, scale, mask=is_row)


CONFIGS = {  # products of FP8, which come before, give BF16 alone
    "swiglu_quant/bf16": Config(
        swiglu_quant_kernel,
        {
            "gate_ptr": "*bf16",
            "up_ptr": "*bf16",
            "codes_ptr": "*fp8e4nv",
            "scales_ptr": "*fp32",
            "rows": "i32",
            "columns": "i32",
        },
        {"ROWS": ROWS},
        num_warps=4,
        unaligned=("rows",),
        needs=("LDG.128", "STG.128", "div.rn.f32", "cvt.rn.satfinite.e4m3x2.f32"),
        lacks=("div.full", "div.approx"),
    ),
    "swiglu_quant/plain": Config(
        swiglu_kernel,
        {"gate_ptr": "*bf16", "up_ptr": "*bf16", "out_ptr": "*bf16", "columns": "i32"},
        {"COLUMNS": COLUMNS},
        num_warps=4,
        needs=("LDG.128", "STG.128", "div.rn.f32"),
        lacks=("div.full", "div.approx"),
    ),
}


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) x up [R, I], both BF16."""
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if out.numel():
        rows, columns = gate.shape
        grid = (rows, -(-columns // COLUMNS))
        tensors = (gate.contiguous(), up.contiguous(), out)
        CONFIGS["swiglu_quant/plain"].launch(grid, *tensors, columns)
    return out


def swiglu_quant(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes [R, I] and scales [R, ceil(I / 128)] of silu(gate) x up, both BF16.

    In memory the scales are transposed, so that a GEMM reads those of a tile in one piece.
    """
    rows, columns = gate.shape
    groups = -(-columns // 128)
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=gate.device)
    scales = torch.empty(groups, rows, dtype=torch.float32, device=gate.device)
    if codes.numel():
        tensors = (gate.contiguous(), up.contiguous(), codes, scales)
        CONFIGS["swiglu_quant/bf16"].launch((-(-rows // ROWS), groups), *tensors, rows, columns)
    return codes, scales.T
