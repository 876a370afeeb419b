"""Attention of new tokens to all latents of their rows, in pages, with `kv_b_proj` absorbed.

Letters: T new tokens of all rows end to end, B rows, H heads, L latent, R rotated key, C = L + R,
N pages of a row, P pages of the pool, S tokens of a page; of rows that are computed together: G
rows of W new tokens and X = N x S tokens.

A row's last new token sees all of its `lengths` tokens, the one before it one fewer. Rows of the
pool that no one wrote may hold NaN, and 0 x NaN is NaN: they do not reach the output. A page id out
of range counts as a page without tokens, so that a table of garbage reads no foreign memory.

Source: arXiv 2405.04434, section 2.1; the absorbed form is that of DeepSeek-V3, inference/model.py.
"""

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin
from dstools_kernels.ops.latent_pages import PAGE_SIZE, check_pool, unpack_fp8

MAX_ELEMENTS = 1 << 20  # of latents that are gathered at a time on a CPU
TWIN_NEEDS = f"BF16 queries, latents of 512 + 64 in BF16 or FP8, pages of {PAGE_SIZE} tokens"


def mla_decode(
    q: Tensor,
    cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    cumulative: Tensor,
    scale: float,
    rank: int = 512,
) -> Tensor:
    """Return softmax(scale q k') v over latents, [T, H, L] of q's dtype; v is a latent's first L.

    `q` [T, H, C] are absorbed queries, `cache` the pool that `latent_pages` describes, already with
    the new tokens; `table` int32 [B, N] the pages of a row, `lengths` int32 [B] its tokens with the
    new ones, `cumulative` int32 [B + 1] where its new tokens begin. A token that sees nothing gives
    0. `rank` is L. Rows with many new tokens are better served by `mla_prefill`.
    Raises ValueError where shapes do not fit one another.
    """
    _check(q, cache, table, lengths, cumulative, rank)
    if runs_twin("mla_decode", q, _fits(q, cache, rank), TWIN_NEEDS):
        from dstools_kernels.ops.triton import mla_decode_triton

        return mla_decode_triton.mla_decode(q, cache, table, lengths, cumulative, scale)
    out = q.new_zeros(*q.shape[:2], rank)
    counts = cumulative.diff().long()
    first = lengths.long() - counts  # tokens of a row before its new ones
    for rows in _of_like_count(counts, lengths):
        token = torch.arange(int(counts[rows].max()), device=q.device)
        is_new = token < counts[rows, None]
        at = torch.where(is_new, cumulative[rows, None].long() + token, 0)
        seen = torch.where(is_new, first[rows, None] + token + 1, 0)
        attended = _attend(q[at], cache, table[rows], seen, scale, rank)
        if not attended.isfinite().all():  # perhaps by 0 x NaN
            attended = _attend(q[at], cache, table[rows], seen, scale, rank, is_masked=True)
        out[at[is_new]] = attended[is_new]
    return out


def _check(
    q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, cumulative: Tensor, rank: int
) -> None:
    if q.dim() != 3 or not 0 < rank <= q.shape[-1]:
        raise ValueError(f"q must be [tokens, heads, {rank} or more], got {list(q.shape)}")
    check_pool(cache, rank, q.shape[-1] - rank)
    rows = table.shape[0]
    if table.dim() != 2 or lengths.shape != (rows,) or cumulative.shape != (rows + 1,):
        raise ValueError(
            "table, lengths and cumulative must be [rows, pages], [rows] and [rows + 1], got "
            f"{list(table.shape)}, {list(lengths.shape)} and {list(cumulative.shape)}"
        )


def _fits(q: Tensor, cache: Tensor, rank: int) -> bool:
    dtypes = (torch.bfloat16, torch.uint8)
    sizes = (rank, q.shape[-1], cache.shape[1]) == (512, 576, PAGE_SIZE)
    return sizes and q.dtype == torch.bfloat16 and cache.dtype in dtypes


def _of_like_count(counts: Tensor, lengths: Tensor) -> list[Tensor]:
    """Divide rows into groups whose counts of new tokens differ by less than a factor of two.

    Rows of a group are padded to its longest, so that at most half of a product is padding; they
    are in the order of their lengths. Rows without new tokens are in no group.
    """
    order = lengths.argsort(stable=True)
    size = torch.frexp(counts[order].float()).exponent  # 1, 2-3, 4-7, ...
    return [order[size == s] for s in sorted(set(size.tolist())) if s > 0]


def _attend(
    q_GWHC: Tensor,
    cache: Tensor,
    table: Tensor,
    seen: Tensor,
    scale: float,
    rank: int,
    is_masked: bool = False,
) -> Tensor:
    """Return the attention of `q_GWHC` to the first `seen` [G, W] tokens of each row, [G, W, H, L].

    Rows are in the order of their lengths. So many at a time are padded to the longest of them
    that their latents stay in a cache of the processor. is_masked: latents that a token does not
    see are 0 for it, which takes longer, and matters only where they are not finite.
    """
    size, width = cache.shape[1], q_GWHC.shape[-1]
    lengths = seen.amax(1).clamp(0, table.shape[1] * size).tolist()
    is_page = (table >= 0) & (table < len(cache))
    is_plain = bool(is_page.all()) and bool((seen > 0).all())
    ids = table.long() if is_plain else torch.where(is_page, table.long(), 0)
    place = torch.arange(-(-lengths[-1] // size) * size, device=table.device)
    out = q_GWHC.new_empty(*q_GWHC.shape[:3], rank)
    first = 0
    for end, length in enumerate(lengths, start=1):
        if end < len(lengths) and (end + 1 - first) * lengths[end] * width <= MAX_ELEMENTS:
            continue
        rows, pages = slice(first, end), -(-length // size)
        is_hidden = place[: pages * size] >= seen[rows, :, None]  # [G, W, X]
        if not is_plain:
            is_hidden |= ~is_page[rows, :pages].repeat_interleave(size, 1)[:, None]
        latents_GXC = _latents(cache, ids[rows, :pages], width, rank)
        scores = torch.bmm(q_GWHC[rows].flatten(1, 2).float(), latents_GXC.mT).mul_(scale)
        scores = scores.view(*q_GWHC[rows].shape[:3], -1)
        shares = scores.masked_fill_(is_hidden[:, :, None], -torch.inf).softmax(-1)
        if not is_plain:
            shares.masked_fill_(is_hidden.all(-1)[..., None, None], 0)
        if is_masked:
            for token, hidden_GX in enumerate(is_hidden.unbind(1)):
                kept = latents_GXC.masked_fill(hidden_GX[..., None], 0)
                out[rows, token] = torch.bmm(shares[:, token], kept[..., :rank]).to(out.dtype)
        else:
            mixed = torch.bmm(shares.flatten(1, 2), latents_GXC[..., :rank])
            out[rows] = mixed.view_as(out[rows])
        first = end
    return out


def _latents(cache: Tensor, ids: Tensor, width: int, rank: int) -> Tensor:
    """Return the latents [G, X, C] float32 of rows from their pages `ids` [G, N]."""
    latents = cache.index_select(0, ids.flatten())
    if cache.dtype == torch.uint8:
        latents = unpack_fp8(latents, rank)
    return latents.float().view(len(ids), -1, width)
