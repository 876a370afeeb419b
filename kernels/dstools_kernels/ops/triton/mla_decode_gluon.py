"""`mla_decode` for BF16 and multiples of 64 heads in Gluon: compiled and gated, never executed.

Takes the arguments of `mla_decode_triton.decode_kernel` and writes the same, but one program has
all 512 columns of the output. Its two warpgroups halve the columns of the scores and of the output,
so that nothing is computed twice: 40 instead of 76 HGMMA a step. Pages come by TMA, one ahead.

The descriptors of the last page end where its row does, and a page id out of range is loaded from
past the end of the pool: TMA fills both with zeros, so that NaN that no one wrote stays out.

Nothing executes Gluon on a CPU. `mla_decode_triton` takes this form on no card until
`scripts/hopper_check.py` has passed on it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dstools_kernels.ops.triton.softmax import LOG2_E, LOWEST

# layouts: scores [64, 64] and output [64, 512] over 2 warpgroups by columns; tiles in shared memory
SCORES = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 32, 16])
)
OUT = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 256, 16])
)
SCORES_ROW = gl.constexpr(gl.SliceLayout(1, SCORES.value))
OUT_ROW = gl.constexpr(gl.SliceLayout(1, OUT.value))
WIDE = gl.constexpr(gl.NVMMASharedLayout.get_default_for([64, 512], gl.bfloat16))
NARROW = gl.constexpr(gl.NVMMASharedLayout.get_default_for([64, 64], gl.bfloat16))


@gluon.jit
def _descriptors(base, rows):
    """Return descriptors of the latents and of the rotated keys of `rows` rows of 512 + 64."""
    wide = tma.make_tensor_descriptor(base, [rows, 576], [576, 1], [64, 512], WIDE)
    return wide, tma.make_tensor_descriptor(base, [rows, 576], [576, 1], [64, 64], NARROW)


@gluon.jit
def _load(wide, narrow, row, barrier, latents, keys):
    """Start to load 64 rows into `latents` [64, 512] and `keys` [64, 64], until `barrier`."""
    mbarrier.expect(barrier, wide.block_type.nbytes + narrow.block_type.nbytes)
    tma.async_load(wide, [row, 0], barrier, latents)
    tma.async_load(narrow, [row, 512], barrier, keys)


@gluon.jit
def _first_row(table_row, page, pages):
    """Return the row of the pool that a page begins at, the pool's end if there is no such page."""
    number = gl.load(table_row + page)
    return gl.where((number >= 0) & (number < pages), number, pages) * 64


@gluon.jit
def _add(q, q_rope, latents, keys, shares, scale, left, top, total, out):
    """Return the largest score [64], the sum of exp2 [64] and of its products [64, 512] float32.

    They include 64 more tokens, the first `left` of which are seen. `q` [64, 512], `q_rope`
    [64, 64], `latents` [64, 512], `keys` and `shares` [64, 64] are BF16 in shared memory.
    """
    scores = gl.zeros((64, 64), gl.float32, SCORES)
    scores = warpgroup_mma(q, latents.permute((1, 0)), scores, is_async=True, use_acc=False)
    scores = warpgroup_mma(q_rope, keys.permute((1, 0)), scores, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(scores,)) * scale
    n = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    scores = gl.where(gl.expand_dims(n < left, 0), scores, LOWEST)
    new_top = gl.maximum(top, gl.max(scores, 1))
    shrink = gl.exp2(top - new_top)
    scores = gl.exp2(scores - gl.expand_dims(new_top, 1))
    total = total * shrink + gl.sum(scores, 1)
    shares.store(scores.to(gl.bfloat16))  # of one warpgroup, for the other
    fence_async_shared()
    out = out * gl.expand_dims(gl.convert_layout(shrink, OUT_ROW), 1)
    out = warpgroup_mma(shares, latents, out, is_async=True)
    return new_top, total, warpgroup_mma_wait(0, deps=(out,))


