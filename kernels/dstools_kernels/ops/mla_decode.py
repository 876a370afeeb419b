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

from dstools_kernels.ops.dispatch import VARIABLE, kernels, runs_twin
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
    Raises ValueError where shapes do not fit one another, and where DSTOOLS_KERNELS=triton meets a
    pool of other pages than the twin's.
    """
    _check(q, cache, table, lengths, cumulative, rank)
    fits, size = _fits(q, cache, rank), cache.shape[1]
    if fits and size != PAGE_SIZE and kernels() == "triton":
        raise ValueError(
            f"the Triton twin of mla_decode has kernels for pages of {PAGE_SIZE} tokens, not of "
            f"{size}; {VARIABLE}=auto runs its definition"
        )
    if runs_twin("mla_decode", q, fits and size == PAGE_SIZE, TWIN_NEEDS):
        from dstools_kernels.ops.triton import mla_decode_triton

        return mla_decode_triton.mla_decode(q, cache, table, lengths, cumulative, scale)
    out = q.new_zeros(*q.shape[:2], rank)
    counts = cumulative.diff()
    for rows in _of_like_count(counts, lengths):
        news = counts[rows, None]
        token = torch.arange(int(news.max()), device=q.device)
        token = token.minimum(news - 1)  # [G, W]: a row with fewer repeats its last one
        at = cumulative[rows, None] + token
        seen = lengths[rows, None] - news + token + 1
        q_GWHC = q[at].float() * scale
        attended = _attend(q_GWHC, cache, table[rows], seen, rank)
        if not attended.sum().isfinite():  # perhaps by 0 x NaN
            attended = _attend(q_GWHC, cache, table[rows], seen, rank, is_masked=True)
        out[at] = attended.to(q.dtype)
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
    """Return whether the twin takes these latents, whatever their pages."""
    dtypes = (torch.bfloat16, torch.uint8)
    return (rank, q.shape[-1]) == (512, 576) and q.dtype == torch.bfloat16 and cache.dtype in dtypes


def _of_like_count(counts: Tensor, lengths: Tensor) -> list[Tensor]:
    """Divide rows into groups whose counts of new tokens differ by at most a factor of two.

    Rows of a group are padded to its longest, so that at most half of a product is padding; they
    are in the order of their lengths. Rows without new tokens are in no group.
    """
    order = lengths.argsort(stable=True)
    size = torch.frexp(counts[order] + 1.0).exponent  # 1-2, 3-6, 7-14, ...
    return [order[size == s] for s in sorted(set(size.tolist())) if s > 1]


def _attend(
    q_GWHC: Tensor, cache: Tensor, table: Tensor, seen: Tensor, rank: int, is_masked: bool = False
) -> Tensor:
    """Return the attention of `q_GWHC`, with the scale, to `seen` [G, W] tokens, [G, W, H, L].

    Rows are in the order of their lengths. So many at a time are padded to the longest of them
    that their latents stay in a cache of the processor. is_masked: latents that a token does not
    see are 0 for it, and one that sees nothing gets 0, which takes longer; else what is not finite
    in the pages of a row may reach it, and such a token gets NaN.
    """
    size, width = cache.shape[1], q_GWHC.shape[-1]
    lengths = seen.amax(1).clamp(0, table.shape[1] * size).tolist()
    place = torch.arange(-(-lengths[-1] // size) * size, device=table.device)
    is_hidden = place >= seen[..., None]  # [G, W, X]
    is_page = (table >= 0) & (table < len(cache))
    if not is_page.all():
        table = torch.where(is_page, table, 0)
        pages = len(place) // size
        is_hidden |= ~is_page[:, :pages].repeat_interleave(size, 1)[:, None]
    bias = torch.zeros_like(is_hidden, dtype=torch.float32).masked_fill_(is_hidden, -torch.inf)
    parts, first = [], 0
    for end, length in enumerate(lengths, start=1):
        if end < len(lengths) and (end + 1 - first) * lengths[end] * width <= MAX_ELEMENTS:
            continue
        pages = -(-length // size)
        read = cache if pages > 1 else cache[:, :length]  # of a row's only page, what it holds
        latents_GXC = _latents(read, table[first:end, :pages], width, rank)
        places = latents_GXC.shape[1]
        some = q_GWHC[first:end], latents_GXC, bias[first:end, :, :places], rank
        parts.append(_mix_masked(*some) if is_masked else _mix(*some))
        first = end
    return torch.cat(parts)


def _mix(q_GWHC: Tensor, latents_GXC: Tensor, bias_GWX: Tensor, rank: int) -> Tensor:
    """Return softmax(q k' + bias) v, [G, W, H, L]."""
    bias_GWHX = bias_GWX[:, :, None].expand(-1, -1, q_GWHC.shape[2], -1)
    scores = torch.baddbmm(bias_GWHX.flatten(1, 2), q_GWHC.flatten(1, 2), latents_GXC.mT)
    mixed = torch.bmm(scores.softmax(-1), latents_GXC[..., :rank])
    return mixed.view(*q_GWHC.shape[:3], rank)


def _mix_masked(q_GWHC: Tensor, latents_GXC: Tensor, bias_GWX: Tensor, rank: int) -> Tensor:
    """Return `_mix` with latents of 0 where the bias is -infinity, and 0 where all of it is."""
    is_hidden = bias_GWX.isneginf()
    parts = []
    for token in range(q_GWHC.shape[1]):
        one = slice(token, token + 1)
        kept_GXC = latents_GXC.masked_fill(is_hidden[:, token, :, None], 0)
        mixed = _mix(q_GWHC[:, one], kept_GXC, bias_GWX[:, one], rank)
        parts.append(mixed.masked_fill(is_hidden[:, one].all(-1)[..., None, None], 0))
    return torch.cat(parts, 1)


def _latents(cache: Tensor, ids: Tensor, width: int, rank: int) -> Tensor:
    """Return the latents [G, X, C] float32 of rows from their pages `ids` [G, N]."""
    latents = cache.index_select(0, ids.flatten())
    if cache.dtype == torch.uint8:
        latents = unpack_fp8(latents, rank)
    return latents.float().view(len(ids), -1, width)
