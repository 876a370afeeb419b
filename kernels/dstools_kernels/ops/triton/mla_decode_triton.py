"""Triton twin of `mla_decode`: split-KV over pages of 64 latents of 512 + 64.

Each new token is a row of its own. `plan_kernel` cuts the tokens that it sees into splits of a
fixed size, so that its bits depend on neither other rows nor later tokens of its row. A program of
`decode_kernel` attends from a block of heads to one split; `mla_merge` joins the splits.

The float32 output of 64 heads is 512 wide, half of an SM's registers. So two programs compute all
scores and one half of the output each; in one program either warpgroup would compute all scores as
well, and registers would spill.

Statically verified for sm_90a, never run on a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.latent_pages import PAGE_SIZE
from dstools_kernels.ops.triton import mla_decode_gluon
from dstools_kernels.ops.triton.config import Config
from dstools_kernels.ops.triton.mla_merge_triton import mla_merge
from dstools_kernels.ops.triton.softmax import LOG2_E, LOWEST, add_block
from dstools_kernels.ops.triton.tiles import give_workspace

MAX_PARTIAL_BYTES = 1 << 30  # of the outputs of splits at a time

# Tokens of a split, by number of heads. Its output is written and read once, 4 KiB a head:
#   tokens of a split                        256   512  1024  2048
#   traffic, 16 heads, against BF16 latents  0.22  0.11  0.06  0.03
#   traffic, 64 heads                        0.89  0.44  0.22  0.11
#   traffic, 128 heads                       1.78  0.89  0.44  0.22
#   programs for each 4096 tokens            32    16    8     4
SPLIT_TOKENS = {16: 256, 64: 1024, 128: 1024}

# torch.cuda.get_device_name() of the cards on which scripts/hopper_check.py has passed the Gluon
# form, with a line of figures in docs/kernels.md: it runs on no other. It has run on none.
GLUON_CARDS: tuple[str, ...] = ()


@triton.jit
def plan_kernel(
    lengths_ptr,  # [B]
    cumulative_ptr,  # [B + 1]
    row_ptr,  # [tokens], of each new token from `first` on
    seen_ptr,  # [tokens], tokens that it sees
    offsets_ptr,  # [tokens + 1], where its splits begin
    rows,
    first,
    tokens,
    limit,
    split_tokens,
    BLOCK: tl.constexpr,
):
    """Write what each new token of a part sees, and a prefix sum of its splits. One program."""
    count = tl.zeros((), tl.int32)
    tl.store(offsets_ptr, count)
    for start in range(0, tokens, BLOCK):
        place = start + tl.arange(0, BLOCK)
        token = first + place
        row = tl.zeros((BLOCK,), tl.int32)  # the rows that end before this token
        for other in range(0, rows, BLOCK):
            at = other + tl.arange(0, BLOCK)
            end = tl.load(cumulative_ptr + 1 + at, mask=at < rows, other=2147483647)
            row += tl.sum((end[None, :] <= token[:, None]).to(tl.int32), 1)
        is_place = place < tokens
        is_token = is_place & (row < rows)
        end = tl.load(cumulative_ptr + 1 + row, mask=is_token, other=0)
        length = tl.load(lengths_ptr + row, mask=is_token, other=0)
        seen = tl.minimum(tl.maximum(length - (end - 1 - token), 0), limit)
        seen = tl.where(is_token, seen, 0)
        splits = (seen + split_tokens - 1) // split_tokens
        tl.store(row_ptr + place, tl.where(is_token, row, 0), mask=is_place)
        tl.store(seen_ptr + place, seen, mask=is_place)
        tl.store(offsets_ptr + 1 + place, count + tl.cumsum(splits, 0), mask=is_place)
        count += tl.sum(splits, 0)


@triton.jit
def _rows(cache_ptr, table_row, i, seen, pages, BN: tl.constexpr, IS_FP8: tl.constexpr):
    """Return pointers to the latents of tokens i to i + BN [BN, 1], and which of them are seen."""
    n = tl.arange(0, BN)
    page = tl.load(table_row + i // 64)
    is_page = ((page >= 0) & (page < pages)).to(tl.int32)
    at = (page.to(tl.int64) * 64 + i % 64 + n)[:, None]
    return cache_ptr + at * (656 if IS_FP8 else 576), i + n < seen * is_page  # bytes, or numbers


@triton.jit
def _latents(k_row, d, is_seen, IS_FP8: tl.constexpr):
    """Load the 256 latents `d` of each token [BN, 256] in BF16, zeros where none is seen."""
    if IS_FP8:
        pointer = (k_row + d[None, :]).to(tl.pointer_type(tl.float8e4nv), bitcast=True)
        codes = tl.load(pointer, mask=is_seen, other=0.0).to(tl.float32)
        group = tl.min(d, 0) // 128
        pointer = (k_row + 512).to(tl.pointer_type(tl.float32), bitcast=True) + group
        low = tl.load(pointer, mask=is_seen, other=0.0)  # two loads of a column: [BN, 256] of
        high = tl.load(pointer + 1, mask=is_seen, other=0.0)  # scales would be 128 loads
        latents = codes * tl.where(d[None, :] // 128 == group, low, high)
        return latents.to(tl.bfloat16)
    else:
        return tl.load(k_row + d[None, :], mask=is_seen, other=0.0)


@triton.jit
def _rope(k_row, is_seen, IS_FP8: tl.constexpr):
    """Load the rotated key of each token [BN, 64] in BF16, zeros where none is seen."""
    d = tl.arange(0, 64)
    if IS_FP8:
        pointer = (k_row + 528).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        return tl.load(pointer + d[None, :], mask=is_seen, other=0.0)
    else:
        return tl.load(k_row + 512 + d[None, :], mask=is_seen, other=0.0)


@triton.jit
def decode_kernel(
    q_ptr,  # [T, H, 576] BF16
    cache_ptr,  # [P, 64, 576] BF16 or [P, 64, 656] bytes
    table_ptr,  # [B, N]
    row_ptr,  # [T] int32, of each token
    seen_ptr,  # [T] int32, tokens that it sees
    offsets_ptr,  # [T + 1] int32, where its splits begin
    partial_ptr,  # [capacity, H, 512] float32
    lse_ptr,  # [capacity, H] float32: log2 of the sum of exp2
    scale,
    heads,
    pages,
    width,
    split_tokens,
    capacity,
    BH: tl.constexpr,
    BN: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """Attend from BH heads of a token to one split of what it sees, for half of the output."""
    blocks = 2 * tl.cdiv(heads, BH)
    token = tl.program_id(0) // blocks
    half = tl.program_id(0) % 2
    h = tl.program_id(0) % blocks // 2 * BH + tl.arange(0, BH)
    split = tl.program_id(1)
    seen = tl.load(seen_ptr + token)
    first = split * split_tokens
    end = tl.minimum(seen, first + split_tokens)
    slot = tl.load(offsets_ptr + token) + split
    if (first < end) & (slot < capacity):
        d0 = half * 256 + tl.arange(0, 256)  # of the output
        d1 = (1 - half) * 256 + tl.arange(0, 256)
        is_head = (h < heads)[:, None]
        q_row = q_ptr + (token.to(tl.int64) * heads + h)[:, None] * 576
        q0 = tl.load(q_row + d0[None, :], mask=is_head, other=0.0)
        q1 = tl.load(q_row + d1[None, :], mask=is_head, other=0.0)
        qr = tl.load(q_row + 512 + tl.arange(0, 64)[None, :], mask=is_head, other=0.0)
        top = tl.full((BH,), LOWEST, tl.float32)
        total = tl.zeros((BH,), tl.float32)
        out = tl.zeros((BH, 256), tl.float32)
        scale_log2 = scale * LOG2_E
        table_row = table_ptr + tl.load(row_ptr + token).to(tl.int64) * width
        for i in range(first, end, BN):
            k_row, is_seen = _rows(cache_ptr, table_row, i, seen, pages, BN, IS_FP8)
            k0 = _latents(k_row, d0, is_seen[:, None], IS_FP8)
            k1 = _latents(k_row, d1, is_seen[:, None], IS_FP8)
            kr = _rope(k_row, is_seen[:, None], IS_FP8)
            scores = tl.dot(qr, kr.T)
            scores = tl.dot(q1, k1.T, scores)
            scores = tl.dot(q0, k0.T, scores) * scale_log2  # first, it would take 21 registers more
            scores = tl.where(is_seen[None, :], scores, LOWEST)
            top, total, out = add_block(scores, k0, top, total, out)
        at = slot.to(tl.int64) * heads + h
        has_keys = (top > LOWEST) | (total != total)  # a maximum ignores NaN
        lse = tl.where(has_keys, top + tl.log2(total), float("-inf"))
        out = out * (1.0 / total)[:, None]
        tl.store(partial_ptr + at[:, None] * 512 + d0[None, :], out, mask=is_head)
        if half == 0:
            tl.store(lse_ptr + at, lse, mask=h < heads)


def _config(
    kernel: Any, dtype: str, constants: dict[str, int | bool], needs: tuple[str, ...]
) -> Config:
    integers = dict.fromkeys(("heads", "pages", "width", "split_tokens", "capacity"), "i32")
    return Config(
        kernel,
        {
            "q_ptr": "*bf16",
            "cache_ptr": "*bf16" if dtype == "bf16" else "*u8",
            **dict.fromkeys(("table_ptr", "row_ptr", "seen_ptr", "offsets_ptr"), "*i32"),
            "partial_ptr": "*fp32",
            "lse_ptr": "*fp32",
            "scale": "fp32",
            **integers,
        },
        constants,
        num_warps=8,
        num_stages=2,
        unaligned=("heads", "pages", "width", "capacity"),
        needs=needs,
    )


# heads x tokens of a step, by dtype and number of heads, up to. Of FP8 latents, 64 heads in one
# tile spill or are at the limit of registers.
TILES = {
    "bf16": {16: (16, 64), 64: (64, 64), 128: (128, 32)},
    "fp8": {16: (16, 32), 64: (32, 32), 128: (128, 16)},
}
CONFIGS = {
    f"mla_decode/{dtype}.{heads}x{tokens}": _config(
        decode_kernel,
        dtype,
        {"BH": heads, "BN": tokens, "IS_FP8": dtype == "fp8"},
        ("LDGSTS", "STG.128", "HGMMA" if heads >= 64 else "HMMA"),
    )
    for dtype, tiles in TILES.items()
    for heads, tokens in tiles.values()
} | {
    "mla_decode/bf16.gluon": _config(
        mla_decode_gluon.decode_kernel, "bf16", {}, ("HGMMA", "UTMALDG")
    ),
    "mla_decode/plan": Config(
        plan_kernel,
        {
            **dict.fromkeys(
                ("lengths_ptr", "cumulative_ptr", "row_ptr", "seen_ptr", "offsets_ptr"), "*i32"
            ),
            **dict.fromkeys(("rows", "first", "tokens", "limit", "split_tokens"), "i32"),
        },
        {"BLOCK": 64},
        num_warps=4,
        unaligned=("rows", "first", "tokens"),
    ),
}


def mla_decode(
    q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, cumulative: Tensor, scale: float
) -> Tensor:
    """Return what the definition does, for BF16 `q` [T, H, 576] and pages of 64 tokens.

    Tokens are taken so many at a time that the outputs of their splits stay below a GiB: 4096
    splits of 128 heads. What is taken together does not change a token's bits.
    """
    heads, is_fp8 = q.shape[1], cache.dtype == torch.uint8
    form = form_of(heads, is_fp8)
    if not is_fp8 and heads % 64 == 0 and q.is_cuda:
        form = "bf16.gluon" if torch.cuda.get_device_name(q.device) in GLUON_CARDS else form
    split_tokens = SPLIT_TOKENS[_up_to(heads)]
    splits = max(1, -(-table.shape[1] * PAGE_SIZE // split_tokens))  # of a token, at most
    count = max(1, MAX_PARTIAL_BYTES // (4 * 512 * heads * splits))
    pool = (cache, table, lengths, cumulative, scale, split_tokens, form)
    if len(q) <= count:
        return decode(q, *pool)
    starts = range(0, len(q), count)
    return torch.cat([decode(q[first : first + count], *pool, first) for first in starts])


def form_of(heads: int, is_fp8: bool) -> str:
    """Return the name of the form in Triton that takes so many heads, as in CONFIGS."""
    dtype = "fp8" if is_fp8 else "bf16"
    block, step = TILES[dtype][_up_to(heads)]
    return f"{dtype}.{block}x{step}"


def _up_to(heads: int) -> int:
    return next((size for size in SPLIT_TOKENS if size >= heads), max(SPLIT_TOKENS))


def decode(
    q: Tensor,
    cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    cumulative: Tensor,
    scale: float,
    split_tokens: int,
    form: str,
    first: int = 0,
) -> Tensor:
    """Return what `mla_decode` does, in splits of `split_tokens`, a multiple of 64, by a form.

    `q` are the queries of the new tokens from `first` on.
    """
    tokens, heads = q.shape[:2]
    (rows, width), pages = table.shape, len(cache)
    if not (tokens and rows and width and pages):
        return q.new_zeros(tokens, heads, 512)
    row, seen = (table.new_empty(tokens, dtype=torch.int32) for _ in range(2))
    offsets = table.new_empty(tokens + 1, dtype=torch.int32)
    limit, plan = width * PAGE_SIZE, (row, seen, offsets)
    CONFIGS["mla_decode/plan"].launch(
        (1,), lengths, cumulative, *plan, rows, first, tokens, limit, split_tokens
    )
    splits = -(-limit // split_tokens)  # of a token, at most
    capacity = splits * tokens
    partial = q.new_empty(capacity, heads, 512, dtype=torch.float32)
    lse = q.new_empty(capacity, heads, dtype=torch.float32)
    config = CONFIGS[f"mla_decode/{form}"]
    if form == "bf16.gluon":
        give_workspace(q)
        programs = heads // 64  # of a token
    else:
        programs = 2 * triton.cdiv(heads, config.constants["BH"])
    tensors = (q.contiguous(), cache, table.contiguous(), *plan, partial, lse)
    grid = (tokens * programs, splits)
    config.launch(grid, *tensors, scale, heads, pages, width, split_tokens, capacity)
    return mla_merge(partial, lse, offsets, q.dtype)
