"""Weights from E4M3 codes and the scales of their blocks: `formats.block_fp8` for torch tensors.

    back = dtype(float32(code) * scale)    two roundings, as DeepSeek's kernel does

Source: deepseek-ai/DeepSeek-V3, inference/kernel.py, weight_dequant.
"""

import torch
from torch import Tensor

from dstools_kernels.fp8 import BLOCK
from dstools_kernels.ops.dispatch import runs_twin


def weight_dequant(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the weight [N, K] of E4M3 `codes` [N, K] and `scales` [N / 128, K / 128], ceil.

    A NaN code gives NaN. Raises ValueError where the shapes do not match or `dtype` is neither BF16
    nor F32.
    """
    rows, columns = codes.shape
    grid = [-(-rows // BLOCK), -(-columns // BLOCK)]
    if list(scales.shape) != grid:
        raise ValueError(f"scales must be {grid}, got {list(scales.shape)}")
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be bfloat16 or float32, got {dtype}")
    if runs_twin("weight_dequant", codes):
        from dstools_kernels.ops.triton import weight_dequant_triton

        return weight_dequant_triton.weight_dequant(codes, scales, dtype)
    spread = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (codes.float() * spread).to(dtype)
