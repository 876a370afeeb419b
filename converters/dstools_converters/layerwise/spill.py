"""Rows of float32 that may outgrow memory: hidden states, in memory while they fit, else in a file.

Either way the rows are behind a file descriptor, of anonymous memory or of a file, and are read and
written the same way. Mapping them was measured and is not used: see docs/log.md, 2026-11-28.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from dstools_converters.errors import disk_errors
from dstools_converters.files import replacing

ITEM = 4  # bytes of a float32
PIECE = 16 << 20  # bytes copied at a time


class Spill:
    """[rows, width] float32, zeros until written; in `file`, or in memory if that is None."""

    def __init__(self, rows: int, width: int, file: Path | None) -> None:
        self.rows = rows
        self.width = width
        self.file = file
        self._row = width * ITEM
        self._where = file or Path("memory")
        with disk_errors(self._where):
            if file is None:
                self._descriptor = os.memfd_create("hidden states")
            else:
                self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                if file is not None:
                    os.posix_fallocate(self._descriptor, 0, max(rows * self._row, 1))
                os.ftruncate(self._descriptor, rows * self._row)
            except OSError:
                self.close()  # frees what a full disk gave
                raise

    def read(self, begin: int, end: int) -> Tensor:
        """Return rows [begin, end)."""
        out = torch.empty(end - begin, self.width)
        self._pread(_bytes(out), begin * self._row)
        return out

    def write(self, begin: int, values: Tensor) -> None:
        """Write `values` [n, width], on any device, to the rows from `begin` on."""
        self._pwrite(_bytes(values), begin * self._row)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows with these numbers, int64 [n]."""
        out = torch.empty(len(rows), self.width)
        view = _bytes(out)
        for at, row in enumerate(rows.tolist()):
            self._pread(view[at * self._row : (at + 1) * self._row], row * self._row)
        return out

    def scatter(self, rows: Tensor, values: Tensor) -> None:
        """Write `values` [n, width], on any device, to the rows with these numbers, int64 [n]."""
        view = _bytes(values)
        for at, row in enumerate(rows.tolist()):
            self._pwrite(view[at * self._row : (at + 1) * self._row], row * self._row)

    def save(self, file: Path) -> None:
        """Write the rows to `file` atomically, flushed to the disk."""
        with disk_errors(file), replacing(file) as target:
            _copy(self._descriptor, target.fileno(), self.rows * self._row)

    def load(self, file: Path) -> bool:
        """Read the rows from a file that `save` wrote; return False if none of this size exists."""
        if not file.is_file() or file.stat().st_size != self.rows * self._row:
            return False
        source = os.open(file, os.O_RDONLY)
        try:
            _copy(source, self._descriptor, self.rows * self._row)
        finally:
            os.close(source)
        return True

    def close(self) -> None:
        """Free the memory or delete the file."""
        os.close(self._descriptor)
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _pread(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._descriptor, [view], offset)
            assert count > 0  # it has its full size from the start
            view, offset = view[count:], offset + count

    def _pwrite(self, view: memoryview, offset: int) -> None:
        with disk_errors(self._where):
            _write(self._descriptor, view, offset)


def _bytes(values: Tensor) -> memoryview:
    flat = values.cpu().contiguous().flatten().numpy()
    return flat.data.cast("B") if len(flat) else memoryview(b"")


def _copy(source: int, target: int, nbytes: int) -> None:
    for begin in range(0, nbytes, PIECE):
        _write(target, memoryview(os.pread(source, min(PIECE, nbytes - begin), begin)), begin)


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
