"""Run a plan: hand its jobs to workers, and have the writer note what is done.

Memory is workers times one job, whatever the size of a tensor or shard; a very wide matrix (rows of w
bytes) takes 128 x 3 w a worker. Workers fill different shards as long as there are several: a file takes
one write at a time, and two files take them twice as fast. Which job runs when does not change a byte.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import disk_errors
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import LayerNote, WeightNote
from dstools_converters.write import jobs
from dstools_converters.write.jobs import Job, jobs_of
from dstools_converters.write.metadata import side_files
from dstools_converters.write.writer import Writer


@dataclass(frozen=True)
class Report:
    """What a run did; `bytes_resumed` of the input an earlier run of the same plan had done."""

    out: str
    bytes_in: int
    bytes_out: int
    bytes_resumed: int
    seconds: float
    shards: int
    tensors: dict[str, int]  # how many by what became of them
    unknown_tensors: list[str]


@dataclass
class _Open:
    """A shard that is being filled."""

    number: int
    file: int
    jobs: deque[Job]
    running: int = 0


def run(
    plan: Plan,
    out: Path,
    *,
    tool: str,
    workers: int,
    is_synced: bool = True,
    progress: Progress = lambda nbytes: None,
    calibrate: Callable[[Plan, "Sink"], None] | None = None,
) -> Report:
    """Write the folder `out` as `plan` says; `progress` is told of input bytes as they are done.

    What the plan leaves to a calibration, `calibrate` puts into the sink, before all else is written.

    Raises DstoolsError for NaN or infinity in a weight, an input that changes meanwhile, a full disk,
    or an `out` that exists; what was done stays, and the next run with the same plan goes on there.
    """
    start = time.perf_counter()
    # jobs are known by their numbers: another version may number others
    fingerprint = f"{plan.digest} {tool} {jobs.PIECE_BYTES}"
    with Writer(
        plan,
        out,
        lambda w: side_files(plan, tool, w.notes.values(), w.layers),
        fingerprint,
        is_synced=is_synced,
    ) as writer:
        if writer.is_published:
            resumed = plan.bytes_in
        else:
            resumed_jobs = {number: set(jobs) for number, jobs in writer.jobs.items()}
            if calibrate is not None:
                calibrate(plan, Sink(plan, writer))
            queue = _Queue(plan, writer, resumed_jobs, progress)
            with ThreadPoolExecutor(workers, "convert") as pool:
                crew = [pool.submit(queue.work) for _ in range(workers)]
                try:
                    for worker in crew:
                        worker.result()
                except BaseException:
                    queue.stop()
                    raise
            for inventory in (plan.inventory, plan.base):
                if inventory is not None:
                    inventory.checkpoint.check_unmoved()
            writer.publish()
            resumed = queue.bytes_resumed
        writer.clean_up()
    return Report(
        out=str(out),
        bytes_in=plan.bytes_in,
        bytes_out=plan.bytes_out,
        bytes_resumed=resumed,
        seconds=time.perf_counter() - start,
        shards=len(plan.shards),
        tensors=_counts(plan, writer),
        unknown_tensors=[info.name for info in plan.inventory.unknown],
    )


def _counts(plan: Plan, writer: Writer) -> dict[str, int]:
    """Count the tensors by what became of them: not all that are tried can be recovered."""
    counts = Counter({str(action): count for action, count in plan.counts.items()})
    recovered = sum("recovered" in note for note in writer.notes.values())
    if counts["recover"] > recovered:
        counts["quantize"] += counts["recover"] - recovered
        counts["recover"] = recovered
    methods = Counter(note["method"] for note in writer.notes.values() if "method" in note)
    if methods:
        del counts["calibrate"]
        counts.update(methods)
    return dict(counts)


class Sink:
    """Where a calibration puts its results; they are safe from a kill once they are in."""

    def __init__(self, plan: Plan, writer: Writer) -> None:
        self._writer = writer
        self.folder = writer.calibration  # for whatever the next run is to go on from
        self.layers = writer.layers  # what was noted of each layer that is done
        self._places = {
            job.tensor.source.name: (number, job)
            for number, shard in enumerate(plan.shards)
            for job in jobs_of(plan, shard)
            if job.tensor.action == "calibrate"
        }

    def is_done(self, name: str) -> bool:
        """Tell whether the tensor's codes and scales are in their place."""
        number, job = self._places[name]
        return number in self._writer.finished or job.number in self._writer.jobs.get(number, ())

    def put(self, name: str, codes: memoryview, scale_inv: memoryview, note: WeightNote) -> None:
        """Write a tensor, `codes` uint8 and `scale_inv` float32, and note how it was made."""
        number, job = self._places[name]
        file = self._writer.open(number)
        with disk_errors(self._writer.model / self._writer.plan.shards[number].name):
            for data, output in zip((codes, scale_inv), job.tensor.target.parts, strict=True):
                assert data.nbytes == output.nbytes
                jobs.write_at(file, data.cast("B"), output.offset)
        self._writer.job_done(number, job.number, {"tensor": name} | asdict(note))

    def layer_done(self, layer: int, note: LayerNote) -> None:
        """Note what was seen in a layer, and that all that was put until now outlives the machine."""
        self._writer.layer_done(layer, note)


