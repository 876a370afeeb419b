"""Triton twin of `gemm` in BF16: persistent, tiles by TMA in and out. Never run on a GPU."""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import DTYPES, Config
from dstools_kernels.ops.triton.tiles import (
    GROUP_M,
    TILES,
    Tile,
    give_workspace,
    is_loadable,
    loadable,
    programs,
    tile,
    tile_at,
)

BLOCK_K = 64  # in every form, so that the sums of a row do not depend on the tile


@triton.jit
def gemm_kernel(
    x_ptr,  # [B, M, K], its elements at batch * x_batch + row * x_row + column
    w_ptr,  # [B, N, K], or in memory [B, K, N]
    y_ptr,  # [B, M, N]
    B,
    M,
    N,
    K,
    x_batch,
    x_row,
    w_batch,
    w_row,
    y_batch,
    IS_TRANSPOSED: tl.constexpr,  # w is [B, K, N] in memory
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write y = x w'; each program takes every num_programs-th tile."""
    x = tl.make_tensor_descriptor(x_ptr, [B, M, K], [x_batch, x_row, 1], [1, BLOCK_M, BLOCK_K])
    if IS_TRANSPOSED:
        w = tl.make_tensor_descriptor(w_ptr, [B, K, N], [w_batch, w_row, 1], [1, BLOCK_K, BLOCK_N])
    else:
        w = tl.make_tensor_descriptor(w_ptr, [B, N, K], [w_batch, w_row, 1], [1, BLOCK_N, BLOCK_K])
    y = tl.make_tensor_descriptor(y_ptr, [B, M, N], [y_batch, N, 1], [1, BLOCK_M, BLOCK_N])
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    for at in tl.range(tl.program_id(0), B * tiles, tl.num_programs(0)):
        batch = at // tiles
        row, column = tile_at(at % tiles, tiles_m, tiles_n, GROUP_M)
        m, n = row * BLOCK_M, column * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            x_tile = x.load([batch, m, k]).reshape(BLOCK_M, BLOCK_K)
            if IS_TRANSPOSED:
                w_tile = w.load([batch, k, n]).reshape(BLOCK_K, BLOCK_N)
            else:
                w_tile = w.load([batch, n, k]).reshape(BLOCK_N, BLOCK_K).T
            total = tl.dot(x_tile, w_tile, total)
        y.store([batch, m, n], total.to(y_ptr.dtype.element_ty).reshape(1, BLOCK_M, BLOCK_N))


def _config(shape: Tile, is_transposed: bool, dtype: str) -> Config:
    sizes = dict.fromkeys(("B", "M", "N", "K"), "i32")
    strides = dict.fromkeys(("x_batch", "x_row", "w_batch", "w_row", "y_batch"), "i64")
    return Config(
        gemm_kernel,
        {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": f"*{dtype}", **sizes, **strides},
        {
            "IS_TRANSPOSED": is_transposed,
            "BLOCK_M": shape.rows,
            "BLOCK_N": shape.columns,
            "BLOCK_K": BLOCK_K,
            "GROUP_M": GROUP_M,
        },
        num_warps=shape.warps,
        num_stages=shape.stages,
        unaligned=("B", "M"),
        needs=("HGMMA.64x128x16.F32.BF16", "UTMALDG", "UTMASTG"),
        lacks=("LDGSTS",),
    )


def _name(shape: Tile, is_transposed: bool, dtype: str) -> str:
    return f"gemm/{shape.name(BLOCK_K)}.{dtype}{'.transposed' if is_transposed else ''}"


CONFIGS = {
    _name(shape, is_transposed, dtype): _config(shape, is_transposed, dtype)
    for shape in TILES
    for is_transposed in (False, True)
    for dtype in DTYPES.values()
}


def gemm(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x w' [..., T, N] as the definition does, for BF16 `x` and `w`."""
    batch, (rows, depth), columns = x.shape[:-2], x.shape[-2:], w.shape[-2]
    x, w = x.reshape(prod(batch), rows, depth), w.reshape(prod(batch), columns, depth)
    is_transposed = is_loadable(w.mT)
    x, w = loadable(x), w if is_transposed else loadable(w)
    y = x.new_empty(*x.shape[:2], columns, dtype=dtype)
    shape = tile(rows)
    tiles = len(x) * -(-rows // shape.rows) * -(-columns // shape.columns)
    if tiles:
        give_workspace(x)
        w_strides = w.stride(0), w.stride(2 if is_transposed else 1)
        strides = (x.stride(0), x.stride(1), *w_strides, y.stride(0))
        CONFIGS[_name(shape, is_transposed, DTYPES[dtype])].launch(
            (min(tiles, programs(x)),), x, w, y, len(x), rows, columns, depth, *strides
        )
    return y.view(*batch, rows, columns)
