"""Pieces of a checkpoint's tensors against the bytes that a file has of them."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.rows import columns, slabs, width
from dstools_converters.errors import Finding
from dstools_converters.export.ranges import Piece, read_at

Rows = NDArray[np.uint8]  # [rows, bytes of a row]
HINT = "export the model again, from this checkpoint"


def stored(checkpoint: Checkpoint, piece: Piece) -> Iterator[tuple[int, Rows]]:
    """Yield the rows of a piece as the checkpoint has them, in slabs with the number of the first.

    Raises DstoolsError where a shard cannot be read.
    """
    info, item = piece.info, width(piece.info)
    row = columns(info) * item
    begin, end = (column * item for column in piece.columns)
    for first, last in slabs(*piece.rows, 1, row):
        data = checkpoint.read(info, first * row, last * row)
        yield first, np.frombuffer(data, np.uint8).reshape(last - first, row)[:, begin:end]


def differences(
    file: int, at: int, piece: Piece, itemsize: int, wanted: Iterable[tuple[int, Rows]]
) -> Iterator[str]:
    """Yield the first place, at most one, where a file differs from a piece.

    file: a descriptor; at: where the piece begins; itemsize: bytes of an element there; wanted: the
    slabs that it should have. Raises EOFError where the file ends before.
    """
    for first, rows in wanted:
        there = np.frombuffer(read_at(file, at, rows.size), np.uint8).reshape(rows.shape)
        at += rows.size
        if not np.array_equal(there, rows):
            row, byte = np.argwhere(there != rows)[0].tolist()
            column = piece.columns[0] + byte // itemsize
            yield f"{piece.info.where}: they differ at row {first + row}, column {column}"
            return


def differing(where: str, how: str, place: str) -> Finding:
    """Return the finding about a tensor that is not what is `how`, copied or converted, from it."""
    return Finding.error("source-differs", where, f"is not what is {how} from {place}", HINT)


def other(where: str, message: str) -> Finding:
    """Return the finding about a part that this checkpoint makes otherwise, or not."""
    return Finding.error("source-other", where, message, HINT)


def unmade(where: str) -> Finding:
    """Return the finding about a tensor that has no origin in the checkpoint."""
    return other(where, "is not made of anything in this checkpoint")


def reshaped(
    where: str, dtype: str, shape: tuple[int, ...], wanted_dtype: str, wanted: tuple[int, ...]
) -> Finding:
    """Return the finding about a tensor of another dtype or shape than the checkpoint makes it."""
    message = f"is {dtype} {list(shape)}; this checkpoint makes it {wanted_dtype} {list(wanted)}"
    return other(where, message)
