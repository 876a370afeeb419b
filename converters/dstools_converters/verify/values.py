"""Check the values of all tensors: NaN and infinity, zeros, and numbers that were clamped.

Every byte is read once: what a comparison with the source reads is looked at on the way.
"""

from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.oddities import odd_magnitude
from dstools_converters.checkpoint.rows import Progress, require_finite, width
from dstools_converters.checkpoint.zeros import all_zero, is_hole, is_weight, zero_tails
from dstools_converters.errors import DstoolsError, Finding
from dstools_kernels.fp8 import NON_FINITE_BITS

PIECE_BYTES = 8 << 20  # mapped at a time; of 4 MiB, mapping costs more than the look


@dataclass
class _Seen:
    """The state of one tensor's scan."""

    info: TensorInfo
    until: int = 0  # bytes from its first on that `look` was shown
    largest: float = 0.0  # magnitude
    faults: dict[int, Finding] = field(default_factory=dict)  # by the first byte of their piece


class Values:
    """The values of a checkpoint, as far as they have been seen; scales are checked elsewhere.

    `progress` is called with the number of bytes that were not seen before.
    """

    def __init__(self, inventory: Inventory, progress: Progress) -> None:
        self.inventory = inventory
        self.progress = progress
        self._lock = Lock()
        self._seen = {info.name: _Seen(info) for info, _ in inventory.weights()}

    def unjudged(self) -> list[str]:
        """Return the dtypes whose bytes are read, and whose numbers are not judged, sorted."""
        return sorted({seen.info.dtype for seen in self._seen.values()}.difference(NON_FINITE_BITS))

    def look(self, info: TensorInfo, begin: int, data: memoryview) -> None:
        """Look at bytes of a tensor from `begin` on, as far as they follow those seen before."""
        seen = self._seen.get(info.name)
        if seen is not None and begin <= seen.until < begin + len(data):
            data = data[seen.until - begin :]
            at, seen.until = seen.until, seen.until + len(data)
            self._add(seen, at, data)

    def read_rest(self, workers: int) -> None:
        """Read all bytes that were not seen, and look at them; holes are zeros without a look."""
        pieces = []
        for seen in self._seen.values():
            nbytes = seen.info.nbytes
            if not seen.until and is_hole(self.inventory.checkpoint, seen.info):
                self.progress(nbytes)
                continue
            pieces += [
                (seen, begin, min(begin + PIECE_BYTES, nbytes))
                for begin in range(seen.until, nbytes, PIECE_BYTES)
            ]
        with ThreadPoolExecutor(workers, "verify") as pool:
            for _ in pool.map(lambda piece: self._read(*piece), pieces):
                pass

    def findings(self, known: Container[str] = ()) -> Iterator[Finding]:
        """Yield what is wrong with the values, and what looks so, but of tensors at `known` places.

        What was not read counts as zeros: `read_rest` comes first.
        """
        zeros = []
        for seen in self._seen.values():
            if seen.info.where in known:
                continue
            if seen.faults:
                yield seen.faults[min(seen.faults)]
                continue
            is_one = is_weight(self.inventory, seen.info)
            if seen.largest == 0 and seen.info.numel and is_one:
                zeros.append(seen.info.name)
            elif seen.info.dtype in NON_FINITE_BITS:
                yield from odd_magnitude(seen.info, seen.largest, is_weight=is_one)
        yield from zero_tails(self.inventory.checkpoint)
        yield from all_zero(zeros)

    def _read(self, seen: _Seen, begin: int, end: int) -> None:
        try:
            data = self.inventory.checkpoint.read(seen.info, begin, end)
        except DstoolsError as error:
            seen.faults[begin] = _finding("unreadable", seen.info, error)
        else:
            self._add(seen, begin, data)

    def _add(self, seen: _Seen, begin: int, data: memoryview) -> None:
        largest, info = 0.0, seen.info
        try:
            if info.dtype in NON_FINITE_BITS:
                largest = require_finite(info, data, begin // width(info))
        except DstoolsError as error:
            seen.faults[begin] = _finding("not-finite", info, error)
        with self._lock:
            seen.largest = max(seen.largest, largest)
            self.progress(len(data))


def _finding(code: str, info: TensorInfo, error: DstoolsError) -> Finding:
    return Finding.error(code, info.where, str(error).removeprefix(f"{info.where}: "), error.hint)
