"""Weights from codes and scales, in torch: the bits of `formats.block_fp8`, and what is refused."""

import pytest
import torch
from torch import Tensor

from dstools_kernels.formats import block_fp8
from dstools_kernels.ops.weight_dequant import weight_dequant

SAFETENSORS = {torch.bfloat16: "BF16", torch.float32: "F32"}


def operands(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return all codes in turn, NaN too, and a scale a block."""
    codes = torch.arange(rows * columns).to(torch.uint8).view(rows, columns)
    grid = (-(-rows // 128), -(-columns // 128))
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(0)) * 1e-3
    return codes.view(torch.float8_e4m3fn), scales


@pytest.mark.parametrize("dtype", SAFETENSORS)
@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (192, 256), (576, 300)])
def test_bits_are_those_of_the_cpu_library(shape: tuple[int, int], dtype: torch.dtype) -> None:
    codes, scales = operands(*shape)
    ours = weight_dequant(codes, scales, dtype)
    out = torch.empty(shape, dtype=dtype)
    buffer = memoryview(out.view(torch.uint8).numpy()).cast("B")
    name = SAFETENSORS[dtype]
    raw = codes.view(torch.uint8).numpy()
    block_fp8.dequantize(raw, shape[1], scales.numpy(), buffer, dtype=name)  # type: ignore[arg-type]
    assert torch.equal(ours.isnan(), out.isnan())
    kept = ~out.isnan()
    whole = torch.int16 if dtype == torch.bfloat16 else torch.int32
    assert torch.equal(ours.view(whole)[kept], out.view(whole)[kept])


def test_bf16_is_rounded_once_from_float32_by_hand() -> None:
    """3.5 x 1.00390625 is 3.513671875 = 1.7568359375 x 2; BF16's steps there are 2^-6."""
    codes = torch.tensor([[3.5]]).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.00390625]])
    assert weight_dequant(codes, scales, torch.float32).item() == 3.513671875
    assert weight_dequant(codes, scales).item() == 3.515625


def test_misuse_is_refused() -> None:
    codes, scales = operands(576, 128)
    with pytest.raises(ValueError, match=r"scales must be \[5, 1\], got \[4, 1\]"):
        weight_dequant(codes, scales[:4])
    with pytest.raises(ValueError, match=r"bfloat16 or float32, got torch\.float16"):
        weight_dequant(codes, scales, torch.float16)
