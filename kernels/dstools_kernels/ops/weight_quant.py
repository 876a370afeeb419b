"""Weights in E4M3 with a scale for each block of 128 x 128: `formats.block_fp8` for torch tensors.

    scale = max(amax, 1e-12) / 448         one IEEE division in float32, for each block
    code  = e4m3(w / scale)                again, then nearest even, saturated at +-448

Blocks at the right and bottom edge may be short. Source: deepseek-ai/DeepSeek-V3,
README_WEIGHTS.md; the floor keeps a block of zeros from dividing zero by zero.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dstools_kernels.fp8 import AMAX_FLOOR, BLOCK, E4M3_MAX
from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.dispatch import runs_twin


def weight_quant(weight: Tensor) -> Quantized:
    """Cast `weight` [N, K], BF16, F16 or F32, to codes [N, K] and scales [N / 128, K / 128], ceil.

    The caller refuses weights that are not finite; one that is not makes its block NaN. Raises
    ValueError where `weight` is not two-dimensional or not of a floating type.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight must be a matrix of a floating type, got {weight.dtype} {list(weight.shape)}"
        )
    if runs_twin("weight_quant", weight):
        from dstools_kernels.ops.triton import weight_quant_triton

        return Quantized(*weight_quant_triton.weight_quant(weight))
    rows, columns = weight.shape
    down, right = -rows % BLOCK, -columns % BLOCK
    tall, wide = (rows + down) // BLOCK, (columns + right) // BLOCK
    blocks = pad(weight.float(), (0, right, 0, down)).view(tall, BLOCK, wide, BLOCK)
    amax = blocks.abs().amax((1, 3)).clamp_(min=AMAX_FLOOR["float32"])
    scales = amax / torch.full_like(amax, E4M3_MAX)  # a tensor: CUDA multiplies by 1 / number
    codes = (blocks / scales[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    codes = codes.view(rows + down, columns + right)[:rows, :columns]
    return Quantized(codes.to(torch.float8_e4m3fn).contiguous(), scales)
