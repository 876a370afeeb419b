"""An append-only log of samples, one per line, so that none of them is asked for twice.

    {"number": 7, ...}      its number among all that are wanted, then what the writer adds;
                            "failed" if it came to nothing, "reused" if an earlier run got it

A torn last line is removed. If a number occurs twice, the first line counts.
"""

import os
import time
from array import array
from pathlib import Path

from dstools_converters.files import recover_log
from dstools_distill import records
from dstools_distill.records import Record

SYNC_SECONDS = 2.0  # work that a power failure may lose; a kill loses nothing that was logged


class SampleLog:
    """The log of `total` samples, resumed if there is one; close it after use."""

    def __init__(self, path: Path, total: int) -> None:
        self.path, self.total = path, total
        self._count = 0
        self.failed: set[int] = set()  # samples that came to nothing
        self.reused = 0  # samples that an earlier run got
        self._offsets = array("q", [-1]) * total
        self._file = path.open("a+b")
        self._synced = time.monotonic()
        for offset, row in recover_log(self._file):
            self._note(row["number"], offset, row)

    def _note(self, number: int, offset: int, sample: Record) -> None:
        if self._offsets[number] == -1:
            self._offsets[number] = offset
            self._count += 1
            if "failed" in sample:
                self.failed.add(number)
            self.reused += "reused" in sample

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._offsets[number] != -1

    def __len__(self) -> int:
        return self._count

    def add(self, number: int, sample: Record) -> None:
        """Append a sample; it survives a kill, and after SYNC_SECONDS a power failure, too."""
        self._note(number, self._file.seek(0, os.SEEK_END), sample)
        self._file.write(records.dump({"number": number} | sample))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def read(self, number: int) -> Record:
        """Return a sample as it was added."""
        self._file.seek(self._offsets[number])
        return records.parse(self._file.readline(), self.path, 0)

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        os.fsync(self._file.fileno())
        self._file.close()
