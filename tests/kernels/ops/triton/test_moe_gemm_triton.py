"""Steps L2 and L3 for the grouped GEMM: ragged and empty groups, 192 and 576 rows, far offsets."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.triton import moe_gemm_triton, tiles
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, reported

EMPTY = torch.tensor([0, 0, 5, 5, 135, 168, 168], dtype=torch.int32)


@pytest.fixture(autouse=True)
def few_programs(watched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PROGRAMS", 3)  # so that each takes several tiles


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def quantized(*shape: int, blocks: tuple[int, ...]) -> Quantized:
    scales = torch.rand(blocks, generator=torch.Generator().manual_seed(sum(shape))) + 0.5
    return Quantized(normal(*shape).to(torch.float8_e4m3fn), scales)


def operands(rows: int, experts: int, columns: int, depth: int) -> tuple[Quantized, Quantized]:
    groups = -(-depth // 128)
    x = quantized(rows, depth, blocks=(rows, groups))
    return x, quantized(experts, columns, depth, blocks=(experts, -(-columns // 128), groups))


def exact(x: Quantized, w: Quantized, offsets: Tensor) -> Tensor:
    """Return y in float64, the scale of each code looked up by its place."""
    _, columns, depth = w.codes.shape
    row, k = torch.arange(columns)[:, None] // 128, torch.arange(depth)[None] // 128
    wide = x.codes.double() * x.scales.double()[:, k[0]]
    parts = [
        wide[first:end] @ (w.codes[expert].double() * w.scales[expert].double()[row, k]).T
        for expert, (first, end) in enumerate(pairwise(offsets.tolist()))
    ]
    return torch.cat(parts)


def is_right(y: Tensor, wanted: Tensor) -> bool:
    """Return whether 99.9 % of outputs are float64's, rounded once; one may always differ."""
    return bool((y != wanted.bfloat16()).sum() <= max(1, y.numel() // 1000))


@pytest.mark.parametrize(("columns", "depth"), [(192, 320), (576, 192), (40, 128)])
def test_fp8_outputs_are_float64_rounded_once(columns: int, depth: int) -> None:
    x, w = operands(168, 6, columns, depth)
    y = moe_gemm(x, w, EMPTY)
    assert is_right(y, exact(x, w, EMPTY))


def test_bf16_outputs_are_float64_rounded_once() -> None:
    x, w = normal(168, 72).bfloat16(), normal(6, 200, 72).bfloat16()
    y = moe_gemm(x, w, EMPTY)
    wanted = [
        x[first:end].double() @ w[expert].double().T
        for expert, (first, end) in enumerate(pairwise(EMPTY.tolist()))
    ]
    assert is_right(y, torch.cat(wanted))


def test_many_rows_of_an_expert_take_the_large_tile() -> None:
    offsets = torch.tensor([0, 129, 400], dtype=torch.int32)
    x, w = operands(400, 2, 136, 128)
    assert tiles.tile(200) == tiles.LARGE
    y = moe_gemm(x, w, offsets)
    assert is_right(y, exact(x, w, offsets))


def test_rows_of_no_expert_are_not_written() -> None:
    offsets = torch.tensor([2, 4, 4], dtype=torch.int32)
    x, w = operands(9, 2, 136, 128)
    y = moe_gemm(x, w, offsets)
    assert y[2:4].isfinite().all()
    assert y[:2].isnan().all()
    assert y[4:].isnan().all()


def test_experts_that_all_tokens_avoid_write_nothing() -> None:
    x, w = operands(9, 2, 136, 128)
    assert moe_gemm(x, w, torch.zeros(3, dtype=torch.int32)).isnan().all()


def test_a_rank_without_rows_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(moe_gemm_triton, "CONFIGS")
    x, w = operands(0, 2, 136, 128)
    assert moe_gemm(x, w, torch.zeros(3, dtype=torch.int32)).shape == (0, 136)


def test_float32_and_odd_depths_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(moe_gemm_triton, "moe_gemm")
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    assert moe_gemm(normal(3, 16), normal(1, 8, 16), offsets).dtype == torch.float32
    bf16 = normal(3, 12).bfloat16(), normal(1, 8, 12).bfloat16()
    assert moe_gemm(*bf16, offsets).isfinite().all()


def test_scales_may_be_stored_by_groups() -> None:
    x, w = operands(168, 6, 136, 320)
    by_groups = Quantized(x.codes, x.scales.T.contiguous().T)
    assert torch.equal(moe_gemm(by_groups, w, EMPTY), moe_gemm(x, w, EMPTY))


@pytest.mark.parametrize("is_fp8", [True, False])
def test_a_row_is_the_same_alone_among_8_and_as_the_first_of_2_tokens(is_fp8: bool) -> None:
    codes, w = operands(300, 2, 136, 576)
    plain = codes.codes.bfloat16(), w.codes.bfloat16()

    def rows(first: int, end: int) -> Tensor:
        offsets = torch.tensor([0, 0, end - first], dtype=torch.int32)
        if not is_fp8:
            return moe_gemm(plain[0][first:end], plain[1], offsets)
        return moe_gemm(Quantized(codes.codes[first:end], codes.scales[first:end]), w, offsets)

    alone = rows(3, 4)
    assert torch.equal(rows(0, 8)[3:4], alone)
    assert torch.equal(rows(3, 5)[:1], alone)
    assert torch.equal(rows(0, 300)[3:4], alone), "among 300 the tile is another one"


def test_what_is_not_finite_stays_in_its_row() -> None:
    """The last rows of a tile may be those of the next expert; they must not matter."""
    x, w = operands(168, 6, 136, 128)
    wanted = moe_gemm(x, w, EMPTY)
    x.scales[5] = math.nan  # the first row of expert 3, in the tile of expert 1
    y = moe_gemm(x, w, EMPTY)
    assert y[5].isnan().all()
    is_other = torch.arange(168) != 5
    assert torch.equal(y[is_other], wanted[is_other])


# -------------------------------------------------------------------------------------- mutants


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tl.cdiv(N, 128)", "(N // 128)"),
        ("(tile_end <= at)", "(tile_end < at)"),
        ("tl.load(w_scales + group)", "tl.load(w_scales + group * 0)"),
    ],
    ids=["scale grid by floor", "off by one tile", "scale of group 0"],
)
def test_float64_catches_a_mutant(old: str, new: str, tmp_path: Path) -> None:
    x, w = operands(168, 6, 192, 320)
    mutant = mutate(moe_gemm_triton, old, new, tmp_path)
    assert not is_right(mutant.moe_gemm(x, w, EMPTY), exact(x, w, EMPTY))


BY_TMA = """tl.make_tensor_descriptor(y_ptr, [R, N], [N, 1], [BLOCK_M, BLOCK_N]).store(
            [m, n], total.to(tl.bfloat16)
        )


@triton.jit"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("store(y_ptr, total, m, n, after, N, BLOCK_M, BLOCK_N)\n\n\n@triton.jit", BY_TMA, Race),
        ("(rows < end)[:, None]", "(rows < end + 1)[:, None]", OutOfBounds),
        ("within % tiles_n * BLOCK_N,", "within // tiles_n * BLOCK_N,", Race),
    ],
    ids=["a store by TMA", "a row of the next group", "column of another tile"],
)
def test_the_sanitizer_catches_a_mutant(
    old: str, new: str, fault: type[Exception], tmp_path: Path
) -> None:
    """Group 1 ends at row 5, in the middle of a tile, the last one where the rows do."""
    x, w = operands(168, 6, 192, 128)
    mutant = mutate(moe_gemm_triton, old, new, tmp_path)
    with pytest.raises(fault), reported():
        mutant.moe_gemm(x, w, EMPTY)


def test_without_experts_nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(moe_gemm_triton, "moe_gemm")
    x = normal(3, 96).bfloat16()
    assert moe_gemm(x, normal(0, 40, 96).bfloat16(), EMPTY[:1]).shape == (3, 40)
