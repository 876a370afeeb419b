"""The parts of a softmax over keys that were divided into splits, joined.

Letters: T tokens, H heads, L latent, S splits of all tokens end to end.
"""

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin


def mla_merge(
    partial: Tensor, lse: Tensor, offsets: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Return the attention of each token from that of its splits, [T, H, L] in `dtype`.

    `partial` float32 [S, H, L] is the softmax over the keys of a split times their values, `lse`
    float32 [S, H] log2 of the sum of exp2 of its scores, -inf where a split has no keys; what
    `partial` holds there is not read. `offsets` int32 [T + 1]: token t has splits offsets[t] to
    offsets[t + 1], any number of them; where all are empty it gets 0. Raises ValueError where
    shapes do not fit one another.
    """
    if partial.dim() != 3 or lse.shape != partial.shape[:2] or offsets.dim() != 1:
        raise ValueError(
            "partial, lse and offsets must be [splits, heads, latent], [splits, heads] and "
            f"[tokens + 1], got {list(partial.shape)}, {list(lse.shape)}, {list(offsets.shape)}"
        )
    rank = partial.shape[-1]
    is_power_of_two = rank & (rank - 1) == 0
    if runs_twin("mla_merge", partial, is_power_of_two, "a latent of a power of two"):
        from dstools_kernels.ops.triton import mla_merge_triton

        return mla_merge_triton.mla_merge(partial, lse, offsets, dtype)
    counts = offsets.diff().long()
    token = torch.repeat_interleave(torch.arange(len(counts), device=partial.device), counts)
    used = slice(int(offsets[0]), int(offsets[-1]))
    partial, lse = partial[used], lse[used]
    top = lse.new_full((len(counts), lse.shape[1]), -torch.inf)
    top = top.scatter_reduce_(0, token[:, None].expand_as(lse), lse, "amax")
    shares = torch.exp2(lse - torch.where(top == -torch.inf, 0, top)[token])[..., None]
    parts = torch.where(shares == 0, 0, shares * partial)
    total = partial.new_zeros(*top.shape, 1).index_add_(0, token, shares)
    out = partial.new_zeros(*top.shape, partial.shape[-1]).index_add_(0, token, parts)
    return torch.where(total == 0, 0, out / total).to(dtype)
