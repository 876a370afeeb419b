"""Samples as they come, a line each, in a file that is only appended to: what is in there is not asked again.

{"number": 7, ...}: its place among all that are wanted, and what the writer says of it. What a kill cut off
in the last line is removed; of a number that came twice the first line counts.
"""

import os
import time
from array import array
from pathlib import Path

from dstools_converters.files import recover_log
from dstools_distill import records
from dstools_distill.records import Record

SYNC_SECONDS = 2.0  # what a power cut may cost; a kill costs nothing that was logged


class SampleLog:
    """The log of `total` samples, gone on with where there is one; to be closed."""

    def __init__(self, path: Path, total: int) -> None:
        self.path, self.total = path, total
        self._found = 0
        self._offsets = array("q", [-1]) * total
        self._file = path.open("a+b")
        self._synced = time.monotonic()
        for offset, row in recover_log(self._file):
            self._note(row["number"], offset)

    def _note(self, number: int, offset: int) -> None:
        if self._offsets[number] == -1:
            self._offsets[number] = offset
            self._found += 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._offsets[number] != -1

    def __len__(self) -> int:
        return self._found

    def add(self, number: int, said: Record) -> None:
        """Append a sample; a kill does not undo it, and after SYNC_SECONDS neither does a power cut."""
        self._note(number, self._file.seek(0, os.SEEK_END))
        self._file.write(records.dump({"number": number} | said))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def read(self, number: int) -> Record:
        """Return a sample as it was added."""
        self._file.seek(self._offsets[number])
        return records.parse(self._file.readline(), self.path, 0)

    def close(self) -> None:
        """Flush the file to the disk, and close it."""
        os.fsync(self._file.fileno())
        self._file.close()
