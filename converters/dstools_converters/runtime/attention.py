"""Attention of new tokens to the keys and values of their rows, in pages.

Letters: T new tokens of all rows end to end, B rows, H heads, G key/value heads, W their size,
N pages of a row, P pages of the pool, S tokens of a page, U tokens of a row that are padded to the
longest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_attention(
    q_THW: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, cumulative: Tensor, scale: float
) -> Tensor:
    """Return softmax(q k' scale) v [T, H, W] of each new token over its row's, up to itself.

    `cache` [P, S, 2, G, W] holds keys and values, those of the new tokens too; `table` int32
    [B, N] the pages of each row, `lengths` int32 [B] its tokens with the new ones, `cumulative`
    int32 [B + 1] where its new tokens begin. Places that no one wrote may hold NaN.
    """
    counts = cumulative.diff().long()
    rows, size = len(counts), cache.shape[1]
    longest, width = int(counts.max()), int(lengths.max())
    token = torch.arange(longest, device=q_THW.device)
    is_new_BU = token < counts[:, None]
    q_BUHW = q_THW.new_zeros(rows, longest, *q_THW.shape[1:])
    q_BUHW[is_new_BU] = q_THW
    seen_BU = (lengths.long() - counts)[:, None] + token + 1
    kept = cache[table[:, : -(-width // size)].long()].flatten(1, 2)  # [B, N * S, 2, G, W]
    place = torch.arange(kept.shape[1], device=q_THW.device)
    is_written = place < lengths[:, None]
    kept = kept.masked_fill(~is_written[..., None, None, None], 0)
    k_BGXW, v_BGXW = kept.permute(2, 0, 3, 1, 4)
    mixed_BHUW = F.scaled_dot_product_attention(
        q_BUHW.transpose(1, 2),
        k_BGXW,
        v_BGXW,
        attn_mask=(place < seen_BU[..., None])[:, None],
        scale=scale,
        enable_gqa=q_THW.shape[1] != k_BGXW.shape[1],
    )
    return mixed_BHUW.transpose(1, 2)[is_new_BU]
