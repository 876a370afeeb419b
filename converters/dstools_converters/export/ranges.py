"""Ranges of one file written into another, in pieces: no tensor is ever in memory as a whole."""

import errno
import os

import numpy as np

PIECE_BYTES = 4 << 20  # read and written at a time where the kernel does not copy
# of copy_file_range, between two file systems or in one that cannot. Source: its manual page, and
# EPERM from sandboxes that filter system calls
NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


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
