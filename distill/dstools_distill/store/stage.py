"""A stage is a pure function from folders to a folder; this is what makes it one.

    OUT/store/verify-1a2b3c4d/   records.jsonl ... manifest.json

The folder's name holds a digest of all that decides its bytes: the stage's settings, its inputs by
content, versions of the code. A finished folder is never changed; the same recipe finds it again, another
one makes another. Until it is whole it is called `.incomplete`, and what is in there is gone on with.
"""

import fcntl
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import RESUME_HINT, DstoolsError, disk_errors
from dstools_converters.files import sync, write_synced
from dstools_distill import records
from dstools_distill.training.launch import LOCKED, rank

Report = dict[str, Any]  # what a stage says of itself: JSON, the same bytes for the same inputs
MANIFEST, TIMING, JOURNAL = "manifest.json", "timing.json", "journal.jsonl"
CHUNK_ROWS = 1024
WHOLE_BYTES = 64 << 20  # larger files of a model are told apart by size and pieces all over them:
SPREAD, SPREAD_BYTES = 1024, 4096  # a weight that takes a hundredth of the file holds ten


Bar = Callable[
    [int, str], AbstractContextManager[Callable[[int], object]]
]  # total, what -> more done


def no_bar(_total: int, _what: str) -> AbstractContextManager[Callable[[int], object]]:
    """Show no progress."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Work:
    """Where a stage writes, and what it works with; none of this may change a byte."""

    folder: Path  # files in it are what an earlier try left
    workers: int = 1
    bar: Bar = no_bar


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    stage: str
    folder: Path
    report: Report
    is_reused: bool


@dataclass(frozen=True)
class Identity:
    """All that decides the bytes of a stage's folder."""

    stage: str
    said: dict[str, Any]  # JSON

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        key = sha256(json.dumps(self.said, sort_keys=True).encode()).hexdigest()
        return f"{self.stage}-{key[:12]}"


def identify(
    stage: str,
    revision: int,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    packages: tuple[str, ...],
) -> Identity:
    """Return what tells a stage's result from any other.

    revision: of the stage's code, one higher whenever it gives other bytes for the same; settings: JSON;
    inputs: what it reads, by name, files or folders; packages: the distributions whose versions may change
    the bytes.
    """
    said = {
        "stage": stage,
        "revision": revision,
        "settings": settings,
        "inputs": {name: digest(path) for name, path in sorted(inputs.items())},
        "versions": {name: version(name) for name in packages},
    }
    return Identity(stage, said)


def find(store: Path, identity: Identity) -> Done | None:
    """Return the finished stage, if it is there."""
    folder = store / identity.name
    if not (folder / MANIFEST).exists():
        return None
    return Done(identity.stage, folder, read_manifest(folder)["report"], is_reused=True)


def run_stage(
    store: Path,
    identity: Identity,
    body: Callable[[Work], Report],
    work: Callable[[Path], Work],
) -> Done:
    """Return the folder of a stage, made by `body` unless it is there already.

    In a process of a launcher with a rank other than 0 only `body` is run: folders are rank 0's.
    """
    if found := find(store, identity):
        return found
    done = store / identity.name
    partial = store / f"{identity.name}.incomplete"
    if rank() > 0:
        return Done(identity.stage, done, body(work(partial)), is_reused=False)
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        started, cpu = time.monotonic(), cpu_seconds()
        report = body(work(partial))
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": cpu_seconds() - cpu}
        (partial / TIMING).write_text(json.dumps(spent) + "\n")  # of the last try alone
        (partial / JOURNAL).unlink(missing_ok=True)
        manifest = identity.said | {"dstools": version("dstools-llm")}
        manifest |= {"outputs": outputs(partial), "report": report}
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_synced(partial / MANIFEST, text.encode())
        partial.rename(done)
        sync(store)
    return Done(identity.stage, done, report, is_reused=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a finished stage says of itself."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise DstoolsError(
            f"{folder / MANIFEST}: cannot be read: {error}", "name the folder of a finished stage"
        ) from None
    return found


def outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file in a folder that belongs to its result, by name."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, TIMING)
    }


