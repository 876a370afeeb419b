"""Block FP8 GEMM for sm_90a: persistent, tiles by TMA in and out, two-level accumulation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.triton.tiles import GROUP, give_workspace, loadable, place, programs, tile


def fp8_gemm(x: Quantized, w: Quantized, dtype: torch.dtype) -> Tensor:
    """Return x w' [T, N]: the twin of `ops.fp8_gemm`."""
    codes, weight = (loadable(part.codes.contiguous()) for part in (x, w))
    (rows, depth), columns = codes.shape, len(weight)
    y = x.scales.new_empty(rows, columns, dtype=dtype)
    shape = tile(rows)
    tiles = triton.cdiv(rows, shape.rows) * triton.cdiv(columns, shape.columns)
    if tiles:
        give_workspace(codes)
        kernel[(min(tiles, programs(codes)),)](
            codes, x.scales, weight, w.scales.contiguous(), y, rows, columns, depth,
            x.scales.stride(0), x.scales.stride(1),
            shape.rows, shape.columns, GROUP, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y


@triton.jit
def kernel(
    x_ptr, x_scales_ptr, w_ptr, w_scales_ptr, y_ptr, M, N, K, scales_row, scales_group,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write y [M, N] = x [M, K] w' of w [N, K], scales by 1 x 128 tiles and 128 x 128 blocks.

    A program takes every tile of as many as there are programs. The scale of row m and group g is
    at m * scales_row + g * scales_group.
    """
    BLOCK_K: tl.constexpr = 128  # of one scale: the product is promoted to float32 after each
    x = tl.make_tensor_descriptor(x_ptr, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [N, K], [K, 1], [BLOCK_N, BLOCK_K])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BLOCK_M, BLOCK_N])
    tiles_m, tiles_n, groups = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    for at in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        row, column = place(at, tiles_m, tiles_n, GROUP)
        m, n = row * BLOCK_M, column * BLOCK_N
        rows = m + tl.arange(0, BLOCK_M)
        x_scales = x_scales_ptr + rows.to(tl.int64) * scales_row
        w_scales = w_scales_ptr + n // 128 * groups
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for group in range(groups):
            k = group * BLOCK_K
            scale = tl.load(x_scales, mask=rows < M, other=0.0) * tl.load(w_scales + group)
            total += tl.dot(x.load([m, k]), w.load([n, k]).T) * scale[:, None]
            x_scales += scales_group
        y.store([m, n], total.to(y_ptr.dtype.element_ty))
