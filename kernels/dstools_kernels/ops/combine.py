"""The sum of what a token's experts return, weighted, on top of the shared experts' output."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin

TWIN_DTYPES = (torch.bfloat16, torch.float32)


def combine(y: Tensor, destination: Tensor, weights: Tensor, shared: Tensor | None) -> Tensor:
    """Return shared[t] + sum over slots i of weights[t, i] * y[destination[t, i]], [T, D].

    `y` [R, D] are rows in the order of `permute`, and the result is of their dtype;
    `destination` [T, k] int32 and `weights` [T, k] float32 are those of the tokens. A slot of -1 is
    left out, whatever its weight and whatever `y` holds. Sums are float32, rounded once; the Triton
    twin begins with `shared` [T, D] and adds the slots in order. It takes BF16 and float32; all
    else is left to torch on a GPU, too.

    Raises ValueError where shapes do not match.
    """
    if destination.shape != weights.shape or (
        shared is not None and shared.shape != (len(destination), y.shape[-1])
    ):
        raise ValueError(
            f"destination {list(destination.shape)}, weights {list(weights.shape)} and shared "
            f"{None if shared is None else list(shared.shape)} do not match y {list(y.shape)}"
        )
    if runs_twin("combine", y, y.dtype in TWIN_DTYPES, "BF16 or float32"):
        from dstools_kernels.ops.triton import combine_triton

        return combine_triton.combine(y, destination, weights, shared)
    is_kept = destination >= 0
    counts = is_kept.sum(-1)
    routed = F.embedding_bag(
        destination[is_kept],
        y.float(),
        counts.cumsum(-1) - counts,
        mode="sum",
        per_sample_weights=weights[is_kept],
    )
    return (routed if shared is None else routed + shared).to(y.dtype)
