"""The order in which a rank multiplies the copies of its tokens: by expert, then by token.

Each token has k copies, one for each expert that it chose. A copy whose expert is on this rank gets
a row, and those of one expert are neighbours, in the order of tokens and slots (a stable counting
sort). All others are dropped: experts of other ranks, which the map sends to -1, and ids or entries
of the map that are out of range, as they are when an engine times a layer on arbitrary data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin


class Permuted(NamedTuple):
    """The rows of a rank. There are as many as copies, so that no size depends on the routing."""

    tokens: Tensor  # [T * k] int32, the token of each row; 0 from row offsets[G] on
    destination: Tensor  # [T, k] int32, the row of each copy, -1 where it is dropped
    offsets: Tensor  # [G + 1] int32, the first row of each of G local experts, then their number


def gather(x: Tensor, tokens: Tensor) -> Tensor:
    """Return x[tokens] [R, D] of `x` [T, D], rows of zeros where x has no such token.

    The Triton twin takes BF16; all else is left to torch on a GPU, too. Raises ValueError where
    `tokens` is not int32 [R] or `x` is not a matrix.
    """
    if tokens.dtype != torch.int32 or tokens.ndim != 1 or x.ndim != 2:
        raise ValueError(
            f"x and tokens must be a matrix and int32 [R], got {list(x.shape)} and "
            f"{tokens.dtype} {list(tokens.shape)}"
        )
    if runs_twin("gather", x, x.dtype == torch.bfloat16, "BF16"):
        from dstools_kernels.ops.triton import permute_triton

        return permute_triton.gather(x, tokens)
    is_known = (tokens >= 0) & (tokens < len(x))
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return padded[torch.where(is_known, tokens, len(x)).long()]


def permute(ids: Tensor, expert_map: Tensor, num_local: int) -> Permuted:
    """Sort the copies of tokens that chose the experts `ids` [T, k] int32 by their local expert.

    `expert_map` [E] int32 gives an expert's place among the `num_local` of this rank, or -1.
    Raises ValueError where either is not int32, or `num_local` is below 1.
    """
    if ids.dtype != torch.int32 or expert_map.dtype != torch.int32:
        raise ValueError(
            f"ids and expert_map must be int32, got {ids.dtype} and {expert_map.dtype}"
        )
    if num_local < 1:
        raise ValueError(f"num_local must be at least 1, got {num_local}")
    if runs_twin("permute", ids):
        from dstools_kernels.ops.triton import permute_triton

        return Permuted(*permute_triton.permute(ids, expert_map, num_local))
    flat, count = ids.flatten(), len(expert_map)
    local = expert_map[flat.clamp(0, count - 1).long()]
    is_kept = (flat >= 0) & (flat < count) & (local >= 0) & (local < num_local)
    local = torch.where(is_kept, local, num_local)
    order = local.argsort(stable=True)
    rows = torch.arange(len(flat), dtype=torch.int32, device=ids.device)
    destination = torch.empty_like(rows).scatter_(0, order, rows)
    bounds = torch.arange(num_local + 1, dtype=torch.int32, device=ids.device)
    offsets = torch.searchsorted(local[order], bounds, out_int32=True)
    tokens = (order // ids.shape[-1]).int().masked_fill_(rows >= offsets[-1], 0)
    return Permuted(tokens, destination.masked_fill_(~is_kept, -1).view(ids.shape), offsets)
