"""The tiles of the GEMM twins: each is taken once, and small products share one shape."""

import weakref

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

import triton
import triton.language as tl

from dstools_kernels.ops.triton.tiles import (
    LARGE,
    MOST_SMALL_ROWS,
    PROGRAMS,
    SMALL,
    give_workspace,
    programs,
    tile,
    tile_at,
)


@triton.jit
def take(counts_ptr, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    for at in range(tiles_m * tiles_n):
        row, column = tile_at(at, tiles_m, tiles_n, GROUP_M)
        where = counts_ptr + row * tiles_n + column
        tl.store(where, tl.load(where) + 1)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (9, 1), (8, 3), (19, 5)])
def test_every_tile_is_taken_once(sizes: tuple[int, int]) -> None:
    counts = torch.zeros(sizes, dtype=torch.int32)
    take[(1,)](counts, *sizes, 8)
    assert (counts == 1).all()


def test_a_batch_of_one_or_two_tokens_a_row_takes_the_small_tile() -> None:
    assert {tile(rows) for rows in range(MOST_SMALL_ROWS + 1)} == {SMALL}
    assert tile(MOST_SMALL_ROWS + 1) == LARGE


def test_a_cpu_has_the_programs_of_a_hopper() -> None:
    assert programs(torch.empty(1)) == PROGRAMS == 132


def test_workspace_is_where_the_tensor_is_and_does_not_keep_it() -> None:
    from triton.runtime import _allocation

    x = torch.empty(1)
    give_workspace(x)
    last_use = weakref.ref(x)
    del x
    assert last_use() is None
    workspace = _allocation._allocator.get()(384, 128, None)
    assert isinstance(workspace, torch.Tensor)
    assert (workspace.nbytes, workspace.device.type) == (384, "cpu")
