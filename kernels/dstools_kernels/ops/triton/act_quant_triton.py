"""Triton twin of `act_quant`: byte for byte its definition. Never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.fp8 import ScaleFormat
from dstools_kernels.ops.act_quant import AMAX_FLOOR
from dstools_kernels.ops.triton.config import DTYPES, Config

ROWS = 16  # of a program
FLOOR = tl.constexpr(AMAX_FLOOR)


@triton.jit
def scale_of(amax, has_nan, FLOOR: tl.constexpr, POWERS: tl.constexpr):
    """Return float32 max(amax, FLOOR) / 448, or the least power of two above; NaN for NaN.

    `tl.max` ignores NaN, so that it comes apart from amax. div_rn is IEEE division, which `/` is
    not on a GPU.
    """
    scale = tl.div_rn(tl.maximum(amax, FLOOR), 448.0)
    if POWERS:
        bits = scale.to(tl.int32, bitcast=True)
        power = (bits & 0x7F800000) + ((bits & 0x7FFFFF) != 0).to(tl.int32) * 0x800000
        scale = tl.where(amax < float("inf"), power.to(tl.float32, bitcast=True), scale)
    return tl.where(has_nan, float("nan"), scale)


@triton.jit
def encode(x, POWERS: tl.constexpr):
    """Return E4M3 codes and float32 scales of `x` float32 [rows, 128], a scale a row."""
    scale = scale_of(tl.max(tl.abs(x), 1), tl.max((x != x).to(tl.int32), 1) > 0, FLOOR, POWERS)
    return tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)).to(tl.float8e4nv), scale


@triton.jit
def act_quant_kernel(
    x_ptr,  # [tokens, columns]
    codes_ptr,  # [rows, columns]
    scales_ptr,  # [rows, groups], its elements at row * row_step + group * group_step
    tokens,
    rows,
    columns,
    row_step,
    group_step,
    rows_ptr,  # [rows] int32, which token each row is; None: as they come
    POWERS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Quantize ROWS rows of one group of 128 columns; grid (ceil(rows / ROWS), groups)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    column = group * 128 + tl.arange(0, 128)
    is_row = row < rows
    token = row
    is_token = is_row
    if rows_ptr is not None:
        token = tl.load(rows_ptr + row, mask=is_row, other=-1).to(tl.int64)
        is_token = (token >= 0) & (token < tokens)
    is_column = (column < columns)[None, :]
    at = token[:, None] * columns + column[None, :]
    x = tl.load(x_ptr + at, mask=is_token[:, None] & is_column, other=0.0).to(tl.float32)
    codes, scale = encode(x, POWERS)
    at = row[:, None] * columns + column[None, :]
    tl.store(codes_ptr + at, codes, mask=is_row[:, None] & is_column)
    at = row * row_step + group.to(tl.int64) * group_step
    tl.store(scales_ptr + at, scale, mask=is_row)


def _config(dtype: str, scale_format: ScaleFormat, has_rows: bool) -> Config:
    pointers = {"x_ptr": f"*{dtype}", "codes_ptr": "*fp8e4nv", "scales_ptr": "*fp32"}
    sizes = dict.fromkeys(("tokens", "rows", "columns", "row_step", "group_step"), "i32")
    return Config(
        act_quant_kernel,
        {**pointers, **sizes, **({"rows_ptr": "*i32"} if has_rows else {})},
        {
            "POWERS": scale_format == "ue8m0",
            "ROWS": ROWS,
            **({} if has_rows else {"rows_ptr": None}),
        },
        num_warps=4,
        unaligned=("tokens", "rows", "row_step", "group_step"),
        needs=("LDG.128", "STG.128", "div.rn.f32", "cvt.rn.satfinite.e4m3x2.f32"),
        lacks=("div.full", "div.approx"),
    )


CONFIGS = {
    f"act_quant/{dtype}.{scale_format}{'.rows' if has_rows else ''}": _config(
        dtype, scale_format, has_rows
    )
    for dtype in DTYPES.values()
    for scale_format in ("float32", "ue8m0")
    for has_rows in (False, True)
}


def act_quant(
    x: Tensor, scale_format: ScaleFormat, rows: Tensor | None, is_transposed: bool
) -> tuple[Tensor, Tensor]:
    """Return codes [R, K] and scales [R, ceil(K / 128)] of `x` [T, K] as the definition does.

    F16 is widened to F32 first.
    """
    x = (x if x.dtype in DTYPES else x.float()).contiguous()
    (tokens, columns), count = x.shape, len(x if rows is None else rows)
    groups = -(-columns // 128)
    codes = torch.empty(count, columns, dtype=torch.float8_e4m3fn, device=x.device)
    shape = (groups, count) if is_transposed else (count, groups)
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    scales = scales.T if is_transposed else scales
    if codes.numel():
        name = f"act_quant/{DTYPES[x.dtype]}.{scale_format}{'' if rows is None else '.rows'}"
        sizes = (tokens, count, columns, *scales.stride())
        grid = (-(-count // ROWS), groups)
        gathered = () if rows is None else (rows,)
        CONFIGS[name].launch(grid, x, codes, scales, *sizes, *gathered)
    return codes, scales
