"""Zeros where numbers should be: of a download cut short, or a merge that failed."""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.storage import CODE_DTYPES, FLOATS
from dstools_converters.errors import Finding, printable

TAIL_BYTES = 4096  # a shard that ends in so many zeros is reported
HEAD_BYTES = 64  # most weights have another number in these
STEP_BYTES = 1 << 20
SHOWN = 8


def is_zero_weight(inventory: Inventory, info: TensorInfo) -> bool:
    """Return whether a tensor is a weight, not a bias, and all of its elements are zero."""
    return is_weight(inventory, info) and is_all_zero(inventory.checkpoint, info)


def is_weight(inventory: Inventory, info: TensorInfo) -> bool:
    """Return whether a tensor is a weight, not a bias, of floats or of codes."""
    parsed = inventory.names[info.name]
    has_numbers = info.dtype in (*FLOATS, *CODE_DTYPES)
    return has_numbers and parsed is not None and parsed.part == "weight"


def is_all_zero(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    """Return whether every element of a float tensor or every code is 0 or -0.

    In all of these dtypes, little-endian, the sign is the highest bit of the last byte.
    """
    size = ITEM_BITS[info.dtype] // 8
    begin, end = 0, min(HEAD_BYTES, info.nbytes)
    while begin < end:
        data = bytes(checkpoint.read(info, begin, end))
        has_low_bits = any(data[place::size].strip(b"\0") for place in range(size - 1))
        if has_low_bits or data[size - 1 :: size].strip(b"\0\x80"):
            return False
        begin, end = end, min(end + STEP_BYTES, info.nbytes)
    return info.nbytes > 0


def is_hole(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    """Return whether the disk holds no byte of a tensor: in a sparse file, it reads as zeros."""
    with (checkpoint.folder / info.shard).open("rb") as file:
        return _next_data(file.fileno(), info.offset) >= info.offset + info.nbytes


def _next_data(file: int, offset: int) -> float:
    """Return the first offset from `offset` on that the disk holds, infinity without one."""
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return math.inf
        raise


def all_zero(names: Sequence[str]) -> Iterator[Finding]:
    """Yield a warning for each of these weights, those beyond the first 8 counted in one."""
    for name in names[:SHOWN]:
        yield Finding.warning("all-zero", printable(name), "is all zeros")
    if len(names) > SHOWN:
        more = len(names) - SHOWN
        yield Finding.warning("all-zero", f"{more} more weights", "are all zeros")


def zero_tails(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield a warning for each shard that holds only zeros from some byte on.

    Of a shard that is whole, only its end is read. A last tensor that is all zeros does not count.
    """
    spans: dict[str, tuple[int, int]] = {}  # shard -> offsets of its first and last tensor
    for info in checkpoint.tensors.values():
        if info.nbytes:
            first, _ = spans.get(info.shard, (info.offset, 0))
            spans[info.shard] = (first, info.offset)
    for name, (first, last) in spans.items():
        size = checkpoint.shards[name].nbytes
        start = _last_byte(checkpoint.folder / name, first, size) + 1
        if size - start >= TAIL_BYTES and (start > last or last - start >= TAIL_BYTES):
            yield Finding.warning(
                "zero-tail",
                printable(name),
                f"holds only zeros from byte {start} to its end at {size}, as after a download "
                "that was interrupted",
                "compare its hash with the publisher's, or download it again",
            )


def _last_byte(path: Path, first: int, size: int) -> int:
    """Return the offset of the last byte that is not zero, `first` - 1 without one."""
    end, step = size, TAIL_BYTES
    with path.open("rb", buffering=0) as file:
        while end > first:
            begin = max(end - step, first)
            if _next_data(file.fileno(), begin) < end:
                kept = os.pread(file.fileno(), end - begin, begin).rstrip(b"\0")
                if kept:
                    return begin + len(kept) - 1
            end, step = begin, STEP_BYTES
    return first - 1
