"""Check the values of all tensors: NaN and infinity, zeros, and numbers that were clamped.

Every byte is read once: what a comparison with the source reads is looked at on the way, and a
shard that is to be hashed is hashed piece by piece, by one thread, while others look at its values.
"""

from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.oddities import odd_magnitude
from dstools_converters.checkpoint.rows import Progress, require_finite, width
from dstools_converters.checkpoint.zeros import all_zero, is_hole, is_weight, zero_tails
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.verify.hashes import Hashing
from dstools_kernels.fp8 import NON_FINITE_BITS

PIECE_BYTES = 8 << 20  # mapped at a time; of 4 MiB, mapping costs more than the look
AHEAD = 2  # pieces of a shard that are looked at; the last of them is hashed meanwhile


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

    def read_rest(self, workers: int, hashing: Hashing) -> None:
        """Read all bytes that were not seen, and look at them; holes are zeros without a look.

        Shards that wait to be hashed are read whole.
        """
        shards: dict[str, list[TensorInfo]] = {}
        for info in self.inventory.tensors.values():
            if info.shard in hashing.waiting:
                shards.setdefault(info.shard, []).append(info)
        with (
            ThreadPoolExecutor(workers, "verify") as pool,
            ThreadPoolExecutor(workers, "sums") as hashers,
        ):
            for _ in hashers.map(lambda infos: self._hash(infos, hashing, pool), shards.values()):
                pass
        pieces = []
        for seen in self._seen.values():
            if seen.info.shard in shards:
                continue
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

    def _hash(
        self, infos: Sequence[TensorInfo], hashing: Hashing, pool: ThreadPoolExecutor
    ) -> None:
        """Hash a shard, all of its tensors in order; `pool` looks at what was not seen."""
        folder, (first, *_) = self.inventory.checkpoint.folder, infos
        file = hashing.begin(first.shard)
        with (folder / first.shard).open("rb") as shard:
            header = memoryview(shard.read(first.offset))
        file.update(header)
        self._count(len(header))
        looks: deque[Future[None]] = deque()
        for info in infos:
            for begin in range(0, info.nbytes, PIECE_BYTES):
                end = min(begin + PIECE_BYTES, info.nbytes)
                try:
                    data = self.inventory.checkpoint.read(info, begin, end)
                except DstoolsError as error:
                    file.error = error
                    self._unreadable(info, begin, error)
                    continue
                while len(looks) >= AHEAD:
                    looks.popleft().result()
                looks.append(pool.submit(self._look_once, info, begin, data))
                file.update(data)
        for look in looks:
            look.result()
        hashing.end(file)

    def _look_once(self, info: TensorInfo, begin: int, data: memoryview) -> None:
        """Look at bytes of a tensor as far as they were not seen; those of scales only count."""
        seen = self._seen.get(info.name)
        if seen is None:
            self._count(len(data))
        elif begin + len(data) > seen.until:
            skipped = max(seen.until - begin, 0)
            self._add(seen, begin + skipped, data[skipped:])

    def _unreadable(self, info: TensorInfo, begin: int, error: DstoolsError) -> None:
        if info.name in self._seen:
            self._seen[info.name].faults[begin] = _finding("unreadable", info, error)

    def _read(self, seen: _Seen, begin: int, end: int) -> None:
        try:
            data = self.inventory.checkpoint.read(seen.info, begin, end)
        except DstoolsError as error:
            self._unreadable(seen.info, begin, error)
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
        self._count(len(data))

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.progress(nbytes)


def _finding(code: str, info: TensorInfo, error: DstoolsError) -> Finding:
    return Finding.error(code, info.where, str(error).removeprefix(f"{info.where}: "), error.hint)
