"""Attention of new tokens to the keys and values of their rows, in pages.

Letters: T new tokens of all rows end to end, B rows, H heads, G key/value heads, R = H / G, W their
size, N pages of a row, P pages of the pool, S tokens of a page; X tokens of a row and U new ones,
both padded to the most that a row of the group has, Y = U R.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 2**26  # elements of copied keys and values, or of scores, at a time


class Group(NamedTuple):
    """Rows of like length, and new tokens of each, that are attended at a time."""

    slots_BX: Tensor  # int64, rows of the flat pool; past the end of a row, its last one
    tokens_BU: Tensor  # int64, new tokens; past the last one of a row, that one
    seen_BU: Tensor  # int64, how many tokens of its row each of them sees


class Plan(NamedTuple):
    """What each new token attends to, the same for all layers of a step."""

    groups: list[Group]
    order_T: Tensor  # int64, where each new token is among those of all groups, end to end


def attention_plan(
    table: Tensor, lengths: Tensor, cumulative: Tensor, shape: torch.Size, heads: int
) -> Plan:
    """Return the plan by which each new token attends to its row, up to itself.

    `table` int32 [B, N] names the pages of each row, `lengths` int32 [B] its tokens with the new
    ones, `cumulative` int32 [B + 1] where its new tokens begin; `shape` is that of a layer's cache.
    Groups bound memory by MOST, or by the keys and values of the longest row.
    """
    begins, counts = cumulative[:-1].long(), cumulative.diff().long()
    groups: list[Group] = []
    order_T, total = begins.new_empty(int(cumulative[-1])), 0
    for rows in _alike(lengths, counts.nonzero()[:, 0], MOST // shape[2:].numel()):
        ends, news = lengths[rows, None].long(), counts[rows, None]
        place_BX = torch.arange(int(ends.max()), device=ends.device).minimum(ends - 1)
        page_BX = table[rows].long().gather(1, place_BX // shape[1])
        slots_BX = page_BX * shape[1] + place_BX % shape[1]
        longest, step = int(news.max()), max(1, MOST // (heads * slots_BX.numel()))
        for first in range(0, longest, step):
            new_U = torch.arange(first, min(first + step, longest), device=ends.device)
            new_BU, is_new_BU = new_U.minimum(news - 1), new_U < news
            tokens_BU = begins[rows, None] + new_BU
            order_T[tokens_BU[is_new_BU]] = total + is_new_BU.flatten().nonzero()[:, 0]
            groups.append(Group(slots_BX, tokens_BU, ends - news + new_BU + 1))
            total += tokens_BU.numel()
    return Plan(groups, order_T)


def paged_attention(q_THW: Tensor, cache: Tensor, plan: Plan, scale: float) -> Tensor:
    """Return softmax(q k' scale) v [T, H, W] of each new token over what `plan` says it sees.

    `cache` [P, S, 2, G, W] holds keys and values, those of the new tokens too. Places that no one
    wrote may hold NaN: they are not read.
    """
    _, _, _, groups, width = cache.shape
    parts = []
    for slots_BX, tokens_BU, seen_BU in plan.groups:
        kept = cache.flatten(0, 1).index_select(0, slots_BX.flatten())
        k_BGXW, v_BGXW = kept.view(*slots_BX.shape, 2, groups, width).permute(2, 0, 3, 1, 4)
        q_BUGRW = q_THW[tokens_BU].view(*tokens_BU.shape, groups, -1, width)
        q_BGURW = q_BUGRW.transpose(1, 2)
        # heads that read the same keys are queries of one head
        seen_BY = seen_BU.repeat_interleave(q_BGURW.shape[3], 1)
        place_X = torch.arange(slots_BX.shape[1], device=cache.device)
        mixed_BGYW = F.scaled_dot_product_attention(
            q_BGURW.flatten(2, 3),
            k_BGXW,
            v_BGXW,
            attn_mask=(place_X < seen_BY[..., None])[:, None],
            scale=scale,
        )
        mixed_BUGRW = mixed_BGYW.view(q_BGURW.shape).transpose(1, 2)
        parts.append(mixed_BUGRW.reshape(-1, *q_THW.shape[1:]))
    return torch.cat(parts).index_select(0, plan.order_T)


def _alike(lengths: Tensor, rows: Tensor, most: int) -> Iterator[Tensor]:
    """Yield `rows` in groups of like length, by the lengths [B] of all.

    Padded to the longest, those of a group have at most `most` tokens, unless it is a single row.
    """
    order = rows[lengths[rows].argsort()]
    sizes = lengths[order].tolist()
    begin = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or (end + 1 - begin) * sizes[end] > most:
            yield order[begin:end]
            begin = end
