"""Weights that are all zeros: of a shard that was never written, or a merge that failed."""

from collections.abc import Iterator, Sequence

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.storage import CODE_DTYPES, FLOATS
from dstools_converters.errors import Finding, printable

HEAD_BYTES = 64  # most weights have another number in these
STEP_BYTES = 1 << 20
SHOWN = 8


def is_zero_weight(inventory: Inventory, info: TensorInfo) -> bool:
    """Return whether a tensor is a weight, not a bias, and all of its elements are zero."""
    parsed = inventory.names[info.name]
    if parsed is None or parsed.part != "weight" or info.dtype not in (*FLOATS, *CODE_DTYPES):
        return False
    return is_all_zero(inventory.checkpoint, info)


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


def all_zero(names: Sequence[str]) -> Iterator[Finding]:
    """Yield a warning for each of these weights, those beyond the first 8 counted in one."""
    for name in names[:SHOWN]:
        yield Finding.warning("all-zero", printable(name), "is all zeros")
    if len(names) > SHOWN:
        more = len(names) - SHOWN
        yield Finding.warning("all-zero", f"{more} more weights", "are all zeros")
