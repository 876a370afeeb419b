"""Write a folder so that it is whole or not there: a journal, a place to work in, one last rename.

    OUT.incomplete/            locked by the run that fills it
        journal.jsonl          the plan's digest, then a line a finished shard
        model/                 becomes OUT
            x.safetensors.partial -> x.safetensors

A shard counts as finished after its line is in the journal: "written" for as long as the machine has not
been restarted (the page cache outlives the process), "synced" for good. Killed anywhere, the next run
with the same plan takes the finished shards and makes the others again.
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
from dstools_converters.plan import Plan, ShardPlan

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
        self.finished: set[str] = set()
        self.is_published = False  # by an earlier run that was killed before it had cleaned up
        self._boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else "unknown"
        self._syncer = ThreadPoolExecutor(1, "fsync")
        self._syncs: list[Future[None]] = []

    def __enter__(self) -> "Writer":
        """Take the lock and read the journal.

        Raises DstoolsError where OUT exists, another run is at work, the journal is of another plan,
        or the disk is too small.
        """
        self.work.parent.mkdir(parents=True, exist_ok=True)
        is_left_over = self.work.is_dir()
        if os.path.lexists(self.out) and not is_left_over:
            raise DstoolsError(f"{self.out}: exists", "name a new folder, or delete this one")
        self.work.mkdir(exist_ok=True)
        self._lock = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_over()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DstoolsError(
                f"{self.work}: another run is writing it", "wait for it, or stop it"
            ) from error
        records = list(_read_journal(self.work / JOURNAL))
        if records and records[0].get("plan") != self.plan.digest:
            raise DstoolsError(
                f"{self.work}: was begun from another source, or with other options",
                "finish that run with its own command, or delete the folder",
            )
        if os.path.lexists(self.out):
            if not records or self.model.exists():
                raise DstoolsError(f"{self.out}: exists", "name a new folder, or delete this one")
            self.is_published = True
            return
        self.finished = {
            record["shard"]
            for record in records[1:]
            if (record.get("synced") or record.get("boot") == self._boot)
            and self._is_whole(record["shard"])
        }
        self._check_space()
        self.model.mkdir(exist_ok=True)
        if not records:
            self._record({"plan": self.plan.digest})

    def _is_whole(self, shard: str) -> bool:
        path = self.model / shard
        wanted = next((s for s in self.plan.shards if s.name == shard), None)
        if wanted is None or not path.is_file() or path.stat().st_size != wanted.nbytes:
            return False
        with path.open("rb") as file:
            return file.read(len(wanted.header)) == wanted.header

    def _check_space(self) -> None:
        needed = sum(s.nbytes for s in self.plan.shards if s.name not in self.finished)
        # what is left of a killed run will be overwritten, so its blocks count as free
        left = sum(path.stat().st_blocks * 512 for path in self.model.glob("*.partial"))
        free = shutil.disk_usage(self.work).free + left
        if needed > free:
            raise DstoolsError(
                f"{self.out}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
                "free some space, or name a folder on another disk",
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._syncer.shutdown(cancel_futures=kind is not None)
        os.close(self._lock)

    @contextmanager
    def shard(self, shard: ShardPlan) -> Iterator[int]:
        """Give a descriptor of the shard's file, its header written and its space taken.

        Left without an error, the shard is finished.
        """
        partial = self.model / f"{shard.name}.partial"
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with disk_errors(partial):
                os.posix_fallocate(file, 0, shard.nbytes)
                os.pwrite(file, shard.header, 0)
                yield file
            partial.rename(self.model / shard.name)
            self._record({"shard": shard.name, "boot": self._boot})
        except BaseException:
            os.close(file)
            raise
        if self.is_synced:
            for sync in [sync for sync in self._syncs if sync.done()]:
                sync.result()
                self._syncs.remove(sync)
            self._syncs.append(self._syncer.submit(self._sync_shard, file, shard.name))
        else:
            os.close(file)

    def _sync_shard(self, file: int, name: str) -> None:
        try:
            os.fsync(file)
        finally:
            os.close(file)
        _sync(self.model)
        self._record({"shard": name, "synced": True})

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
        self.clean_up()

    def clean_up(self) -> None:
        """Remove what is left of the work after OUT has its name."""
        (self.work / JOURNAL).unlink(missing_ok=True)
        self.work.rmdir()

    def _record(self, line: dict[str, Any]) -> None:
        """Append a line to the journal in one write, so that a kill leaves it there or not."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(self.work / JOURNAL, flags, 0o666)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
            if self.is_synced:
                os.fsync(file)
        finally:
            os.close(file)


def _read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's lines up to the first that is not whole."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


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
