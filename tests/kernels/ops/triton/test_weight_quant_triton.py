"""The twin of `weight_quant`, interpreted: its definition's bytes, and no access out of bounds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.triton import weight_quant_triton
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, sanitized

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 1), (127, 129), (128, 128), (192, 256), (576, 300)]


def weight(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers of all sizes; the second block of 128 rows, if there is one, is zeros."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-12, 4, columns)
    x[128:256] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_blocks_have_the_same_bytes(
    shape: tuple[int, int],
    dtype: torch.dtype,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., None],
) -> None:
    w = weight(*shape, dtype)
    with sanitized():
        ours = weight_quant(w)
    assert_same_bits(ours, by_definition(weight_quant, w))


def test_a_nan_or_infinity_fills_its_block_and_nothing_to_do_launches_nothing(
    by_definition: Callable[..., Any], assert_same_bits: Callable[..., None]
) -> None:
    w = torch.ones(129, 257)
    w[0, 128], w[128, 256] = math.nan, -math.inf
    assert_same_bits(weight_quant(w), by_definition(weight_quant, w))
    for empty in (torch.zeros(0, 128), torch.zeros(5, 0)):
        assert_same_bits(weight_quant(empty), by_definition(weight_quant, empty))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FLOOR, False", "1e-4, False"),
        ("0) > 0", "0) > 1"),
        ("tl.div_rn(w, tl.broadcast_to(scale, w.shape))", "w * (1.0 / scale)"),
    ],
)
def test_a_mutant_has_other_bytes(
    old: str,
    new: str,
    tmp_path: Path,
    by_definition: Callable[..., Any],
    assert_same_bits: Callable[..., None],
) -> None:
    mutant = mutate(weight_quant_triton, old, new, tmp_path)
    w = weight(300, 300)
    w[299, 299] = math.nan
    ours, wanted = mutant.weight_quant(w), by_definition(weight_quant, w)
    with pytest.raises(AssertionError):
        assert_same_bits(ours, wanted)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("(row < rows)[:, None]", "(row < rows + 8)[:, None]", OutOfBounds),
        ("(column < columns)[None, :]", "(column < columns + 8)[None, :]", Race),
        ("grid = (-(-rows // 128), -(-columns // 128))", "grid = (rows // 128, columns // 128)", 0),
        ("wide = tl.num_programs(1)", "wide = columns // 128", Race),
    ],
)
def test_a_mutant_is_caught_by_the_sanitizer_or_leaves_scales_unwritten(
    old: str, new: str, fault: type[Exception] | int, tmp_path: Path
) -> None:
    """Scales by floor in place of ceil: 576 rows would have 4 rows of them."""
    mutant = mutate(weight_quant_triton, old, new, tmp_path)
    w = weight(576, 300)
    if not fault:
        assert mutant.weight_quant(w)[1].shape != weight_quant(w).scales.shape
        return
    with pytest.raises(fault), sanitized():  # type: ignore[arg-type]
        mutant.weight_quant(w)
