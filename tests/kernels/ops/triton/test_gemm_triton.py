"""Steps L2 and L3 for the BF16 GEMM: float64, ragged sizes, heads, layouts, and row invariance."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.triton import gemm_triton, tiles
from dstools_kernels.ops.triton.tiles import is_loadable
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import Race, reported


@pytest.fixture(autouse=True)
def few_programs(watched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PROGRAMS", 3)  # so that each takes several tiles


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).bfloat16()


def is_right(y: Tensor, x: Tensor, w: Tensor) -> bool:
    """Return whether 99.9 % of outputs are float64's, rounded once; one may always differ."""
    wrong = (y != (x.double() @ w.double().mT).bfloat16()).sum()
    return bool(wrong <= max(1, y.numel() // 1000))


@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 136, 576), (127, 264, 72), (129, 136, 64), (300, 128, 8)]
)
def test_outputs_are_float64_rounded_once(rows: int, columns: int, depth: int) -> None:
    x, w = normal(rows, depth), normal(columns, depth)
    assert is_right(gemm(x, w), x, w)


@pytest.mark.parametrize("rows", [2, 130])
def test_heads_may_lie_in_any_order_in_memory(rows: int) -> None:
    """Queries come as [T, H, N]; kv_b_proj is used as [H, L, N] and as [H, N, L]."""
    x, w = normal(rows, 3, 72).transpose(0, 1), normal(3, 136, 72)
    y = gemm(x, w)
    assert y.is_contiguous()
    assert is_right(y, x, w)
    assert torch.equal(gemm(x.contiguous(), w.mT.contiguous().mT), y)


def test_what_tma_cannot_load_is_copied_first() -> None:
    """Rows of 73 numbers are not a multiple of 16 bytes apart, nor is one number further on."""
    x, w = normal(2, 73)[:, :72], normal(136 * 72 + 1)[1:].view(136, 72)
    assert not is_loadable(x)
    assert not is_loadable(w)
    assert torch.equal(gemm(x, w), gemm(x.contiguous(), w.clone()))


def test_sums_may_be_returned_in_float32() -> None:
    x, w = normal(5, 72), normal(136, 72)
    y = gemm(x, w, torch.float32)  # 72 products, sums below 64: each addition rounds 2^-24 of it
    assert (y - x.double() @ w.double().T).abs().max() <= 72 * 2**-24 * 64


def test_sizes_that_the_kernel_lacks_and_float32_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(gemm_triton, "gemm")
    assert gemm(normal(2, 9), normal(8, 9)).shape == (2, 8)
    assert gemm(normal(2, 8), normal(9, 8)).shape == (2, 9)
    assert gemm(normal(2, 8).float(), normal(8, 8).float()).dtype == torch.float32
    assert gemm(normal(2, 8), normal(8, 8), torch.float16).dtype == torch.float16


def test_no_rows_launch_nothing() -> None:
    assert gemm(normal(3, 0, 8), normal(3, 16, 8)).shape == (3, 0, 16)


def is_row_invariant(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Return whether a row is the same alone, among 8 and 300, and as the first of 2 tokens."""
    w, rows = normal(136, 576), normal(300, 576)
    alone = multiply(rows[3:4], w)
    others = multiply(rows[:8], w)[3:4], multiply(rows[3:5], w)[:1], multiply(rows, w)[3:4]
    return all(torch.equal(other, alone) for other in others)


def test_a_row_is_the_same_alone_among_others_and_as_the_first_of_2_tokens() -> None:
    assert is_row_invariant(gemm)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"BLOCK_K": BLOCK_K,', '"BLOCK_K": shape.rows,'),
        ("columns, depth, *strides\n", "columns, depth, *strides, BLOCK_K=16 * (1 + (rows > 1))\n"),
    ],
    ids=["steps of K by the tile", "steps of K by the number of rows"],
)
def test_a_mutant_is_right_but_not_row_invariant(old: str, new: str, tmp_path: Path) -> None:
    mutant = mutate(gemm_triton, old, new, tmp_path)
    x, w = normal(300, 576), normal(136, 576)
    assert is_right(mutant.gemm(x, w, torch.bfloat16), x, w)
    assert not is_row_invariant(lambda x, w: mutant.gemm(x, w, torch.float32))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("m, n = row * BLOCK_M", "m, n = row * (BLOCK_M - 8)"),
        ("for at in tl.range(tl.program_id(0),", "for at in tl.range(0,"),
    ],
    ids=["overlapping tiles", "every program takes all tiles"],
)
def test_the_sanitizer_catches_a_mutant(old: str, new: str, tmp_path: Path) -> None:
    mutant = mutate(gemm_triton, old, new, tmp_path)
    with pytest.raises(Race), reported():
        mutant.gemm(normal(130, 72), normal(136, 72), torch.bfloat16)


def test_nan_and_infinity_reach_their_row_and_no_other() -> None:
    x, w = normal(5, 72), normal(136, 72)
    wanted = gemm(x, w)
    x[2, 7], x[4, 9] = math.nan, math.inf
    y = gemm(x, w)
    assert y[2].isnan().all()
    assert not y[4].isfinite().any()
    assert torch.equal(y[[0, 1, 3]], wanted[[0, 1, 3]])
