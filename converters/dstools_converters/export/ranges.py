"""Ranges of one file written into another, in pieces: no tensor is ever in memory as a whole."""

import errno
import os
from typing import NamedTuple

import numpy as np

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.rows import columns, width
from dstools_converters.errors import DstoolsError

PIECE_BYTES = 4 << 20  # read and written at a time where the kernel does not copy
# of copy_file_range, between two file systems or in one that cannot. Source: its manual page, and
# EPERM from sandboxes that filter system calls
NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Piece(NamedTuple):
    """Rows and columns of a tensor of the checkpoint, [first, last) of each."""

    info: TensorInfo
    rows: tuple[int, int]
    columns: tuple[int, int]
    weight: TensorInfo | None = None  # whose scales these are

    @property
    def is_range(self) -> bool:
        """Return whether it is one range of the file."""
        return self.columns == (0, columns(self.info))

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        (first, last), (begin, end) = self.rows, self.columns
        return (last - first) * (end - begin)


def copy_piece(piece: Piece, shard: int, target: int, at: int) -> None:
    """Copy a piece as it is from its shard to offset `at` of a file; both are descriptors.

    Raises DstoolsError where the shard ends before.
    """
    info, (first, last), item = piece.info, piece.rows, width(piece.info)
    row = columns(info) * item
    begin = info.offset + first * row
    try:
        if piece.is_range:
            copy_range(shard, begin, (last - first) * row, target, at)
        else:
            own = (piece.columns[0] * item, piece.columns[1] * item)
            copy_columns(shard, begin, (last - first, row), own, target, at)
    except EOFError:
        raise DstoolsError(
            f"{info.shard}: ends before its header says", "download or copy the shard again"
        ) from None


def copy_range(source: int, begin: int, nbytes: int, target: int, at: int) -> None:
    """Copy `nbytes` of a file from `begin` to offset `at` of another; both are descriptors.

    The kernel copies, without a detour through this process, where it can. Raises EOFError where
    the source ends before.
    """
    end = begin + nbytes
    while begin < end:
        try:
            copied = os.copy_file_range(source, target, end - begin, begin, at)
        except OSError as error:
            if error.errno not in NOT_COPIED:
                raise
            copied = 0
        if not copied:  # some file systems say so of a file that is not at its end
            break
        begin, at = begin + copied, at + copied
    while begin < end:
        data = read_at(source, begin, min(PIECE_BYTES, end - begin))
        write_at(target, data, at)
        begin, at = begin + len(data), at + len(data)


def copy_columns(
    source: int, begin: int, shape: tuple[int, int], columns: tuple[int, int], target: int, at: int
) -> None:
    """Copy bytes [first, last) of every row of a matrix to offset `at`, one row after the other.

    shape: rows, and bytes of a row, from `begin` of the source. Raises EOFError where it ends.
    """
    rows, row_bytes = shape
    first, last = columns
    step = max(PIECE_BYTES // row_bytes, 1)
    for row in range(0, rows, step):
        height = min(step, rows - row)
        data = read_at(source, begin + row * row_bytes, height * row_bytes)
        wanted = np.frombuffer(data, np.uint8).reshape(height, row_bytes)[:, first:last]
        write_at(target, wanted.tobytes(), at)
        at += wanted.size


def read_at(file: int, offset: int, nbytes: int) -> bytes:
    """Return `nbytes` at an offset; raises EOFError where the file ends before."""
    data = os.pread(file, nbytes, offset)
    while len(data) < nbytes:
        more = os.pread(file, nbytes - len(data), offset + len(data))
        if not more:
            raise EOFError
        data += more
    return data


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset: a write may take a part of it alone."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