class _Queue:
    """Hands jobs to workers so that each has a shard of its own while there are enough."""

    def __init__(
        self, plan: Plan, writer: Writer, resumed_jobs: dict[int, set[int]], progress: Progress
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.progress = progress
        self.bytes_resumed = 0
        self._waiting = deque(n for n in range(len(plan.shards)) if n not in writer.finished)
        self._open: list[_Open] = []
        self._lock = Lock()
        self._resumed = resumed_jobs  # shard -> jobs that an earlier run did
        for number in writer.finished:
            for job in jobs_of(plan, plan.shards[number]):
                self._skip(job, is_resumed=True)

    def work(self) -> None:
        """Do jobs until there are none; the first error ends the work of all."""
        try:
            while (taken := self._take()) is not None:
                shard, job = taken
                with disk_errors(self.writer.model / self.plan.shards[shard.number].name):
                    note = jobs.do(self.plan, job, shard.file)
                self._done(shard, job, note)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Hand out no more jobs; those that run are finished."""
        with self._lock:
            self._waiting.clear()
            for shard in self._open:
                shard.jobs.clear()
            self._open.clear()

    def _take(self) -> tuple[_Open, Job] | None:
        with self._lock:
            shard = next((shard for shard in self._open if shard.jobs and not shard.running), None)
            while shard is None and self._waiting:
                shard = self._open_next()
            shard = shard or next((shard for shard in self._open if shard.jobs), None)
            if shard is None:
                return None
            shard.running += 1
            return shard, shard.jobs.popleft()

    def _open_next(self) -> _Open | None:
        """Open the next shard; None where an earlier run has done all of its jobs."""
        number = self._waiting.popleft()
        done = self.writer.jobs.get(number, set())
        todo = list(jobs_of(self.plan, self.plan.shards[number]))
        for job in todo:
            if job.number in done:
                self._skip(job, is_resumed=job.number in self._resumed.get(number, ()))
        shard = _Open(
            number, self.writer.open(number), deque(j for j in todo if j.number not in done)
        )
        if not shard.jobs:
            self.writer.shard_done(number)
            return None
        self._open.append(shard)
        return shard

    def _skip(self, job: Job, *, is_resumed: bool) -> None:
        self.bytes_resumed += job.bytes_in if is_resumed else 0
        self.progress(job.bytes_in)

    def _done(self, shard: _Open, job: Job, note: dict[str, Any] | None) -> None:
        self.writer.job_done(shard.number, job.number, note)
        with self._lock:
            shard.running -= 1
            self.progress(job.bytes_in)
            if shard in self._open and not shard.jobs and not shard.running:
                self._open.remove(shard)
                self.writer.shard_done(shard.number)
