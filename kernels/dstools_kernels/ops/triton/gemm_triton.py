"""BF16 GEMM for sm_90a: persistent, tiles by TMA in and out, sums in the tensor core's float32."""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.tiles import (
    GROUP,
    give_workspace,
    is_loadable,
    loadable,
    place,
    programs,
    tile,
)

BLOCK_K = 64


def gemm(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x w' [..., T, N]: the twin of `ops.gemm`, for BF16."""
    batch, (rows, depth), columns = x.shape[:-2], x.shape[-2:], w.shape[-2]
    x, w = x.reshape(prod(batch), rows, depth), w.reshape(prod(batch), columns, depth)
    is_transposed = is_loadable(w.mT)
    x, w = loadable(x), w if is_transposed else loadable(w)
    y = x.new_empty(*x.shape[:2], columns, dtype=dtype)
    shape = tile(rows)
    tiles = len(x) * triton.cdiv(rows, shape.rows) * triton.cdiv(columns, shape.columns)
    if tiles:
        give_workspace(x)
        kernel[(min(tiles, programs(x)),)](
            x, w, y, len(x), rows, columns, depth,
            x.stride(0), x.stride(1), w.stride(0), w.stride(2 if is_transposed else 1),
            is_transposed, shape.rows, shape.columns, BLOCK_K, GROUP,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y.view(*batch, rows, columns)


@triton.jit
def kernel(
    x_ptr, w_ptr, y_ptr, B, M, N, K,
    x_batch, x_row, w_batch, w_row,
    IS_TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write y [B, M, N] = x [B, M, K] w'. `w` is [B, N, K], or in memory [B, K, N].

    A program takes every tile of as many as there are programs; strides are in elements.
    """
    x = tl.make_tensor_descriptor(x_ptr, [B, M, K], [x_batch, x_row, 1], [1, BLOCK_M, BLOCK_K])
    if IS_TRANSPOSED:
        w = tl.make_tensor_descriptor(w_ptr, [B, K, N], [w_batch, w_row, 1], [1, BLOCK_K, BLOCK_N])
    else:
        w = tl.make_tensor_descriptor(w_ptr, [B, N, K], [w_batch, w_row, 1], [1, BLOCK_N, BLOCK_K])
    y_batch = M.to(tl.int64) * N
    y = tl.make_tensor_descriptor(y_ptr, [B, M, N], [y_batch, N, 1], [1, BLOCK_M, BLOCK_N])
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    for at in tl.range(tl.program_id(0), B * tiles, tl.num_programs(0)):
        batch = at // tiles
        row, column = place(at % tiles, tiles_m, tiles_n, GROUP)
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