@gluon.jit
def _attend(
    q_row, cache_ptr, table_row, partial_row, lse_row, scale, heads, pages, first, end, block
):
    """Attend from 64 heads of one token to the tokens from `first` to `end`.

    Pointers are to the token's queries [H, 576] and pages [N], and to its split's partial output
    [H, 512] float32 and its log2 of sums [H] float32.
    """
    q = gl.allocate_shared_memory(gl.bfloat16, [64, 512], WIDE)
    q_rope = gl.allocate_shared_memory(gl.bfloat16, [64, 64], NARROW)
    latents = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 512], WIDE)
    keys = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 64], NARROW)
    shares = gl.allocate_shared_memory(gl.bfloat16, [64, 64], NARROW)
    barriers = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(3):
        mbarrier.init(barriers.index(i), count=1)
    wide, narrow = _descriptors(q_row, heads)
    _load(wide, narrow, block * 64, barriers.index(2), q, q_rope)
    wide, narrow = _descriptors(cache_ptr, pages * 64)
    last = end - 1
    stop = gl.minimum(_first_row(table_row, last // 64, pages) + last % 64 + 1, pages * 64)
    last_wide, last_narrow = _descriptors(cache_ptr, stop)
    row = _first_row(table_row, first // 64, pages)
    if first + 64 < end:
        _load(wide, narrow, row, barriers.index(0), latents.index(0), keys.index(0))
    else:
        _load(last_wide, last_narrow, row, barriers.index(0), latents.index(0), keys.index(0))
    mbarrier.wait(barriers.index(2), 0)
    top = gl.full([64], LOWEST, gl.float32, SCORES_ROW)
    total = gl.zeros([64], gl.float32, SCORES_ROW)
    out = gl.zeros((64, 512), gl.float32, OUT)
    for i in range(gl.cdiv(end - first, 64)):
        n, now, after = first + i * 64, i % 2, (i + 1) % 2
        left = gl.where(row < pages * 64, end - n, 0)
        gl.barrier()  # both warpgroups have read what is loaded next
        if n + 64 < end:
            row = _first_row(table_row, n // 64 + 1, pages)
            to = (barriers.index(after), latents.index(after), keys.index(after))
            if n + 128 < end:
                _load(wide, narrow, row, *to)
            else:
                _load(last_wide, last_narrow, row, *to)
        mbarrier.wait(barriers.index(now), i // 2 & 1)
        top, total, out = _add(
            q, q_rope, latents.index(now), keys.index(now), shares, scale, left, top, total, out
        )
    for i in gl.static_range(3):
        mbarrier.invalidate(barriers.index(i))
    out = out * gl.expand_dims(gl.convert_layout(1.0 / total, OUT_ROW), 1)
    h = block * 64 + gl.expand_dims(gl.arange(0, 64, layout=OUT_ROW), 1)
    d = gl.expand_dims(gl.arange(0, 512, layout=gl.SliceLayout(0, OUT)), 0)
    gl.store(partial_row + h * 512 + d, out)
    has_keys = (top > LOWEST) | (total != total)  # a maximum ignores NaN
    lse = gl.where(has_keys, top + gl.log2(total), float("-inf"))
    gl.store(lse_row + block * 64 + gl.arange(0, 64, layout=SCORES_ROW), lse)


@gluon.jit
def decode_kernel(
    q_ptr,  # [T, H, 576] BF16
    cache_ptr,  # [P, 64, 576] BF16
    table_ptr,  # [B, N] int32
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
):
    """Attend from 64 heads of a token to one split. Grid (tokens x heads / 64, splits)."""
    token = gl.program_id(0) // (heads // 64)
    block = gl.program_id(0) % (heads // 64)
    split = gl.program_id(1)
    first = split * split_tokens
    end = gl.minimum(gl.load(seen_ptr + token), first + split_tokens)
    slot = gl.load(offsets_ptr + token) + split
    if (first < end) & (slot < capacity):
        at = slot.to(gl.int64) * heads
        _attend(
            q_ptr + token.to(gl.int64) * heads * 576,
            cache_ptr,
            table_ptr + gl.load(row_ptr + token).to(gl.int64) * width,
            partial_ptr + at * 512,
            lse_ptr + at,
            scale * LOG2_E,
            heads,
            pages,
            first,
            end,
            block,
        )
