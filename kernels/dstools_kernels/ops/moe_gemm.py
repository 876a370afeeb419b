"""Products of each expert's rows with that expert's weight, rows sorted as `permute` does."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.dispatch import is_aligned, runs_twin
from dstools_kernels.ops.fp8_gemm import check_scales, fp8_gemm

TWIN_DTYPES = (torch.bfloat16, torch.float8_e4m3fn)


def moe_gemm(x: Tensor | Quantized, w: Tensor | Quantized, offsets: Tensor) -> Tensor:
    """Return y [R, N], where y[r] = x[r] w[g]' for the rows offsets[g] <= r < offsets[g + 1].

    Either `x` [R, K] and `w` [G, N, K] are BF16 or float32, and so is y; or both are FP8 (scales as
    `fp8_gemm` has them, [G, ceil(N / 128), ceil(K / 128)] for the weights) and y is BF16. `offsets`
    [G + 1] int32 does not decrease. Experts may have no rows. Rows that belong to no expert are not
    computed: their y is undefined. The Triton twin takes FP8 with K divisible by 16 and BF16 with K
    divisible by 8, as TMA needs; all else is left to torch on a GPU, too.

    Raises ValueError where shapes or dtypes do not match.
    """
    if isinstance(x, Quantized) and isinstance(w, Quantized):
        rows, weight, dtype = x.codes, w.codes, torch.bfloat16
        check_scales(x, w)
    elif isinstance(x, Tensor) and isinstance(w, Tensor) and x.dtype == w.dtype:
        rows, weight, dtype = x, w, x.dtype
    else:
        raise ValueError("x and w must be of one dtype, and either both have scales or neither")
    if rows.shape[-1] != weight.shape[-1] or len(offsets) != len(weight) + 1:
        raise ValueError(
            f"x {list(rows.shape)}, w {list(weight.shape)} and offsets {list(offsets.shape)} "
            "do not match"
        )
    if not len(weight):
        return rows.new_empty(len(rows), weight.shape[1], dtype=dtype)
    is_loadable = is_aligned(rows.shape[-1] * rows.itemsize)  # torch asks for it, too
    fits = is_loadable and rows.dtype in TWIN_DTYPES
    if runs_twin("moe_gemm", rows, fits, "FP8 with K divisible by 16 or BF16 with K by 8"):
        from dstools_kernels.ops.triton import moe_gemm_triton

        return moe_gemm_triton.moe_gemm(x, w, offsets)
    if is_loadable and isinstance(x, Tensor) and x.device.type == "cpu":
        whole = (
            weight if weight.stride(-1) == 1 else weight.contiguous()
        )  # may be a part of a stack
        return F.grouped_mm(rows.contiguous(), whole.mT, offs=offsets[1:])
    y = rows.new_empty(len(rows), weight.shape[1], dtype=dtype)
    for expert, (first, end) in enumerate(pairwise(offsets.tolist())):
        if first == end:
            continue
        if isinstance(x, Quantized) and isinstance(w, Quantized):
            part = Quantized(x.codes[first:end], x.scales[first:end])
            y[first:end] = fp8_gemm(part, Quantized(w.codes[expert], w.scales[expert]))
        else:
            y[first:end] = rows[first:end] @ weight[expert].mT
    return y
