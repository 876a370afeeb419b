"""A run of a plan: jobs handed out to workers, and recorded by the writer when they are done.

Memory is that of one job for each worker, whatever the size of tensors and shards; a very wide
matrix (rows of w bytes) takes 128 x 3 w. Workers fill different shards while there are several: a
file takes one write at a time, so two files are twice as fast. The order of jobs changes no byte.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from dstools_converters.checkpoint.oddities import large_weight
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.checkpoint.zeros import is_zero_weight, zero_tails
from dstools_converters.errors import Finding, disk_errors
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import LayerNote, WeightNote
from dstools_converters.sidefiles.signature import Sign
from dstools_converters.write import jobs
from dstools_converters.write.jobs import Job, jobs_of
from dstools_converters.write.journal import Note
from dstools_converters.write.metadata import side_files
from dstools_converters.write.writer import Writer, require_own_work


@dataclass(frozen=True)
class Report:
    """The result of a run."""

    out: str
    bytes_in: int
    bytes_out: int
    bytes_resumed: int  # of bytes_in, that earlier runs of the same plan had done
    seconds: float
    shards: int
    tensors: dict[str, int]  # action or method -> how many
    unknown_tensors: list[str]
    zero_weights: list[str]  # of the source: all of their elements are zero
    warnings: list[Finding]  # of other values in the source


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
    writes_sums: bool = True,
    sign: Sign | None = None,
    progress: Progress = lambda nbytes: None,
    calibrate: Callable[[Plan, "Sink"], None] | None = None,
) -> Report:
    """Write the folder `out` as `plan` says; `progress` gets the input bytes of each finished job.
    `writes_sums`: write SHA256SUMS, too; `sign`: and with this the signature of the folder.

    `calibrate` first puts into its sink the tensors that the plan leaves to a calibration.

    Raises DstoolsError for NaN or infinity in a weight, an input that changes meanwhile, a full
    disk, or an `out` that exists. The next run of the same plan resumes where this one stopped.
    """
    start = time.perf_counter()
    with Writer(
        plan,
        out,
        lambda w: side_files(plan, tool, w.notes.values(), w.layers),
        _fingerprint(plan, tool),
        is_synced=is_synced,
        writes_sums=writes_sums,
        sign=sign,
    ) as writer:
        tails = list(zero_tails(plan.inventory.checkpoint))
        zeros: set[str] = set()
        if writer.is_published:
            resumed = plan.bytes_in
        else:
            queue = _do_jobs(plan, writer, workers, progress, calibrate)
            writer.publish(workers)
            resumed, zeros = queue.bytes_resumed, queue.zeros
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
        zero_weights=[name for name in plan.inventory.storage if name in zeros],
        warnings=[*tails, *jobs.warnings_of(writer.notes[key] for key in sorted(writer.notes))],
    )


def _do_jobs(
    plan: Plan,
    writer: Writer,
    workers: int,
    progress: Progress,
    calibrate: Callable[[Plan, "Sink"], None] | None,
) -> "_Queue":
    """Fill all shards; return the queue, which knows what was resumed."""
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
    return queue


def require_resumable(plan: Plan, out: Path, tool: str) -> None:
    """Raise DstoolsError where `run` would refuse what an earlier run has left; write nothing."""
    require_own_work(out, _fingerprint(plan, tool))


def _fingerprint(plan: Plan, tool: str) -> Note:
    # the journal has numbers of jobs, which another version may give to other jobs
    settings = {"tool": tool, **plan.settings, "pieces of": jobs.PIECE_BYTES}
    return {"plan": plan.digest, "settings": settings}


def _counts(plan: Plan, writer: Writer) -> dict[str, int]:
    """Count tensors by action or method: not all that were to be recovered could be."""
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
    """The output of a calibration; a tensor that is put into it survives a kill."""

    def __init__(self, plan: Plan, writer: Writer) -> None:
        self._writer = writer
        self.folder = writer.calibration  # for files that the next run resumes from
        self.layers = writer.layers  # those that are done
        self._places = {
            job.tensor.source.name: (number, job)
            for number, shard in enumerate(plan.shards)
            for job in jobs_of(plan, shard)
            if job.tensor.action == "calibrate"
        }

    def is_done(self, name: str) -> bool:
        """Return whether a tensor is written."""
        number, job = self._places[name]
        return number in self._writer.finished or job.number in self._writer.jobs.get(number, ())

    def put(self, name: str, codes: memoryview, scale_inv: memoryview, note: WeightNote) -> None:
        """Write a tensor, `codes` uint8 and `scale_inv` float32, and record how it was made."""
        number, job = self._places[name]
        file = self._writer.open(number)
        with disk_errors(self._writer.model / self._writer.plan.shards[number].name):
            for data, output in zip((codes, scale_inv), job.tensor.target.parts, strict=True):
                assert data.nbytes == output.nbytes
                jobs.write_at(file, data.cast("B"), output.offset)
        found = large_weight(job.tensor.source, scale_inv.cast("B"))
        self._writer.job_done(number, job.number, jobs.note_of(name, asdict(note), found))

    def layer_done(self, layer: int, note: LayerNote) -> None:
        """Record what was seen in a layer, and flush all tensors until now."""
        self._writer.layer_done(layer, note)


class _Queue:
    """The jobs to be done, handed out so that workers fill different shards while there are."""

    def __init__(
        self, plan: Plan, writer: Writer, resumed_jobs: dict[int, set[int]], progress: Progress
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.progress = progress
        self.bytes_resumed = 0
        self.zeros: set[str] = set()  # names of weights that are all zeros
        self._waiting = deque(n for n in range(len(plan.shards)) if n not in writer.finished)
        self._open: list[_Open] = []
        self._lock = Lock()
        self._resumed = resumed_jobs  # shard -> jobs that an earlier run did
        for number in writer.finished:
            for job in jobs_of(plan, plan.shards[number]):
                self._skip(job, is_resumed=True)

    def work(self) -> None:
        """Do jobs until none is left; the first error stops all workers."""
        try:
            while (taken := self._take()) is not None:
                shard, job = taken
                with disk_errors(self.writer.model / self.plan.shards[shard.number].name):
                    note = jobs.do(self.plan, job, shard.file)
                self._look_for_zeros(job)
                self._done(shard, job, note)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Hand out no more jobs; running ones finish, hashing ends."""
        self.writer.is_stopped = True
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
        """Open the next shard; return None if all its jobs are done already."""
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

    def _look_for_zeros(self, job: Job) -> None:
        """Look at the whole weight in its first job; a few bytes of nearly all are enough."""
        info = job.tensor.source
        if job.begin == 0 and is_zero_weight(self.plan.inventory, info):
            self.zeros.add(info.name)

    def _skip(self, job: Job, *, is_resumed: bool) -> None:
        self._look_for_zeros(job)
        self.bytes_resumed += job.bytes_in if is_resumed else 0
        self.progress(job.bytes_in)

    def _done(self, shard: _Open, job: Job, note: Note | None) -> None:
        self.writer.job_done(shard.number, job.number, note)
        with self._lock:
            shard.running -= 1
            self.progress(job.bytes_in)
            if shard in self._open and not shard.jobs and not shard.running:
                self._open.remove(shard)
                self.writer.shard_done(shard.number)
