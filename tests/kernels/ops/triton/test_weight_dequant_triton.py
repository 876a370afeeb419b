"""The twin of `weight_dequant`, interpreted: its definition's bits, and no access out of bounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.triton import weight_dequant_triton
from dstools_kernels.ops.weight_dequant import weight_dequant
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, sanitized

SHAPES = [(1, 1), (127, 129), (128, 128), (192, 256), (576, 300)]


def operands(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return all codes in turn, NaN too, and a scale a block."""
    codes = torch.arange(rows * columns).to(torch.uint8).view(rows, columns)
    grid = (-(-rows // 128), -(-columns // 128))
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(0)) * 1e-3
    return codes.view(torch.float8_e4m3fn), scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_blocks_have_the_same_bits(
    shape: tuple[int, int],
    dtype: torch.dtype,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., None],
) -> None:
    codes, scales = operands(*shape)
    with sanitized():
        ours = weight_dequant(codes, scales, dtype)
    assert_same_bits([ours], [by_definition(weight_dequant, codes, scales, dtype)])


def test_an_empty_weight_launches_nothing() -> None:
    codes = torch.zeros(0, 300).to(torch.float8_e4m3fn)
    assert weight_dequant(codes, torch.zeros(0, 3)).shape == (0, 300)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("(row < rows)[:, None]", "(row < rows + 8)[:, None]", OutOfBounds),
        ("(column < columns)[None, :]", "(column < columns + 8)[None, :]", Race),
        ("wide + tl.program_id(1))", "wide + tl.program_id(1) + 1)", OutOfBounds),
        ("wide = tl.num_programs(1)", "wide = columns // 128", None),
        (".to(tl.float32) * scale", ".to(tl.bfloat16) * scale.to(tl.bfloat16)", None),
    ],
)
def test_a_mutant_is_caught_by_the_sanitizer_or_by_its_bits(
    old: str,
    new: str,
    fault: type[Exception] | None,
    tmp_path: Path,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., None],
) -> None:
    mutant = mutate(weight_dequant_triton, old, new, tmp_path)
    codes, scales = operands(300, 300)
    if fault:
        with pytest.raises(fault), sanitized():
            mutant.weight_dequant(codes, scales, torch.bfloat16)
        return
    ours = mutant.weight_dequant(codes, scales, torch.bfloat16)
    wanted = by_definition(weight_dequant, codes, scales)
    with pytest.raises(AssertionError):
        assert_same_bits([ours], [wanted])
