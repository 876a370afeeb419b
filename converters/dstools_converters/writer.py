"""Write a folder so that it is whole or not there: a journal, a place to work in, one last rename.

    OUT.incomplete/            locked by the run that fills it
        journal.jsonl          the plan's digest, then a line for whatever is done
        model/                 becomes OUT
            x.safetensors.partial -> x.safetensors

Killed anywhere, the next run with the same plan goes on from the journal: {"job": [shard, number]} and
{"written": shard} hold for as long as the machine is not restarted, since the page cache outlives the
process; {"synced": shard} holds for good. A line is written after the bytes that it speaks of.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dstools_converters.checkpoint import INDEX
from dstools_converters.errors import DstoolsError
from dstools_converters.plan import Plan

JOURNAL = "journal.jsonl"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RESUME_HINT = "the same command goes on where this one stopped"


class Writer:
    """The folder of one plan, from its lock to its last rename."""

    def __init__(self, plan: Plan, out: Path, *, is_synced: bool) -> None:
        self.plan = plan
        self.out = out
        self.work = out.with_name(out.name + ".incomplete")
        self.model = self.work / "model"
        self.is_synced = is_synced
        self.is_published = False  # by an earlier run that was killed before it had cleaned up
        self.finished: set[int] = set()  # numbers of shards
        self.jobs: dict[int, set[int]] = {}  # shard -> numbers of jobs, of shards not finished
        self._files: dict[int, int] = {}  # shard -> descriptor, of shards being filled
        self._unsynced: set[int] = set()
        self._syncer = ThreadPoolExecutor(1, "fsync")
        self._syncs: list[Future[None]] = []

    def __enter__(self) -> "Writer":
        """Take the lock and read the journal.

        Raises DstoolsError where OUT exists, another run is at work, the journal is of another plan,
        or the disk is too small.
        """
        if os.path.lexists(self.out) and not self.work.is_dir():
            raise self._exists()
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_over()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._syncer.shutdown(cancel_futures=kind is not None)
        for file in (*self._files.values(), self._journal, self._lock):
            os.close(file)

    def _exists(self) -> DstoolsError:
        return DstoolsError(f"{self.out}: exists", "name a new folder, or delete this one")

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DstoolsError(
                f"{self.work}: another run is writing it", "wait for it, or stop it"
            ) from error
        records = _read_journal(self.work / JOURNAL)
        if records and records[0].get("plan") != self.plan.digest:
            raise DstoolsError(
                f"{self.work}: was begun from another source, or with other options",
                "finish that run with its own command, or delete the folder",
            )
        if os.path.lexists(self.out):
            if self.model.exists() or not self._is_published():
                raise self._exists()
            self.is_published = True
        else:
            self._read_progress(records)
            self._check_space()
            self.model.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(self.work / JOURNAL, flags, 0o666)
        if not records:
            self._record({"plan": self.plan.digest})
        self._record({"boot": _boot()})
        for number in sorted(self._unsynced):
            self._sync_later(number)

    def _read_progress(self, records: list[dict[str, Any]]) -> None:
        """Take from the journal what still holds: nothing that a file does not look like."""
        synced: set[int] = set()
        is_this_boot = False
        for record in records:
            for what, value in record.items():
                if what == "boot":
                    is_this_boot = value == _boot()
                elif what == "opened":  # laid out anew: what was said of it before is void
                    self.jobs.pop(value, None)
                    self.finished.discard(value)
                    synced.discard(value)
                elif what == "synced":
                    synced.add(value)
                    self.finished.add(value)
                elif what == "written" and is_this_boot:
                    self.finished.add(value)
                elif what == "job" and is_this_boot:
                    self.jobs.setdefault(value[0], set()).add(value[1])
        for number, shard in enumerate(self.plan.shards):
            if not self._is_laid_out(number, shard.name):
                self.finished.discard(number)
            if number in self.finished or not self._is_laid_out(number, f"{shard.name}.partial"):
                self.jobs.pop(number, None)
        self._unsynced = self.finished - synced

    def _is_published(self) -> bool:
        """Tell whether OUT is this plan's: then a run was killed while it cleaned up."""
        try:
            return bool(json.loads((self.out / INDEX).read_bytes()) == self.plan.index())
        except (OSError, ValueError):
            return False

    def _is_laid_out(self, number: int, name: str) -> bool:
        """Tell whether a file has the size and the header of a shard."""
        path, shard = self.model / name, self.plan.shards[number]
        if not path.is_file() or path.stat().st_size != shard.nbytes:
            return False
        with path.open("rb") as file:
            return file.read(len(shard.header)) == shard.header

    def _check_space(self) -> None:
        needed = sum(
            shard.nbytes for i, shard in enumerate(self.plan.shards) if i not in self.finished
        )
        # what a killed run left of unfinished shards is used again
        left = sum(path.stat().st_blocks * 512 for path in self.model.glob("*.partial"))
        free = shutil.disk_usage(self.work).free + left
        if needed > free:
            raise DstoolsError(
                f"{self.out}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
                "free some space, or name a folder on another disk",
            )

    def open(self, number: int) -> int:
        """Return a descriptor of a shard's file, its header written and its space taken."""
        shard = self.plan.shards[number]
        partial = self.model / f"{shard.name}.partial"
        is_new = not self.jobs.get(number)
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if is_new else 0)
        file = self._files[number] = os.open(partial, flags, 0o666)
        if is_new:
            self._record({"opened": number})
        with disk_errors(partial):
            os.posix_fallocate(file, 0, shard.nbytes)
            os.pwrite(file, shard.header, 0)
        return file

    def job_done(self, number: int, job: int) -> None:
        """Note that the bytes of a job are written."""
        self._record({"job": [number, job]})

    def shard_done(self, number: int) -> None:
        """Note that all jobs of a shard are done, and flush it in the background."""
        name = self.plan.shards[number].name
        (self.model / f"{name}.partial").rename(self.model / name)
        self._record({"written": number})
        os.close(self._files.pop(number))
        self._sync_later(number)

    def _sync_later(self, number: int) -> None:
        if self.is_synced:
            self._syncs.append(self._syncer.submit(self._sync_shard, number))

    def _sync_shard(self, number: int) -> None:
        _sync(self.model / self.plan.shards[number].name)
        _sync(self.model)
        self._record({"synced": number})
        os.fsync(self._journal)

    def publish(self, files: dict[str, Path | bytes]) -> None:
        """Add the other files, the index last, and give the folder its name."""
        for sync in self._syncs:
            sync.result()
        for name in sorted(files, key=lambda name: (name == INDEX, name)):
            target = self.model / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = files[name]
            with disk_errors(target):
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
                if self.is_synced:
                    _sync(target)
        if self.is_synced:
            _sync(self.model)
        self.model.rename(self.out)
        if self.is_synced:
            _sync(self.out.parent)

    def clean_up(self) -> None:
        """Remove what is left of the work after OUT has its name."""
        (self.work / JOURNAL).unlink(missing_ok=True)
        self.work.rmdir()

    def _record(self, line: dict[str, Any]) -> None:
        """Append a line to the journal in one write, so that a kill leaves it there or not."""
        os.write(self._journal, json.dumps(line).encode() + b"\n")


def _boot() -> str:
    """Name this run of the machine; another one has lost its page cache."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else "unknown"


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the journal's lines up to the first that is not whole."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk that is full, or a file that may not grow, into a DstoolsError naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DstoolsError(
            f"{path}: {error.strerror}", f"free some space; then {RESUME_HINT}"
        ) from error
