"""Triton twin of `mla_prefill`: keys and values by TMA, in BF16. Never run on a GPU.

A program takes one head and BLOCK_M new tokens of one row. Its descriptors end where the keys of
the row do, so that what it loads of the next row is zeros, whatever is there.
"""

import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import Config
from dstools_kernels.ops.triton.softmax import LOG2_E, LOWEST, add_block
from dstools_kernels.ops.triton.tiles import give_workspace, loadable


@triton.jit
def _find(cumulative_ptr, rows, most, at, BLOCK_M: tl.constexpr):
    """Return the row of tile number `at`, `rows` if there is none, and the row's first tile."""
    row, first, count = 0, 0, 0
    for other in range(0, rows, 64):
        b = other + tl.arange(0, 64)
        begin = tl.load(cumulative_ptr + b, mask=b < rows, other=0)
        end = tl.load(cumulative_ptr + b + 1, mask=b < rows, other=0)
        tokens = tl.minimum(tl.maximum(end - begin, 0), most)
        ends = count + tl.cumsum((tokens + BLOCK_M - 1) // BLOCK_M, 0)
        is_before = (ends <= at) & (b < rows)
        row += tl.sum(is_before.to(tl.int32), 0)
        first = tl.maximum(first, tl.max(tl.where(is_before, ends, 0), 0))
        count = tl.max(ends, 0)
    return row, first


@triton.jit
def _bounds(cumulative_ptr, row, most):
    """Return where a row begins and ends, within 0 to `most`."""
    begin = tl.minimum(tl.maximum(tl.load(cumulative_ptr + row), 0), most)
    end = tl.minimum(tl.maximum(tl.load(cumulative_ptr + row + 1), begin), most)
    return begin, end


@triton.jit
def prefill_kernel(
    q_ptr,  # [TQ, H, 192]
    k_nope_ptr,  # [TK, H, 128]
    k_rope_ptr,  # [TK, 64]
    v_ptr,  # [TK, H, 128]
    cumulative_q_ptr,  # [B + 1]
    cumulative_k_ptr,  # [B + 1]
    out_ptr,  # [TQ, H, 128]
    scale,
    tokens,
    keys,
    rows,
    heads,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend from a tile of new tokens of one row to its keys. Grid (tiles of all rows, H)."""
    head = tl.program_id(1)
    row, first = _find(cumulative_q_ptr, rows, tokens, tl.program_id(0), BLOCK_M)
    if row < rows:
        begin, end = _bounds(cumulative_q_ptr, row, tokens)
        k_begin, k_end = _bounds(cumulative_k_ptr, row, keys)
        m = (tl.program_id(0) - first) * BLOCK_M + tl.arange(0, BLOCK_M)
        is_token = (begin + m < end)[:, None]
        at = (begin + m)[:, None].to(tl.int64) * heads + head
        q_row = q_ptr + at * 192
        q_nope = tl.load(q_row + tl.arange(0, 128)[None, :], mask=is_token, other=0.0)
        q_rope = tl.load(q_row + 128 + tl.arange(0, 64)[None, :], mask=is_token, other=0.0)
        last = k_end - k_begin - (end - begin) + m  # the last key that a token sees
        width = heads * 128
        k_nope = tl.make_tensor_descriptor(k_nope_ptr, [k_end, width], [width, 1], [BLOCK_N, 128])
        k_rope = tl.make_tensor_descriptor(k_rope_ptr, [k_end, 64], [64, 1], [BLOCK_N, 64])
        v = tl.make_tensor_descriptor(v_ptr, [k_end, width], [width, 1], [BLOCK_N, 128])
        top = tl.full((BLOCK_M,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        out = tl.zeros((BLOCK_M, 128), tl.float32)
        scale_log2 = scale * LOG2_E
        for n in range(0, tl.minimum(k_end - k_begin, tl.max(last, 0) + 1), BLOCK_N):
            nope = k_nope.load([k_begin + n, head * 128])
            rope = k_rope.load([k_begin + n, 0])
            values = v.load([k_begin + n, head * 128])
            scores = tl.dot(q_nope, nope.T)
            scores = tl.dot(q_rope, rope.T, scores) * scale_log2
            is_seen = (n + tl.arange(0, BLOCK_N))[None, :] <= last[:, None]
            scores = tl.where(is_seen, scores, LOWEST)
            top, total, out = add_block(scores, values, top, total, out)
        has_keys = (top > LOWEST) | (total != total)  # a maximum ignores NaN
        out = tl.where(has_keys[:, None], out * (1.0 / total)[:, None], 0.0)
        pointer = out_ptr + at * 128 + tl.arange(0, 128)[None, :]
        tl.store(pointer, out.to(tl.bfloat16), mask=is_token)


def _config(block_m: int, block_n: int, stages: int) -> Config:
    return Config(
        prefill_kernel,
        {
            **dict.fromkeys(("q_ptr", "k_nope_ptr", "k_rope_ptr", "v_ptr"), "*bf16"),
            **dict.fromkeys(("cumulative_q_ptr", "cumulative_k_ptr"), "*i32"),
            "out_ptr": "*bf16",
            "scale": "fp32",
            **dict.fromkeys(("tokens", "keys", "rows", "heads"), "i32"),
        },
        {"BLOCK_M": block_m, "BLOCK_N": block_n},
        num_warps=8,
        num_stages=stages,
        unaligned=("tokens", "keys", "rows", "heads"),
        needs=("HGMMA", "UTMALDG", "LDG.128"),
    )


CONFIGS = {"mla_prefill/128x64": _config(128, 64, 3)}


def mla_prefill(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    cumulative_q: Tensor,
    cumulative_k: Tensor,
    scale: float,
) -> Tensor:
    """Return what the definition does, for BF16 heads of 128 + 64 and 128."""
    (tokens, heads), keys, rows = q.shape[:2], len(k_nope), len(cumulative_q) - 1
    out = q.new_zeros(tokens, heads, 128)
    if tokens and keys and rows and heads:
        give_workspace(q)
        config = CONFIGS["mla_prefill/128x64"]
        tiles = tokens // config.constants["BLOCK_M"] + rows  # at most
        q, k_nope, k_rope, v = (loadable(x.contiguous()) for x in (q, k_nope, k_rope, v))
        tensors = (q, k_nope, k_rope, v, cumulative_q, cumulative_k, out)
        config.launch((tiles, heads), *tensors, scale, tokens, keys, rows, heads)
    return out
