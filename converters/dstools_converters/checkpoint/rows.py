"""Rows of a tensor: read without a copy, and restored to float32 in memory that is reused."""

import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.storage import FLOATS
from dstools_converters.errors import DstoolsError
from dstools_kernels.formats import block_fp8, lattice
from dstools_kernels.fp8 import E4M3_MAX, FiniteDtype

Progress = Callable[[int], object]  # called with the number of input bytes just processed
SLAB_BYTES = 1 << 20  # of a slab, so that it and its results stay in a level-2 cache


class _Memory(threading.local):
    """A worker's buffers for results, reused.

    Touching a fresh page costs more than quantizing what is on it; huge pages, where the machine
    gives them, are cheaper to write from.
    """

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def view(self, use: str, nbytes: int) -> memoryview:
        """Return `nbytes` for the purpose `use`, the same memory each time."""
        pages = self._maps.get(use)
        if pages is None or len(pages) < nbytes:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            pages = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), flags=flags)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                pages.madvise(mmap.MADV_HUGEPAGE)
            self._maps[use] = pages
        return memoryview(pages)[:nbytes]


memory = _Memory()


def slabs(begin: int, end: int, block: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield spans of whole blocks of rows that fit a core's cache, at least one block high."""
    step = max(SLAB_BYTES // max(row_bytes, 1) // block, 1) * block
    for first in range(begin, end, step):
        yield first, min(first + step, end)


def width(info: TensorInfo) -> int:
    """Return the bytes of an element; every dtype that is computed with has whole bytes."""
    return ITEM_BITS[info.dtype] // 8


def read_rows(inventory: Inventory, info: TensorInfo, first: int, last: int) -> memoryview:
    """Return the bytes of rows [first, last); a tensor of one dimension is one row."""
    row = columns(info) * width(info)
    return inventory.checkpoint.read(info, first * row, last * row)


def read_scales(inventory: Inventory, weight: TensorInfo, first: int, last: int) -> memoryview:
    """Return the float32 scales of the rows of blocks that hold rows [first, last) of `weight`.

    Raises DstoolsError where a scale is not finite or not positive.
    """
    storage = inventory.storage[weight.name]
    info, block = storage.scale, storage.block[0]
    row = info.shape[1] * width(info)
    begin, end = first // block, -(-last // block)
    data = inventory.checkpoint.read(info, begin * row, end * row)
    if info.dtype != "F32":
        wide = memory.view("scales in", (end - begin) * info.shape[1] * 4)
        block_fp8.widen(data, info.dtype, wide)  # type: ignore[arg-type]  # one of SCALE_DTYPES
        data = wide
    require_finite(info._replace(dtype="F32"), data, begin * info.shape[1])
    least = block_fp8.smallest(data)
    if least <= 0:
        raise DstoolsError(
            f"{info.where}: holds {least:g} at {scale_position(info, data, least, begin)}; "
            "scales are positive",
            "the scales are damaged; download them again",
        )
    return data


def scale_position(info: TensorInfo, scales: memoryview, scale: float, first_row: int) -> list[int]:
    """Return [row, col] of the first `scale` in float32 `scales`, rows of `info` from `first_row`.

    Makes no list of the scales: of small blocks, they may be many.
    """
    at = next(at for at, value in enumerate(scales.cast("f")) if value == scale)
    row, col = divmod(at, info.shape[1])
    return [first_row + row, col]


def restore(
    inventory: Inventory, info: TensorInfo, first: int, last: int, use: str = "restored"
) -> memoryview:
    """Return rows [first, last) as float32: FP8 as code times scale, not rounded further.

    `first` is a multiple of the block's rows where the tensor is FP8.
    """
    storage, cols = inventory.storage[info.name], columns(info)
    data = read_rows(inventory, info, first, last)
    values = memory.view(use, (last - first) * cols * 4)
    match storage.format:
        case "plain":
            assert info.dtype in FLOATS
            block_fp8.widen(data, info.dtype, values)
        case "fp8-block":
            scales = read_scales(inventory, info, first, last)
            block_fp8.dequantize(data, cols, scales, values, storage.block, "F32")
        case other:
            assert_never(other)
    return values


def dequantize_rows(
    inventory: Inventory, info: TensorInfo, first: int, last: int, values: memoryview
) -> memoryview:
    """Write rows [first, last) of an FP8 weight as BF16 into `values`; return their scales.

    Raises DstoolsError where a code or scale is NaN, or their product is beyond BF16.
    """
    codes = read_rows(inventory, info, first, last)
    require_finite(info, codes, first * info.shape[1])
    scales = read_scales(inventory, info, first, last)
    block = inventory.storage[info.name].block
    block_fp8.dequantize(codes, info.shape[1], scales, values, block)
    if _may_overflow(scales):
        require_finite(info._replace(dtype="BF16"), values, first * info.shape[1])
    return scales


def _may_overflow(scales: memoryview) -> bool:
    largest = block_fp8.largest_magnitude(scales, "F32") * E4M3_MAX
    return largest > block_fp8.largest_finite("BF16")


def require_no_overflow(inventory: Inventory, info: TensorInfo, scales: memoryview) -> None:
    """Raise DstoolsError where a number of an FP8 weight is beyond BF16.

    scales: float32, those of all its rows; only if one is large enough are the codes read.
    """
    if _may_overflow(scales):
        for first, last in slabs(0, info.shape[0], block_rows(inventory, info), info.shape[1] * 2):
            values = memory.view("values", (last - first) * info.shape[1] * 2)
            dequantize_rows(inventory, info, first, last, values)


def unlike_dequantized(
    fp8: Inventory, info: TensorInfo, bf16: Inventory, values: TensorInfo
) -> tuple[int, int] | None:
    """Return the first span of rows in which `values` differs from `info` dequantized to BF16.

    Compares bits; None where all rows are equal. Raises DstoolsError where a code or scale is NaN.
    """
    rows, cols = info.shape
    for first, last in slabs(0, rows, block_rows(fp8, info), cols * 2):
        wanted = memory.view("values", (last - first) * cols * 2)
        dequantize_rows(fp8, info, first, last, wanted)
        # as bytes, since memoryviews are compared element by element
        if bytes(wanted) != bytes(read_rows(bf16, values, first, last)):
            return first, last
    return None


def recover_tensor(
    inventory: Inventory,
    info: TensorInfo,
    spans: Sequence[tuple[int, int]],
    block_size: int,
    take: Callable[[int, memoryview, memoryview], object],
    *,
    powers_only: bool,
) -> bool:
    """Return whether all of a BF16 weight has FP8 that dequantizes to it bit for bit.

    Calls `take(first row, codes, scales)` for each of the `spans` of rows. Powers of two are tried
    first, so that a weight does not mix scale formats: `take` may be called for the same spans
    again, and for some spans even where the result is False.
    """
    cols = columns(info)
    for as_powers in (True,) if powers_only else (True, False):
        for first, last in spans:
            codes = memory.view("codes", (last - first) * cols)
            scales = memory.view(
                "scales", 4 * -(-(last - first) // block_size) * -(-cols // block_size)
            )
            weight = read_rows(inventory, info, first, last)
            bad = lattice.recover(weight, cols, codes, scales, block_size, powers_only=as_powers)
            del weight  # unmapped before the next piece is mapped
            if bad >= 0:
                break
            take(first, codes, scales)
        else:
            return True
    return False


def block_rows(inventory: Inventory, info: TensorInfo) -> int:
    """Return how many rows share a row of scales; 1 for a plain tensor."""
    return inventory.storage[info.name].block[0]


def columns(info: TensorInfo) -> int:
    """Return the length of a row; a tensor of one dimension is one row."""
    return max(info.shape[-1] if info.shape else 1, 1)


def require_finite(info: TensorInfo, data: memoryview, first_element: int) -> float:
    """Return the largest magnitude in `data`, a part of `info`; its dtype is a FiniteDtype.

    Raises DstoolsError at the first NaN or infinity.
    """
    dtype: FiniteDtype = info.dtype  # type: ignore[assignment]
    largest = block_fp8.largest_magnitude(data, dtype)
    if math.isfinite(largest):
        return largest
    raise not_finite(info, first_element + block_fp8.first_non_finite(data, dtype))


def not_finite(info: TensorInfo, element: int) -> DstoolsError:
    """Return the error for a NaN or infinity at the flat index `element`."""
    position: list[int] = []
    for size in reversed(info.shape):
        element, at = divmod(element, size)
        position.insert(0, at)
    return DstoolsError(
        f"{info.where}: NaN or infinity at {position}",
        "the file is damaged, or the training that made it diverged; take it from another copy",
    )