def digest(path: Path) -> str:
    """Return what tells an input from any other: its content, wherever it lies.

    Of a finished stage, its outputs; of a file, its sha256; of another folder, the names of its files and
    the content of each, where a file over 64 MiB counts by its size and 1024 pieces spread evenly over it.
    """
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise DstoolsError(f"{path}: no such file or folder", "is the path right?")
    if (path / MANIFEST).exists() and "stage" in (manifest := read_manifest(path)):
        said = json.dumps(manifest["outputs"], sort_keys=True)
    else:
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != ".")
        said = json.dumps([[file.name, _sampled_sha256(file)] for file in files])
    return sha256(said.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    found = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_sha256(path)
    found = sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SPREAD):
            file.seek(number * (size - SPREAD_BYTES) // (SPREAD - 1))
            found.update(file.read(SPREAD_BYTES))
    return found.hexdigest()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder against a second run; a process of a launcher goes with its first."""
    out.mkdir(parents=True, exist_ok=True)
    if LOCKED in os.environ or rank() > 0:
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DstoolsError(
                f"{out}: another run works in it", "wait for it, or choose another --out"
            ) from None
        os.set_inheritable(file.fileno(), True)  # processes that a launcher starts hold it, too
        yield


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those it has waited for, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# --------------------------------------------------------------------------------- row by row


class Chunk(NamedTuple):
    """What comes of some rows."""

    files: dict[str, bytes]  # to append, by file name
    counts: Counter[str]


Rows = list[tuple[int, bytes]]  # line number and line
_process: Callable[[Rows], Chunk]  # of a worker


def map_rows(
    source: Path,
    work: Work,
    files: tuple[str, ...],
    make: Callable[..., Callable[[Rows], Chunk]],
    *args: Any,
    what: str,
) -> Counter[str]:
    """Run rows of a JSONL file through worker processes; return the sums of their counts.

    `make(*args)`, called once in each worker, returns the function that turns rows into a Chunk; make and
    args must pickle. What it returns depends on the rows alone, so the files come out the same whatever
    the number of workers, and whenever the run was killed: each 1024 rows are noted in a journal, to
    which the files are cut back before the run goes on. A DstoolsError of a worker is raised here.
    """
    journal = work.folder / JOURNAL
    counts, start, rows_done = _go_on(journal, work.folder, files)
    size = source.stat().st_size
    with source.open("rb") as file, work.bar(size, what) as progress, journal.open("ab") as notes:
        progress(start)
        sinks = {name: (work.folder / name).open("ab") for name in files}
        file.seek(start)
        at, done = start, rows_done
        try:
            for end, lines_read, chunk in _chunks(file, start, rows_done, work.workers, make, args):
                if isinstance(chunk, DstoolsError):
                    raise chunk
                counts.update(chunk.counts)
                done += lines_read
                sizes = {}
                for name, sink in sinks.items():
                    sink.write(chunk.files.get(name, b""))
                    sink.flush()
                    os.fsync(sink.fileno())
                    sizes[name] = sink.tell()
                note = {"at": end, "lines": done, "sizes": sizes, "counts": counts}
                notes.write(json.dumps(note).encode() + b"\n")
                notes.flush()
                os.fsync(notes.fileno())
                progress(end - at)
                at = end
        finally:
            for sink in sinks.values():
                sink.close()
    return counts


def _go_on(journal: Path, folder: Path, files: tuple[str, ...]) -> tuple[Counter[str], int, int]:
    """Cut files and journal back to where the journal is sure; return counts, offset and lines."""
    last: dict[str, Any] = {"at": 0, "lines": 0, "sizes": dict.fromkeys(files, 0), "counts": {}}
    kept = 0
    if journal.exists():
        for line in journal.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            last, kept = json.loads(line), kept + len(line)
        os.truncate(journal, kept)
    for name, size in last["sizes"].items():
        with (folder / name).open("ab") as file:
            file.truncate(size)
    return Counter(last["counts"]), last["at"], last["lines"]


def _chunks(
    file: Any, at: int, number: int, workers: int, make: Any, args: tuple[Any, ...]
) -> Iterator[tuple[int, int, Chunk | DstoolsError]]:
    """Yield for each 1024 lines, in order, the offset behind them, their number, what came of them."""

    def batches() -> Iterator[tuple[int, Rows]]:
        nonlocal at, number
        while batch := list(islice(file, CHUNK_ROWS)):
            at += sum(map(len, batch))
            rows = [(number + n, line) for n, line in enumerate(batch, start=1)]
            number += len(batch)
            yield at, rows

    if workers == 1:
        _start(make, args)
        for end, rows in batches():
            yield end, len(rows), _run(rows)
        return
    spawn = get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, spawn, _start, (make, args)) as pool:
        waiting: list[tuple[int, int, Future[Chunk | DstoolsError]]] = []
        for end, rows in batches():
            waiting.append((end, len(rows), pool.submit(_run, rows)))
            if len(waiting) > 2 * workers:
                yield _wait(*waiting.pop(0))
        for each in waiting:
            yield _wait(*each)


def _wait(
    end: int, count: int, result: "Future[Chunk | DstoolsError]"
) -> tuple[int, int, Chunk | DstoolsError]:
    try:
        return end, count, result.result()
    except BrokenProcessPool as error:
        raise DstoolsError(
            "a worker process was killed", f"was memory short? {RESUME_HINT}"
        ) from error


def _start(make: Callable[..., Callable[[Rows], Chunk]], args: tuple[Any, ...]) -> None:
    global _process
    try:
        _process = make(*args)
    except DstoolsError as error:
        failed = error

        def refuse(_rows: Rows) -> Chunk:
            raise failed

        _process = refuse


def _run(rows: Rows) -> Chunk | DstoolsError:
    try:
        return _process([(number, line) for number, line in rows if not line.isspace()])
    except DstoolsError as error:
        return error


def each_record(source: Path, rows: Rows) -> Iterator[records.Record]:
    """Yield the records of some rows of `source`, which is named where one is bad."""
    for number, line in rows:
        yield records.parse(line, source, number)
