"""Causal attention of many new tokens, with keys and values expanded from the latents.

Letters: TQ new tokens and TK keys of all rows end to end, B rows, H heads, N key without position,
R rotated key, W value. Cheaper than `mla_decode` where a row has many new tokens: N + R + W
multiplications for each pair of tokens, 320 and not 1088 in DeepSeek V3.
"""

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin

MAX_SCORES = 1 << 24  # numbers at a time in the definition, which holds three arrays of them


def mla_prefill(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    cumulative_q: Tensor,
    cumulative_k: Tensor,
    scale: float,
) -> Tensor:
    """Return softmax(scale q k') v of each new token over the keys up to its own, [TQ, H, W].

    `q` [TQ, H, N + R], `k_nope` [TK, H, N], `k_rope` [TK, R] of all heads, `v` [TK, H, W]. Row b
    has the queries cumulative_q[b] to cumulative_q[b + 1] and the keys cumulative_k[b] to
    cumulative_k[b + 1], of which the last are those of its queries; both int32 [B + 1]. A token
    before the first key gets 0. What one row holds does not reach another. Raises ValueError where
    shapes do not fit one another.
    """
    heads, wide = q.shape[1:]
    keys, nope, rope = len(k_nope), k_nope.shape[-1], k_rope.shape[-1]
    fits = k_nope.shape == (keys, heads, nope) and k_rope.shape == (keys, rope)
    if not fits or v.shape[:2] != (keys, heads) or nope + rope != wide:
        raise ValueError(
            "q, k_nope, k_rope and v must be [queries, heads, n + r], [keys, heads, n], [keys, r] "
            f"and [keys, heads, w], got {list(q.shape)}, {list(k_nope.shape)}, "
            f"{list(k_rope.shape)}, {list(v.shape)}"
        )
    sizes = (nope, rope, v.shape[-1])
    fits = sizes == (128, 64, 128) and q.dtype == torch.bfloat16
    if runs_twin("mla_prefill", q, fits, "BF16 heads of 128 + 64 and 128"):
        from dstools_kernels.ops.triton import mla_prefill_triton

        return mla_prefill_triton.mla_prefill(
            q, k_nope, k_rope, v, cumulative_q, cumulative_k, scale
        )
    out = q.new_zeros(*q.shape[:2], v.shape[-1])
    q_ends, k_ends = cumulative_q.tolist(), cumulative_k.tolist()
    for row in range(len(q_ends) - 1):
        own, seen = slice(*q_ends[row : row + 2]), slice(*k_ends[row : row + 2])
        out[own] = _attend(q[own], k_nope[seen], k_rope[seen], v[seen], scale).to(q.dtype)
    return out


def _attend(q: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the attention of the last tokens of one row to all of them, float32 [queries, H, W].

    Queries are taken so many at a time that their scores are at most MAX_SCORES.
    """
    queries, heads = q.shape[:2]
    keys, _, nope = k_nope.shape
    k_nope, k_rope = k_nope.float().permute(1, 2, 0), k_rope.float().T  # [H, N, keys], [R, keys]
    v = v.float().transpose(0, 1)  # [H, keys, W]
    last = torch.arange(keys - queries, keys, device=q.device)  # the last key that a query sees
    key = torch.arange(keys, device=q.device)
    count = max(1, MAX_SCORES // (heads * max(keys, 1)))
    parts = []
    for some, seen in zip(torch.split(q, count), torch.split(last, count), strict=True):
        some = some.float().transpose(0, 1)
        scores = torch.matmul(some[..., :nope], k_nope)  # [H, queries, keys]
        scores.add_(torch.matmul(some[..., nope:], k_rope)).mul_(scale)
        shares = scores.masked_fill_(key > seen[:, None], -torch.inf).softmax(-1)
        shares.masked_fill_((seen < 0)[:, None], 0)
        parts.append(torch.matmul(shares, v).transpose(0, 1))
    return torch.cat(parts)
