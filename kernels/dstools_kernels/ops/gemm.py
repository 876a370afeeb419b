"""Products with weights in BF16 or float32: x w', as of nn.Linear."""

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import is_aligned, runs_twin

TWIN_DTYPES = (torch.bfloat16, torch.float32)  # of the result


def gemm(x: Tensor, w: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return x w' [..., T, N] of `x` [..., T, K] and `w` [..., N, K], in `dtype` or that of `x`.

    The dimensions before the last two are those of a batch and equal in both; MLA's absorbed
    kv_b_proj has its heads there. Sums are float32 and rounded once. The Triton twin takes BF16
    with K and N divisible by 8, as TMA needs, and writes BF16 or float32; all else is left to torch
    on a GPU, too.

    Raises ValueError where shapes or dtypes do not match.
    """
    if x.dtype != w.dtype or x.shape[:-2] != w.shape[:-2] or x.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"x {list(x.shape)} {x.dtype} and w {list(w.shape)} {w.dtype} do not match"
        )
    dtype = dtype or x.dtype
    is_bf16 = x.dtype == torch.bfloat16 and dtype in TWIN_DTYPES
    fits = is_bf16 and is_aligned(2 * w.shape[-1], 2 * w.shape[-2])
    if runs_twin("gemm", x, fits, "BF16 with K and N divisible by 8, BF16 or float32 out"):
        from dstools_kernels.ops.triton import gemm_triton

        return gemm_triton.gemm(x, w, dtype)
    if dtype == x.dtype:
        return x @ w.mT
    return (x.float() @ w.float().mT).to(dtype)
