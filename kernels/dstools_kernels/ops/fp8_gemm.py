"""Products of block FP8: activations in 1 x 128 tiles with weights in 128 x 128 blocks.

    y[t, n] = sum over g of (sum over k in g of x[t, k] w[n, k]) x_scale[t, g] w_scale[n // 128, g]

A Hopper tensor core does not add FP8 products in full float32, so the Triton twin takes the sum out
of it after each group of 128 and continues in float32 (two-level accumulation). The definition
scales the codes first, which is the same but for float32's rounding.
Source: arXiv 2412.19437, section 3.3.2; deepseek-ai/DeepSeek-V3, inference/kernel.py, fp8_gemm.
"""

import torch
from torch import Tensor

from dstools_kernels.fp8 import BLOCK
from dstools_kernels.ops.act_quant import Quantized, restore
from dstools_kernels.ops.dispatch import is_aligned, runs_twin
from dstools_kernels.ops.weight_dequant import weight_dequant

TWIN_DTYPES = (torch.bfloat16, torch.float32)  # of the result


def fp8_gemm(x: Quantized, w: Quantized, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return x w' [T, N] in `dtype`.

    `x` holds codes [T, K] and scales [T, ceil(K / 128)], of any strides (the twin loads those of
    neighbouring rows together where they are neighbours), `w` codes [N, K] and scales
    [ceil(N / 128), ceil(K / 128)]. The Triton twin takes K divisible by 16 and N by 8, as TMA
    needs, and writes BF16 or float32; all else is left to torch on a GPU, too.

    Raises ValueError where shapes do not match.
    """
    check_scales(x, w)
    columns, depth = w.codes.shape[-2:]
    fits = is_aligned(depth, 2 * columns) and dtype in TWIN_DTYPES
    if runs_twin("fp8_gemm", x.codes, fits, "K divisible by 16, N by 8, BF16 or float32 out"):
        from dstools_kernels.ops.triton import fp8_gemm_triton

        return fp8_gemm_triton.fp8_gemm(x, w, dtype)
    return (restore(x) @ weight_dequant(*w, torch.float32).mT).to(dtype)


def check_scales(x: Quantized, w: Quantized) -> None:
    """Raise ValueError unless `w` [..., N, K] takes `x` [..., K] and both have a scale a block."""
    rows, cols = w.codes.shape[-2:]
    blocks = (-(-rows // BLOCK), -(-cols // BLOCK))
    wanted = ((*x.codes.shape[:-1], blocks[1]), (*w.codes.shape[:-2], *blocks))
    if x.codes.shape[-1] != cols or (x.scales.shape, w.scales.shape) != wanted:
        raise ValueError(
            f"x {list(x.codes.shape)} with scales {list(x.scales.shape)} and w "
            f"{list(w.codes.shape)} with scales {list(w.scales.shape)} do not match"
        )
