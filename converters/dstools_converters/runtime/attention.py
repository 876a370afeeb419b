"""Attention of new tokens to the keys and values of their rows, in pages.

Letters: T new tokens of all rows end to end, B rows, H heads, G key/value heads, W their size,
N pages of a row, P pages of the pool, S tokens of a page, U tokens of a row that are padded to the
longest.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 2**26  # elements of copied keys and values, or of scores, at a time


def paged_attention(
    q_THW: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, cumulative: Tensor, scale: float
) -> Tensor:
    """Return softmax(q k' scale) v [T, H, W] of each new token over its row's, up to itself.

    `cache` [P, S, 2, G, W] holds keys and values, those of the new tokens too; `table` int32
    [B, N] the pages of each row, `lengths` int32 [B] its tokens with the new ones, `cumulative`
    int32 [B + 1] where its new tokens begin. Places that no one wrote may hold NaN. Memory is
    bounded by MOST, or by the keys and values of the longest row.
    """
    mixed_THW = torch.empty_like(q_THW)
    begins, counts = cumulative[:-1].long(), cumulative.diff().long()
    for rows, width in _groups(-(-lengths // cache.shape[1]), MOST // cache[0].numel()):
        news, ends = counts[rows, None], lengths[rows, None].long()
        pages = table[rows, :width].flatten()
        kept = cache.index_select(0, pages).view(len(rows), -1, *cache.shape[2:])  # B, N * S, ...
        place = torch.arange(kept.shape[1], device=kept.device)
        kept[place >= ends] = 0
        k_BGXW, v_BGXW = kept.permute(2, 0, 3, 1, 4)
        step = max(1, MOST // (q_THW.shape[1] * kept[..., 0, 0, 0].numel()))
        longest = int(news.max())
        for first in range(0, longest, step):
            token = torch.arange(first, min(first + step, longest), device=kept.device)
            is_new_BU = token < news
            new = (begins[rows, None] + token)[is_new_BU]
            q_BUHW = q_THW.new_zeros(*is_new_BU.shape, *q_THW.shape[1:])
            q_BUHW[is_new_BU] = q_THW[new]
            seen_BU = ends - news + token + 1
            mixed_BHUW = F.scaled_dot_product_attention(
                q_BUHW.transpose(1, 2),
                k_BGXW,
                v_BGXW,
                attn_mask=(place < seen_BU[..., None])[:, None],
                scale=scale,
                enable_gqa=q_THW.shape[1] != k_BGXW.shape[1],
            )
            mixed_THW[new] = mixed_BHUW.transpose(1, 2)[is_new_BU]
    return mixed_THW


def _groups(pages: Tensor, most: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows of like length and the pages of the longest, by the pages [B] of each.

    Padded to the longest, they have at most `most` pages, unless it is a single row.
    """
    order = pages.argsort()
    widths = pages[order].tolist()
    begin = 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or (end + 1 - begin) * widths[end] > most:
            yield order[begin:end], widths[end - 1]
            begin = end
