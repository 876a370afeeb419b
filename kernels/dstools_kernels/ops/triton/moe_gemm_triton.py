"""Triton twin of `moe_gemm`, in block FP8 and in BF16: nothing is padded. Never run on a GPU.

A tile begins at its group's row, wherever that is. Its last rows may be those of the next group:
loading them is harmless, and they are not stored, so stores are masked and not by TMA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.triton.config import Config
from dstools_kernels.ops.triton.tiles import TILES, Tile, give_workspace, loadable, programs, tile

EXPERTS = 256  # on a rank, of what is compiled ahead of time
BLOCK_K = 64  # of BF16, in every form, so that the sums of a row do not depend on the tile


@triton.jit
def tiles_of_experts(offsets_ptr, G, tiles_n, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return first row, end, first tile and end of tiles of each group, all [EXPERTS] int32."""
    expert = tl.arange(0, EXPERTS)
    first = tl.load(offsets_ptr + expert, mask=expert < G, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert < G, other=0)
    tiles = tl.cdiv(end - first, BLOCK_M) * tiles_n
    ends = tl.cumsum(tiles, 0)
    return first, end, ends - tiles, ends


@triton.jit
def tile_of_group(
    at, first, end, tile_first, tile_end, tiles_n,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return expert, first row, first column and the row after the group of tile number `at`."""
    expert = tl.sum((tile_end <= at).to(tl.int32), 0)  # groups before it, those without rows too
    is_it = tl.arange(0, EXPERTS) == expert
    within = at - tl.sum(tl.where(is_it, tile_first, 0), 0)
    m = tl.sum(tl.where(is_it, first, 0), 0) + within // tiles_n * BLOCK_M
    return expert, m, within % tiles_n * BLOCK_N, tl.sum(tl.where(is_it, end, 0), 0)


@triton.jit
def store(y_ptr, total, m, n, end, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store those rows of a tile that are before `end`."""
    rows, columns = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    at = y_ptr + rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows < end)[:, None] & (columns < N)[None, :]
    tl.store(at, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fp8_kernel(
    x_ptr,  # [R, K]
    x_scales_ptr,  # [R, groups], its elements at row * row_step + group * group_step
    w_ptr,  # [G, N, K]
    w_scales_ptr,  # [G, ceil(N / 128), groups]
    y_ptr,  # [R, N]
    offsets_ptr,  # [G + 1] int32
    R,
    G,
    N,
    K,
    w_expert,  # elements from an expert's weight to the next
    group_step,
    row_step,
    EXPERTS: tl.constexpr,  # the power of two that is not below G
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the rows offsets[g] to offsets[g + 1] of y = x w[g]' for all g."""
    BLOCK_K: tl.constexpr = 128  # of one scale: the product is promoted to float32 after each
    x = tl.make_tensor_descriptor(x_ptr, [R, K], [K, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [G, N, K], [w_expert, K, 1], [1, BLOCK_N, BLOCK_K])
    tiles_n, depth = tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    first, end, tile_first, tile_end = tiles_of_experts(offsets_ptr, G, tiles_n, EXPERTS, BLOCK_M)
    for at in tl.range(tl.program_id(0), tl.max(tile_end, 0), tl.num_programs(0)):
        expert, m, n, after = tile_of_group(
            at, first, end, tile_first, tile_end, tiles_n, EXPERTS, BLOCK_M, BLOCK_N
        )
        rows = m + tl.arange(0, BLOCK_M)
        x_scales = x_scales_ptr + rows.to(tl.int64) * row_step
        w_scales = w_scales_ptr + (expert * tl.cdiv(N, 128) + n // 128) * depth
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for group in range(depth):
            k = group * BLOCK_K
            scale = tl.load(x_scales, mask=rows < after, other=0.0) * tl.load(w_scales + group)
            w_tile = w.load([expert, n, k]).reshape(BLOCK_N, BLOCK_K)
            total += tl.dot(x.load([m, k]), w_tile.T) * scale[:, None]
            x_scales += group_step
        store(y_ptr, total, m, n, after, N, BLOCK_M, BLOCK_N)


@triton.jit
def bf16_kernel(
    x_ptr,  # [R, K]
    w_ptr,  # [G, N, K]
    y_ptr,  # [R, N]
    offsets_ptr,  # [G + 1] int32
    R,
    G,
    N,
    K,
    w_expert,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the rows offsets[g] to offsets[g + 1] of y = x w[g]' for all g, without scales."""
    x = tl.make_tensor_descriptor(x_ptr, [R, K], [K, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [G, N, K], [w_expert, K, 1], [1, BLOCK_N, BLOCK_K])
    tiles_n = tl.cdiv(N, BLOCK_N)
    first, end, tile_first, tile_end = tiles_of_experts(offsets_ptr, G, tiles_n, EXPERTS, BLOCK_M)
    for at in tl.range(tl.program_id(0), tl.max(tile_end, 0), tl.num_programs(0)):
        expert, m, n, after = tile_of_group(
            at, first, end, tile_first, tile_end, tiles_n, EXPERTS, BLOCK_M, BLOCK_N
        )
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            w_tile = w.load([expert, n, k]).reshape(BLOCK_N, BLOCK_K)
            total = tl.dot(x.load([m, k]), w_tile.T, total)
        store(y_ptr, total, m, n, after, N, BLOCK_M, BLOCK_N)


def _config(shape: Tile, is_fp8: bool) -> Config:
    sizes = {**dict.fromkeys(("R", "G", "N", "K"), "i32"), "w_expert": "i64"}
    tiling = {"EXPERTS": EXPERTS, "BLOCK_M": shape.rows, "BLOCK_N": shape.columns}
    outputs = {"y_ptr": "*bf16", "offsets_ptr": "*i32"}
    if is_fp8:
        pointers = {"x_ptr": "*fp8e4nv", "x_scales_ptr": "*fp32"}
        pointers |= {"w_ptr": "*fp8e4nv", "w_scales_ptr": "*fp32", **outputs}
        # row_step: scales are stored by groups, as act_quant can write them
        signature, constants = {**pointers, **sizes, "group_step": "i32"}, {"row_step": 1, **tiling}
    else:
        signature = {"x_ptr": "*bf16", "w_ptr": "*bf16", **outputs, **sizes}
        constants = {**tiling, "BLOCK_K": BLOCK_K}
    return Config(
        fp8_kernel if is_fp8 else bf16_kernel,
        signature,
        constants,
        num_warps=shape.warps,
        num_stages=shape.stages,
        unaligned=("R", "G", "group_step"),
        needs=(
            "QGMMA.64x128x32.F32.E4M3.E4M3" if is_fp8 else "HGMMA.64x128x16.F32.BF16",
            "UTMALDG",
            "STG.128",
        ),
        lacks=("LDGSTS", "UTMASTG"),
    )


def _name(shape: Tile, is_fp8: bool) -> str:
    return f"moe_gemm/{'fp8' if is_fp8 else 'bf16'}.{shape.name(128 if is_fp8 else BLOCK_K)}"


CONFIGS = {
    _name(shape, is_fp8): _config(shape, is_fp8) for shape in TILES for is_fp8 in (True, False)
}


def moe_gemm(x: Tensor | Quantized, w: Tensor | Quantized, offsets: Tensor) -> Tensor:
    """Return y [R, N] as the definition does, for BF16 and FP8."""
    rows, weight = (v.codes if isinstance(v, Quantized) else v for v in (x, w))
    rows, weight = (loadable(part.contiguous()) for part in (rows, weight))
    experts, columns, depth = weight.shape
    y = rows.new_empty(len(rows), columns, dtype=torch.bfloat16)
    shape = tile(len(rows) // experts)
    most = len(rows) // shape.rows + min(len(rows), experts)  # rows of tiles, whatever the offsets
    tiles = most * -(-columns // shape.columns)
    if not tiles:
        return y
    give_workspace(rows)
    grid = (min(tiles, programs(rows)),)
    sizes = (len(rows), experts, columns, depth, columns * depth)
    padded = triton.next_power_of_2(experts)
    if isinstance(x, Quantized) and isinstance(w, Quantized):
        row_step, group_step = x.scales.stride()
        tensors = (rows, x.scales, weight, w.scales.contiguous(), y, offsets)
        CONFIGS[_name(shape, True)].launch(
            grid, *tensors, *sizes, group_step, row_step=row_step, EXPERTS=padded
        )
    else:
        CONFIGS[_name(shape, False)].launch(grid, rows, weight, y, offsets, *sizes, EXPERTS=padded)
    return y
