"""Row-by-row stages: rows of JSONL through worker processes, resumed after a kill."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import RESUME_HINT, DstoolsError
from dstools_converters.files import append_record, recover_log
from dstools_distill import records
from dstools_distill.store.stage import JOURNAL, Work

CHUNK_ROWS = 1024


class Chunk(NamedTuple):
    """The result of some rows."""

    files: dict[str, bytes]  # to append, by file name
    counts: Counter[str]


Rows = list[tuple[int, bytes]]  # line number and line
_process: Callable[[Rows], Chunk]  # in a worker


def map_rows(
    source: Path,
    work: Work,
    files: tuple[str, ...],
    make: Callable[..., Callable[[Rows], Chunk]],
    *args: Any,
    what: str,
) -> Counter[str]:
    """Run rows of a JSONL file through worker processes; return the sums of their counts.

    `make(*args)`, called once in each worker, returns the function that turns rows into a Chunk;
    make and args must pickle. A Chunk depends on the rows alone, so the files are the same for any
    number of workers and after any kill: a journal has a line for every 1024 rows, and the files
    are cut back to it before the run resumes. A DstoolsError of a worker is raised here.
    """
    journal = work.folder / JOURNAL
    counts, start, rows_done = _recover(journal, work.folder, files)
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
                append_record(notes.fileno(), note)
                os.fsync(notes.fileno())
                progress(end - at)
                at = end
        finally:
            for sink in sinks.values():
                sink.close()
    return counts


def _recover(journal: Path, folder: Path, files: tuple[str, ...]) -> tuple[Counter[str], int, int]:
    """Cut the files back to the last note of the journal; return its counts, offset and lines."""
    start: dict[str, Any] = {"at": 0, "lines": 0, "sizes": dict.fromkeys(files, 0), "counts": {}}
    with journal.open("a+b") as notes:
        last = [start, *(note for _, note in recover_log(notes))][-1]
    for name, size in last["sizes"].items():
        with (folder / name).open("ab") as file:
            file.truncate(size)
    return Counter(last["counts"]), last["at"], last["lines"]


def _chunks(
    file: Any, at: int, number: int, workers: int, make: Any, args: tuple[Any, ...]
) -> Iterator[tuple[int, int, Chunk | DstoolsError]]:
    """Yield for every 1024 lines, in order, the offset after them, their number, their result."""

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
        for one in waiting:
            yield _wait(*one)


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
    """Yield the records of some rows; an error names `source` and the line."""
    for number, line in rows:
        yield records.parse(line, source, number)
