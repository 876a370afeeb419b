"""Triton twin of `fp8_gemm`: persistent, TMA in and out, two-level sums. Never run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.triton.config import DTYPES, Config
from dstools_kernels.ops.triton.tiles import (
    GROUP_M,
    TILES,
    Tile,
    give_workspace,
    loadable,
    programs,
    tile,
    tile_at,
)


@triton.jit
def fp8_gemm_kernel(
    x_ptr,  # [M, K]
    x_scales_ptr,  # [M, groups], its elements at row * row_step + group * group_step
    w_ptr,  # [N, K]
    w_scales_ptr,  # [ceil(N / 128), groups]
    y_ptr,  # [M, N]
    M,
    N,
    K,
    group_step,
    row_step,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write y = x w'; each program takes every num_programs-th tile."""
    BLOCK_K: tl.constexpr = 128  # of one scale: the product is promoted to float32 after each
    x = tl.make_tensor_descriptor(x_ptr, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [N, K], [K, 1], [BLOCK_N, BLOCK_K])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BLOCK_M, BLOCK_N])
    tiles_m, tiles_n, groups = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    for at in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        row, column = tile_at(at, tiles_m, tiles_n, GROUP_M)
        m, n = row * BLOCK_M, column * BLOCK_N
        rows = m + tl.arange(0, BLOCK_M)
        x_scales = x_scales_ptr + rows.to(tl.int64) * row_step
        w_scales = w_scales_ptr + n // 128 * groups
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for group in range(groups):
            k = group * BLOCK_K
            scale = tl.load(x_scales, mask=rows < M, other=0.0) * tl.load(w_scales + group)
            total += tl.dot(x.load([m, k]), w.load([n, k]).T) * scale[:, None]
            x_scales += group_step
        y.store([m, n], total.to(y_ptr.dtype.element_ty))


def _config(shape: Tile, dtype: str) -> Config:
    pointers = {"x_ptr": "*fp8e4nv", "x_scales_ptr": "*fp32", "w_ptr": "*fp8e4nv"}
    pointers |= {"w_scales_ptr": "*fp32", "y_ptr": f"*{dtype}"}
    return Config(
        fp8_gemm_kernel,
        {**pointers, "M": "i32", "N": "i32", "K": "i32", "group_step": "i32"},
        # row_step: scales are stored by groups, as act_quant can write them
        {"row_step": 1, "BLOCK_M": shape.rows, "BLOCK_N": shape.columns, "GROUP_M": GROUP_M},
        num_warps=shape.warps,
        num_stages=shape.stages,
        unaligned=("M", "group_step"),
        needs=("QGMMA.64x128x32.F32.E4M3.E4M3", "UTMALDG", "UTMASTG"),
        lacks=("LDGSTS",),
    )


def _name(shape: Tile, dtype: str) -> str:
    return f"fp8_gemm/{shape.name(128)}.{dtype}"


CONFIGS = {
    _name(shape, dtype): _config(shape, dtype) for shape in TILES for dtype in DTYPES.values()
}


def fp8_gemm(x: Quantized, w: Quantized, dtype: torch.dtype) -> Tensor:
    """Return x w' [T, N] as the definition does."""
    codes, weight = (loadable(part.codes.contiguous()) for part in (x, w))
    (rows, depth), columns = codes.shape, len(weight)
    y = x.scales.new_empty(rows, columns, dtype=dtype)
    shape = tile(rows)
    tiles = -(-rows // shape.rows) * -(-columns // shape.columns)
    if tiles:
        give_workspace(codes)
        row_step, group_step = x.scales.stride()
        tensors = (codes, x.scales, weight, w.scales.contiguous(), y)
        sizes = (rows, columns, depth, group_step)
        grid = (min(tiles, programs(codes)),)
        CONFIGS[_name(shape, DTYPES[dtype])].launch(grid, *tensors, *sizes, row_step=row_step)
    return y
