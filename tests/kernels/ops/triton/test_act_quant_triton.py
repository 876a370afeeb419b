"""The twin of `act_quant`, interpreted: its definition's bytes, and no access out of bounds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.fp8 import ScaleFormat
from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.triton import act_quant_triton
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, sanitized

FORMATS: tuple[ScaleFormat, ...] = ("float32", "ue8m0")


def normal(*shape: int) -> Tensor:
    """Return numbers of all sizes, 1e-8 to 1e8, so that floors and subnormal codes occur."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x * torch.logspace(-8, 8, x[..., :1].numel()).view(*shape[:-1], 1)


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_sizes_of_numbers_give_the_same_bytes(
    scale_format: ScaleFormat,
    dtype: torch.dtype,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., Any],
) -> None:
    x = normal(64, 512).to(dtype)
    assert_same_bits(act_quant(x, scale_format), by_definition(act_quant, x, scale_format))


def test_every_bf16_number_gives_the_same_bytes(
    by_definition: Callable[..., Any], assert_same_bits: Callable[..., Any]
) -> None:
    """All 65,536, those that are not finite too, in groups of 128 of about one size."""
    x = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).view(512, 128)
    assert_same_bits(act_quant(x), by_definition(act_quant, x))


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 127), (17, 128), (3, 129), (16, 300), (2, 3, 576)])
def test_ragged_shapes_stay_in_bounds(
    shape: tuple[int, ...],
    scale_format: ScaleFormat,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., Any],
) -> None:
    x = normal(*shape)
    with sanitized():
        ours = act_quant(x, scale_format)
    assert_same_bits(ours, by_definition(act_quant, x, scale_format))


@pytest.mark.parametrize("shape", [(0, 128), (5, 0), (0, 0)])
def test_nothing_to_do_launches_nothing(
    shape: tuple[int, int], by_definition: Callable[..., Any], assert_same_bits: Callable[..., Any]
) -> None:
    x = torch.zeros(shape)
    assert_same_bits(act_quant(x), by_definition(act_quant, x))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_gathered_rows_and_transposed_scales(
    is_transposed: bool, by_definition: Callable[..., Any], assert_same_bits: Callable[..., Any]
) -> None:
    x = normal(9, 300).bfloat16()
    rows = torch.tensor([8, 0, 0, -1, 9, 2**31 - 1, *range(14)], dtype=torch.int32)
    with sanitized():
        ours = act_quant(x, rows=rows, is_transposed=is_transposed)
    assert_same_bits(ours, by_definition(act_quant, x, rows=rows, is_transposed=is_transposed))
    groups = 3
    assert ours.scales.stride() == ((1, len(rows)) if is_transposed else (groups, 1))


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fills_its_group_and_no_other(
    scale_format: ScaleFormat,
    bad: float,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., Any],
) -> None:
    x = torch.ones(3, 384)
    x[1, 130] = bad
    ours = act_quant(x, scale_format)
    assert_same_bits(ours, by_definition(act_quant, x, scale_format))
    assert torch.equal(ours.scales.isfinite(), torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]]) > 0)


def test_a_row_has_the_same_bytes_alone_and_among_others(
    assert_same_bits: Callable[..., Any],
) -> None:
    x = normal(40, 256)
    whole = act_quant(x)
    for row in (0, 15, 16, 39):
        alone = act_quant(x[row : row + 1])
        assert_same_bits(alone, Quantized(whole.codes[row : row + 1], whole.scales[row : row + 1]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("448.0)", "240.0)"),
        ("FLOOR, POWERS)", "1e-6, POWERS)"),
        ("tl.max((x != x).to(tl.int32), 1) > 0", "tl.max(x, 1) != tl.max(x, 1)"),
        ("+ ((bits & 0x7FFFFF) != 0).to(tl.int32) * 0x800000", ""),
        ("group * 128 + tl.arange(0, 128)", "group * 127 + tl.arange(0, 128)"),
    ],
)
def test_a_mutant_has_other_bytes(
    old: str,
    new: str,
    tmp_path: Path,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., Any],
) -> None:
    mutant = mutate(act_quant_triton, old, new, tmp_path)
    x = normal(32, 256)
    x[20, 3] = math.nan
    ours = [Quantized(*mutant.act_quant(x, scale_format, None, False)) for scale_format in FORMATS]
    with pytest.raises(AssertionError):  # noqa: PT012
        for quantized, scale_format in zip(ours, FORMATS, strict=True):
            assert_same_bits(quantized, by_definition(act_quant, x, scale_format))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("is_row = row < rows", "is_row = row < rows + 8", OutOfBounds),
        ("(column < columns)[None, :]", "(column < columns + 8)[None, :]", Race),
        ("is_token = (token >= 0) & (token < tokens)", "is_token = token >= 0", OutOfBounds),
        ("tl.program_id(0).to(tl.int64) * ROWS", "tl.program_id(0).to(tl.int64) * 8", Race),
    ],
)
def test_the_sanitizer_catches_a_mutant(
    old: str, new: str, fault: type[Exception], tmp_path: Path
) -> None:
    mutant = mutate(act_quant_triton, old, new, tmp_path)
    x = normal(20, 300)
    rows = torch.tensor([19, 20, 21, 1000], dtype=torch.int32)
    with pytest.raises(fault), sanitized():
        [mutant.act_quant(x, "float32", gathered, False) for gathered in (None, rows)]
