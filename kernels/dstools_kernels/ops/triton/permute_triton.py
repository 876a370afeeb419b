"""Triton twins of `permute`, in three launches (count, add up, place), and of `gather`.

Statically verified for sm_90a, never run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.triton.config import Config

EXPERTS = 256  # on a rank, of what is compiled ahead of time
BLOCK = 64  # copies of a program
BLOCKS = 16  # of counts that are added up at a time
COLUMNS = 1024  # of a program that gathers


@triton.jit
def count_kernel(
    ids_ptr,  # [count] int32
    map_ptr,  # [E] int32
    local_ptr,  # [count] int32
    counts_ptr,  # [blocks, G] int32
    count,
    E,
    G,
    EXPERTS: tl.constexpr,  # the power of two that is not below G
    BLOCK: tl.constexpr,
):
    """Write the local expert of each copy of a block, below 0 for none, and their counts."""
    block = tl.program_id(0)
    at, expert = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, EXPERTS)
    ids = tl.load(ids_ptr + at, mask=at < count, other=-1)
    is_known = (ids >= 0) & (ids < E)
    local = tl.load(map_ptr + ids, mask=is_known, other=-1)
    local = tl.where(local < G, local, -1)
    tl.store(local_ptr + at, local, mask=at < count)
    is_of = (local[:, None] == expert[None, :]).to(tl.int32)
    tl.store(counts_ptr + block * G + expert, tl.sum(is_of, 0), mask=expert < G)


@triton.jit
def offsets_kernel(
    counts_ptr,  # [blocks, G] int32
    first_ptr,  # [blocks, G] int32
    offsets_ptr,  # [G + 1] int32, the first 0
    blocks,
    G,
    EXPERTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Write the offsets, and the row of an expert's first copy in each block.

    One program: it reads the counts twice, once for all experts' totals.
    """
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < blocks)[:, None] & (expert < G)[None, :]
        at = block[:, None] * G + expert[None, :]
        total += tl.sum(tl.load(counts_ptr + at, mask=mask, other=0), 0)
    ends = tl.cumsum(total, 0)
    tl.store(offsets_ptr + 1 + expert, ends, mask=expert < G)
    row = ends - total
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < blocks)[:, None] & (expert < G)[None, :]
        at = block[:, None] * G + expert[None, :]
        counts = tl.load(counts_ptr + at, mask=mask, other=0)
        before = tl.cumsum(counts, 0) - counts
        tl.store(first_ptr + at, row[None, :] + before, mask=mask)
        row += tl.sum(counts, 0)


@triton.jit
def place_kernel(
    local_ptr,  # [count] int32
    first_ptr,  # [blocks, G] int32
    destination_ptr,  # [count] int32
    tokens_ptr,  # [count] int32
    count,
    K,
    G,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the row of each copy of a block, or -1, and the token of each row."""
    block = tl.program_id(0)
    at, expert = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, EXPERTS)
    local = tl.load(local_ptr + at, mask=at < count, other=-1)
    is_of = (local[:, None] == expert[None, :]).to(tl.int32)
    first = tl.load(first_ptr + block * G + expert, mask=expert < G, other=0)
    row = tl.sum(is_of * (tl.cumsum(is_of, 0) - 1 + first[None, :]), 1)
    is_kept = local >= 0
    tl.store(destination_ptr + at, tl.where(is_kept, row, -1), mask=at < count)
    tl.store(tokens_ptr + row, at // K, mask=is_kept & (at < count))


@triton.jit
def gather_kernel(
    x_ptr,  # [T, columns] BF16
    tokens_ptr,  # [R] int32
    out_ptr,  # [R, columns] BF16
    tokens,
    columns,
    COLUMNS: tl.constexpr,
):
    """Copy COLUMNS columns of the token of a row, or zeros; grid (R, ceil(columns / COLUMNS))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.load(tokens_ptr + row).to(tl.int64)
    known = tl.where((token >= 0) & (token < tokens), columns, 0)
    x = tl.load(x_ptr + token * columns + column, mask=column < known, other=0.0)
    tl.store(out_ptr + row * columns + column, x, mask=column < columns)


def _config(kernel: object, pointers: str, sizes: str, num_warps: int, **constants: int) -> Config:
    return Config(
        kernel,
        {**dict.fromkeys(pointers.split(), "*i32"), **dict.fromkeys(sizes.split(), "i32")},
        {"EXPERTS": EXPERTS, **constants},
        num_warps,
        unaligned=("count", "blocks", "K", "E", "G"),
    )


CONFIGS = {
    "permute/count": _config(
        count_kernel, "ids_ptr map_ptr local_ptr counts_ptr", "count E G", 4, BLOCK=BLOCK
    ),
    "permute/offsets": _config(
        offsets_kernel, "counts_ptr first_ptr offsets_ptr", "blocks G", 8, BLOCKS=BLOCKS
    ),
    "permute/place": _config(
        place_kernel, "local_ptr first_ptr destination_ptr tokens_ptr", "count K G", 4, BLOCK=BLOCK
    ),
    "permute/gather": Config(
        gather_kernel,
        {
            "x_ptr": "*bf16",
            "tokens_ptr": "*i32",
            "out_ptr": "*bf16",
            "tokens": "i32",
            "columns": "i32",
        },
        {"COLUMNS": COLUMNS},
        num_warps=4,  # so that each thread copies 16 bytes
        unaligned=("tokens",),
        needs=("LDG.128", "STG.128"),
    ),
}


def gather(x: Tensor, tokens: Tensor) -> Tensor:
    """Return what the definition does, for BF16 `x`."""
    out = x.new_empty(len(tokens), x.shape[1])
    if out.numel():
        grid = (len(tokens), -(-x.shape[1] // COLUMNS))
        CONFIGS["permute/gather"].launch(grid, x.contiguous(), tokens.contiguous(), out, *x.shape)
    return out


def permute(ids: Tensor, expert_map: Tensor, num_local: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, destination and offsets as the definition does."""
    ids, count = ids.contiguous(), ids.numel()
    tokens, destination = ids.new_zeros(count), torch.empty_like(ids)
    offsets = ids.new_zeros(num_local + 1)
    blocks, padded = -(-count // BLOCK), triton.next_power_of_2(num_local)
    if not blocks:
        return tokens, destination, offsets
    local, counts = torch.empty_like(ids), ids.new_empty(blocks, num_local)
    first = torch.empty_like(counts)
    grid, sizes = (blocks,), (count, len(expert_map), num_local)
    CONFIGS["permute/count"].launch(grid, ids, expert_map, local, counts, *sizes, EXPERTS=padded)
    CONFIGS["permute/offsets"].launch(
        (1,), counts, first, offsets, blocks, num_local, EXPERTS=padded
    )
    sizes = (count, ids.shape[-1], num_local)
    CONFIGS["permute/place"].launch(grid, local, first, destination, tokens, *sizes, EXPERTS=padded)
    return tokens, destination, offsets
