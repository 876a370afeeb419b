"""Activations in E4M3, with a scale for each token and 128 inputs, as engines multiply block FP8.

    scale = max(amax, 1e-4) / 448          one IEEE division in float32, for each token and group
    code  = e4m3(x / scale)                again, then nearest even, saturated at +-448

With `ue8m0` the scale is the least power of two that is not below that quotient. The product with
an FP8 weight is then the sum over groups of code x code, times both scales. vLLM and SGLang take
the columns of a weight's block for the size of a group (per_token_group_quant_fp8) and a smaller
floor, which changes only groups of inputs that are all below 1e-4.

Engines do not scan activations for NaN, so it must reach the output: a group that holds NaN has the
scale NaN, one that holds infinity the scale infinity, and both give NaN everywhere.
Source: deepseek-ai/DeepSeek-V3, inference/kernel.py, act_quant; the floor is DeepGEMM's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dstools_kernels.fp8 import BLOCK, E4M3_MAX, ScaleFormat
from dstools_kernels.ops.dispatch import runs_twin
from dstools_kernels.ops.permute import gather

AMAX_FLOOR = 1e-4  # for both formats of scales; weights in float32 have a smaller one
TOKENS_AT_A_TIME = 32  # the steps on some tokens stay in the cache; on 2048 they took 3x as long


class Quantized(NamedTuple):
    """E4M3 codes and what they are multiplied with."""

    codes: Tensor  # [..., K] float8_e4m3fn
    scales: Tensor  # [..., groups] float32; a short last group has its own


def act_quant(
    x: Tensor,
    scale_format: ScaleFormat = "float32",
    group_size: int = 128,
    rows: Tensor | None = None,
    is_transposed: bool = False,
) -> Quantized:
    """Cast activations `x` [..., K], BF16, F16 or F32, to E4M3, each group of inputs scaled.

    With `rows` int32 [R], row r of the result is that of x[rows[r]], x [T, K], and that of zeros
    where x has no such row. With `is_transposed` the scales of x [T, K] have the shape [R, groups]
    and are [groups, R] in memory, so that a GEMM reads those of a tile in one piece.

    Raises ValueError where `group_size` is below 1, `x` is not of a floating type, `rows` is not
    int32, or `rows` or `is_transposed` meet an `x` that is not two-dimensional.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating type, got {x.dtype}")
    if x.ndim != 2 and (rows is not None or is_transposed):
        raise ValueError(f"x must be two-dimensional, got {list(x.shape)}")
    if rows is not None and rows.dtype != torch.int32:
        raise ValueError(f"rows must be int32, got {rows.dtype}")
    if runs_twin("act_quant", x, group_size == BLOCK, f"groups of {BLOCK}"):
        from dstools_kernels.ops.triton import act_quant_triton

        flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        codes, scales = act_quant_triton.act_quant(flat, scale_format, rows, is_transposed)
        if x.ndim == 2:
            return Quantized(codes, scales)
        return Quantized(codes.view(x.shape), scales.view(*x.shape[:-1], scales.shape[-1]))
    quantized = _act_quant(x if rows is None else gather(x, rows), scale_format, group_size)
    if not is_transposed:
        return quantized
    return Quantized(quantized.codes, quantized.scales.T.contiguous().T)


def _act_quant(x: Tensor, scale_format: ScaleFormat, group_size: int) -> Quantized:
    wide = x.float()
    group_size = min(group_size, max(x.shape[-1], 1))  # a larger group is not padded with zeros
    groups = -(-x.shape[-1] // group_size)
    padded = torch.nn.functional.pad(wide, (0, groups * group_size - x.shape[-1]))
    amax = padded.view(*x.shape[:-1], groups, group_size).abs().amax(-1)
    amax.clamp_(min=AMAX_FLOOR)  # NaN stays NaN
    scales = amax / torch.full_like(amax, E4M3_MAX)  # a tensor: CUDA multiplies by 1 / number
    if scale_format == "ue8m0":
        scales = _power_of_two(scales)
    quotient = wide / _spread(scales, x.shape[-1], group_size)
    return Quantized(quotient.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales)


def restore(quantized: Quantized, group_size: int = 128) -> Tensor:
    """Return float32(code) x scale [..., K], float32."""
    codes, scales = quantized
    return codes.float().mul_(_spread(scales, codes.shape[-1], group_size))


def rounded(x: Tensor, scale_format: ScaleFormat = "float32", group_size: int = 128) -> Tensor:
    """Return what the codes of `act_quant` stand for, float32 [..., K].

    The product of these with a dequantized weight is that of the codes, but for the order of sums.
    """
    tokens = x.reshape(-1, x.shape[-1])
    parts = [
        restore(act_quant(some, scale_format, group_size), group_size)
        for some in torch.split(tokens, TOKENS_AT_A_TIME)
    ]
    return torch.cat(parts).view(x.shape)


def _power_of_two(scales: Tensor) -> Tensor:
    """Return the least powers of two that are not smaller; infinity and NaN stay."""
    bits = scales.view(torch.int32)
    up = (bits & 0x7FFFFF != 0).int() << 23
    powers = ((bits & 0x7F800000) + up).view(torch.float32)
    return torch.where(scales.isfinite(), powers, scales)


def _spread(scales: Tensor, count: int, group_size: int) -> Tensor:
    """Repeat each scale to one number for each of `count` inputs."""
    return scales.repeat_interleave(min(group_size, count), -1)[..., :count]
