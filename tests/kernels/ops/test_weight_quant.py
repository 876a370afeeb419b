"""Weights in E4M3, in torch: the bytes of `formats.block_fp8`, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dstools_kernels.formats import block_fp8
from dstools_kernels.ops.weight_quant import weight_quant

SAFETENSORS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def weight(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers of many sizes; the second block of 128 rows, if there is one, is zeros."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-3, 3, columns)
    x[128:256] = 0
    return x.to(dtype)


def raw(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", SAFETENSORS)
@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (128, 128), (192, 256), (576, 300)])
def test_bytes_are_those_of_the_cpu_library(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """576 rows have 5 rows of scales, 192 have 2, and one block is all zeros."""
    w = weight(*shape, dtype)
    codes, scales = weight_quant(w)
    grid = [math.ceil(size / 128) for size in shape]
    assert (codes.dtype, list(codes.shape)) == (torch.float8_e4m3fn, list(shape))
    assert (scales.dtype, list(scales.shape)) == (torch.float32, grid)
    wanted, steps = bytearray(codes.numel()), bytearray(4 * scales.numel())
    block_fp8.quantize(raw(w), SAFETENSORS[dtype], shape[1], wanted, steps)  # type: ignore[arg-type]
    assert raw(codes) == wanted
    assert raw(scales) == steps


def test_a_block_of_zeros_has_the_scale_of_the_floor() -> None:
    codes, scales = weight_quant(torch.zeros(2, 2))
    assert raw(codes) == bytes(4)
    assert scales.item() == np.float32(1e-12) / np.float32(448)


def test_a_nan_fills_its_block_and_no_other() -> None:
    w = torch.ones(129, 129)
    w[0, 128] = math.nan
    codes, scales = weight_quant(w)
    assert torch.equal(scales.isnan(), torch.tensor([[False, True], [False, False]]))
    assert codes.isnan().sum() == 128
    assert codes[:128, 128].isnan().all()


@pytest.mark.parametrize("shape", [(0, 128), (5, 0)])
def test_an_empty_weight_has_no_scales(shape: tuple[int, int]) -> None:
    codes, scales = weight_quant(torch.zeros(shape))
    assert codes.shape == shape
    assert scales.numel() == 0


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrix of a floating type, got torch\.float32 \[4\]"):
        weight_quant(torch.zeros(4))
    with pytest.raises(ValueError, match=r"got torch\.int8 \[2, 2\]"):
        weight_quant(torch.zeros(2, 2, dtype=torch.int8))
