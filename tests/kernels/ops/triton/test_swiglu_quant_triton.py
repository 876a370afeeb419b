"""The twin of `swiglu_quant`, interpreted, against its definition and float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.swiglu_quant import swiglu, swiglu_quant
from dstools_kernels.ops.triton import swiglu_quant_triton
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, sanitized

SHAPES = [(1, 1), (17, 127), (16, 128), (3, 129), (20, 300), (5, 576)]


def operands(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, rows, columns, generator=generator)
    return (gate * torch.logspace(-3, 2, columns)).to(dtype), up.to(dtype)


def wrong_bytes(ours: Quantized, wanted: Quantized) -> int:
    return int((ours.codes.view(torch.uint8) != wanted.codes.view(torch.uint8)).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_shapes_stay_in_bounds_and_are_those_of_the_definition(
    shape: tuple[int, int], by_definition: Callable[..., Any]
) -> None:
    """An ulp of the exponential moves one in 10,000 roundings to BF16, and of these one in 16 a
    code: none here."""
    gate, up = operands(*shape)
    with sanitized():
        ours = swiglu_quant(gate, up)
    wanted = by_definition(swiglu_quant, gate, up)
    assert wrong_bytes(ours, wanted) == 0
    assert torch.equal(ours.scales, wanted.scales)


def test_codes_are_those_of_float64() -> None:
    gate, up = operands(64, 512)
    exact = gate.double() * torch.sigmoid(gate.double()) * up.double()
    ours = swiglu_quant(gate, up)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTOOLS_KERNELS", "reference")
        wanted = act_quant(exact.bfloat16())
    assert wrong_bytes(ours, wanted) == 0
    assert torch.equal(ours.scales, wanted.scales)
    assert ours.scales.stride() == (1, 64)  # as GEMMs read them


def test_what_is_not_finite_fills_its_group_and_large_gates_do_not(
    by_definition: Callable[..., Any], assert_same_bits: Callable[..., None]
) -> None:
    gate, up = torch.ones(2, 2, 256, dtype=torch.bfloat16)
    gate[0, 0], up[1, 200] = math.nan, math.inf
    gate[0, 200], gate[1, 0] = -1e4, 1e4
    ours, wanted = swiglu_quant(gate, up), by_definition(swiglu_quant, gate, up)
    assert_same_bits([ours.codes], [wanted.codes])
    assert torch.equal(ours.scales.isfinite(), torch.tensor([[False, True], [True, False]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_dtypes_than_bf16_are_left_to_the_definition(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(swiglu_quant_triton, "swiglu_quant")
    gate, up = operands(3, 128, dtype)
    assert swiglu_quant(gate, up).codes.shape == (3, 128)
    with pytest.raises(ValueError, match=r"floating type, got torch\.int32"):
        swiglu_quant(gate.int(), up.int())


@pytest.mark.parametrize("shape", [(3, 1), (2, 1024), (3, 1025), (2, 2050)])
def test_without_codes_the_bits_are_those_of_the_definition(
    shape: tuple[int, int], by_definition: Callable[..., Any]
) -> None:
    """An ulp of the exponential moves one in 10,000 roundings to BF16: none here."""
    gate, up = operands(*shape)
    with sanitized():
        ours = swiglu(gate, up)
    assert torch.equal(ours, by_definition(swiglu, gate, up))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("mask = column < columns\n", "mask = column < columns + 8\n", Race),
        ("tl.program_id(1) * COLUMNS", "tl.program_id(1) * 512", Race),
    ],
)
def test_the_sanitizer_catches_a_mutant_without_codes(
    old: str, new: str, fault: type[Exception], tmp_path: Path
) -> None:
    mutant = mutate(swiglu_quant_triton, old, new, tmp_path)
    with pytest.raises(fault), sanitized():
        mutant.swiglu(*operands(3, 1500))


def test_no_rows_launch_nothing() -> None:
    codes, scales = swiglu_quant(torch.zeros(0, 256), torch.zeros(0, 256))
    assert (codes.shape, scales.shape) == ((0, 256), (0, 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0 + tl.exp(-gate)", "1.0 + tl.exp(gate)"),
        (") * up\n", ") + up\n"),
        ("hidden.to(gate_ptr.dtype.element_ty)", "hidden"),
    ],
)
def test_a_mutant_has_other_bytes(
    old: str, new: str, tmp_path: Path, by_definition: Callable[..., Any]
) -> None:
    mutant = mutate(swiglu_quant_triton, old, new, tmp_path)
    gate, up = operands(64, 512)
    ours = Quantized(*mutant.swiglu_quant(gate, up))
    assert wrong_bytes(ours, by_definition(swiglu_quant, gate, up)) > 0


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("is_row = row < rows", "is_row = row < rows + 8", OutOfBounds),
        ("(column < columns)[None, :]", "(column < columns + 8)[None, :]", Race),
        ("tl.program_id(0).to(tl.int64) * ROWS", "tl.program_id(0).to(tl.int64) * 8", Race),
    ],
)
def test_the_sanitizer_catches_a_mutant(
    old: str, new: str, fault: type[Exception], tmp_path: Path
) -> None:
    mutant = mutate(swiglu_quant_triton, old, new, tmp_path)
    with pytest.raises(fault), sanitized():
        mutant.swiglu_quant(*operands(20, 300))
