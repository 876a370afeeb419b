"""Attention of new tokens to all latents of their rows, in pages, with `kv_b_proj` absorbed.

Letters: T new tokens of all rows end to end, B rows, H heads, L latent, R rotated key, C = L + R,
N pages of a row, P pages of the pool, S tokens of a page; of rows that are computed together: G
rows of W new tokens, M = W x H, U pages.

A row's last new token sees all of its `lengths` tokens, the one before it one fewer. Rows of the
pool that no one wrote may hold NaN, and 0 x NaN is NaN: they do not reach the output. A page id out
of range counts as a page without tokens, so that a table of garbage reads no foreign memory.

Source: arXiv 2405.04434, section 2.1; the absorbed form is that of DeepSeek-V3, inference/model.py.
"""

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import uses_triton
from dstools_kernels.ops.latent_pages import check_pool, unpack_fp8


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
    0. `rank` is L. The Triton twin is for decoding, up to two new tokens a row; `mla_prefill` is
    for more. Raises ValueError where shapes do not fit one another.
    """
    _check(q, cache, table, lengths, cumulative, rank)
    is_decoding = len(q) <= 2 * len(lengths)  # one new token a row, and one that was drafted
    if uses_triton(q) and is_decoding and has_twin(q, cache, rank):
        from dstools_kernels.ops.triton import mla_decode_triton

        return mla_decode_triton.mla_decode(q, cache, table, lengths, cumulative, scale)
    out = q.new_zeros(*q.shape[:2], rank)
    counts = cumulative.diff().long()
    first = lengths.long() - counts  # tokens of a row before its new ones
    for rows in _of_like_count(counts):
        token = torch.arange(int(counts[rows].max()), device=q.device)
        is_new = token < counts[rows, None]
        at = (cumulative[rows, None].long() + token)[is_new]
        queries = q.new_zeros(*is_new.shape, *q.shape[1:])
        queries[is_new] = q[at]
        seen = torch.where(is_new, first[rows, None] + token + 1, 0)
        out[at] = _attend(queries, cache, table[rows], seen, scale, rank)[is_new]
    return out


def has_twin(q: Tensor, cache: Tensor, rank: int) -> bool:
    """Return whether the Triton twin takes such latents: 512 + 64, BF16 or FP8, pages of 64."""
    dtypes = (torch.bfloat16, torch.uint8)
    sizes = (rank, q.shape[-1], cache.shape[1]) == (512, 576, 64)
    return sizes and q.dtype == torch.bfloat16 and cache.dtype in dtypes


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


def _of_like_count(counts: Tensor) -> list[Tensor]:
    """Divide rows into groups whose counts of new tokens differ by less than a factor of two.

    Rows of a group are padded to its longest, so that at most half of a product is padding. Rows
    without new tokens are in no group.
    """
    size = torch.frexp(counts.float()).exponent  # 1, 2-3, 4-7, ...
    return [(size == s).nonzero()[:, 0] for s in sorted(set(size.tolist())) if s > 0]


def _attend(
    q_GWHC: Tensor, cache: Tensor, table: Tensor, seen: Tensor, scale: float, rank: int
) -> Tensor:
    """Return the attention of `q_GWHC` to the first `seen` [G, W] tokens of each row, [G, W, H, L].

    Page by page in float32, the sums put together after: no row is padded to the longest, and no
    scores of one are multiplied with pages of another.
    """
    pages, size = cache.shape[:2]
    width = min(table.shape[1], -(-int(seen.max()) // size))
    place = torch.arange(width, device=table.device) * size  # of a page's first token
    ids = table[:, :width].long()
    row, column = ((place < seen.amax(1, keepdim=True)) & (ids >= 0) & (ids < pages)).nonzero(
        as_tuple=True
    )
    latents_USC = cache.index_select(0, ids[row, column])  # half the time of cache[...]
    if cache.dtype == torch.uint8:
        latents_USC = unpack_fp8(latents_USC, rank)
    latents_USC = latents_USC.float()
    position = place[column, None] + torch.arange(size, device=table.device)  # [U, S]
    is_hidden = position[..., None] >= seen[row, None]  # [U, S, W]

    def page_sums(latents: Tensor) -> Tensor:
        return _page_sums(q_GWHC, latents, row, column, is_hidden, scale, rank)

    out = page_sums(latents_USC)
    if not out.isfinite().all() and q_GWHC.shape[1] == 1:
        out = page_sums(latents_USC.masked_fill(is_hidden, 0))
    elif not out.isfinite().all():  # each token a row of its own
        alone = q_GWHC.flatten(0, 1)[:, None]
        table = table.repeat_interleave(q_GWHC.shape[1], 0)
        out = _attend(alone, cache, table, seen.flatten()[:, None], scale, rank).view_as(out)
    return out


def _page_sums(
    q_GWHC: Tensor,
    latents_USC: Tensor,
    row: Tensor,
    column: Tensor,
    is_hidden: Tensor,
    scale: float,
    rank: int,
) -> Tensor:
    """Return the softmax of scores over all pages of a row, times latents, [G, W, H, L]."""
    rows, new, heads, _ = q_GWHC.shape
    q_UMC = q_GWHC.flatten(1, 2).index_select(0, row)
    scores = torch.bmm(latents_USC, q_UMC.float().transpose(1, 2)).mul_(scale)  # [U, S, M]
    scores.view(*scores.shape[:2], new, heads).masked_fill_(is_hidden[..., None], -torch.inf)
    width = int(column.max()) + 1 if len(column) else 1
    top = scores.new_full((rows, width, new * heads), -torch.inf)
    top[row, column] = scores.amax(1)
    top = top.amax(1)  # [G, M]
    top = torch.where(top == -torch.inf, 0, top)  # a token that sees nothing
    shares = scores.sub_(top[row, None]).exp_()
    total = torch.zeros_like(top).index_add_(0, row, shares.sum(1))[..., None]
    mixed = torch.bmm(shares.transpose(1, 2), latents_USC[..., :rank])
    out = mixed.new_zeros(rows, new * heads, rank).index_add_(0, row, mixed)
    out = torch.where(total == 0, 0, out / total)
    return out.to(q_GWHC.dtype).view(rows, new, heads, rank)
