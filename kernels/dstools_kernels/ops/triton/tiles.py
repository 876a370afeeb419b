"""The tiles of the GEMM twins, how their programs share the tiles, and their workspace."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 132  # SMs of an H100 or H200; for tensors on a CPU, too


class Tile(NamedTuple):
    """A tile of the result and how it is computed."""

    rows: int
    columns: int
    warps: int
    stages: int  # tiles of K in flight

    def name(self, depth: int) -> str:
        """Return its name in the tables CONFIGS, where a step is `depth` of K."""
        return f"{self.rows}x{self.columns}x{depth}.w{self.warps}.s{self.stages}"


# With 4 warps the accumulator of 128 x 128 spills; a 64 x 128 tile fills the tensor cores of 4.
SMALL = Tile(64, 128, warps=4, stages=5)
LARGE = Tile(128, 128, warps=8, stages=4)
TILES = (SMALL, LARGE)
MOST_SMALL_ROWS = 128
GROUP_M = 8  # rows of tiles that are walked together, so that tiles of weights stay in L2


def tile(rows: int) -> Tile:
    """Return the tile for products with this many rows, on average of an expert.

    All tiles walk K in the same steps, so that the choice, and with it the number of rows, does not
    change the order of a row's sums.
    """
    return SMALL if rows <= MOST_SMALL_ROWS else LARGE


def programs(x: Tensor) -> int:
    """Return how many programs run at a time where `x` is: one for each SM."""
    if x.device.type == "cpu":
        return PROGRAMS
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def is_loadable(x: Tensor) -> bool:
    """Return whether TMA can load tiles of `x`: neighbours in a row, all else 16 bytes apart."""
    steps = (step * x.itemsize % 16 for step in x.stride()[:-1])
    return x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and not any(steps)


def loadable(x: Tensor) -> Tensor:
    """Return `x`, or a copy of it that TMA can load."""
    return x if is_loadable(x) else x.clone(memory_format=torch.contiguous_format)


def give_workspace(x: Tensor) -> None:
    """Let Triton allocate the global scratch of kernels that make descriptors, where `x` is."""
    device = x.device  # Triton keeps the function, which must not keep `x`

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    triton.set_allocator(allocate)


@triton.jit
def tile_at(at, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Return the row and the column of tile number `at`, GROUP_M rows of tiles walked together."""
    group = at // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = at % (GROUP_M * tiles_n)
    return first + within % height, within // height
