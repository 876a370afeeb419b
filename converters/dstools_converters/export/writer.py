"""The folder of an export: complete under its name, or not there.

    OUT.incomplete/       locked by the run that fills it
        journal.jsonl     {"plan": fingerprint}, then {"file", "tensor", "sha256"} of each that is
                          written
        model/            becomes OUT

After a kill, the next run of the same command resumes: what the journal says is hashed again, and
written again where a power failure has lost it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError, disk_errors, size
from dstools_converters.export.data import Entry, digest_of, write
from dstools_converters.files import append_record, recover_log, sync

JOURNAL, MODEL = "journal.jsonl", "model"
Progress = Callable[[int], object]  # called with the number of bytes just written


class DataFile(NamedTuple):
    """A file of weights."""

    path: str  # in the folder
    header: bytes
    entries: list[Entry]
    made: dict[str, Tensor]  # values of those that are not from the checkpoint

    @property
    def nbytes(self) -> int:
        """Return its size."""
        last = self.entries[-1]
        return len(self.header) + last.offset + last.nbytes


class Folder:
    """An output folder that is being filled."""

    def __init__(self, out: Path, journal: int, done: dict[tuple[str, str], str]) -> None:
        self.out = out
        self.model = work_folder(out) / MODEL
        self._journal = journal
        self._done = done  # (file, tensor) -> sha256, of earlier runs

    def fill(
        self, inventory: Inventory, file: DataFile, workers: int, progress: Progress
    ) -> dict[str, str]:
        """Write a file of weights; return the sha256 of each tensor."""
        path = self.model / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

        def one(entry: Entry) -> str:
            at, base = len(file.header) + entry.offset, len(file.header)
            digest = self._done.get((file.path, entry.name))
            if digest is None or digest != digest_of(descriptor, at, entry.nbytes):
                digest = write(inventory, entry, descriptor, base, file.made.get(entry.name))
                record = {"file": file.path, "tensor": entry.name, "sha256": digest}
                append_record(self._journal, record)
            progress(entry.nbytes)
            return digest

        try:
            with disk_errors(path):
                os.posix_fallocate(descriptor, 0, file.nbytes)
                os.ftruncate(descriptor, file.nbytes)
                os.pwrite(descriptor, file.header, 0)
                with ThreadPoolExecutor(workers, "export") as pool:
                    futures = [pool.submit(one, entry) for entry in file.entries]
                    try:
                        digests = [future.result() for future in futures]
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return {e.name: digest for e, digest in zip(file.entries, digests, strict=True)}

    def put(self, path: str, content: bytes | Path) -> None:
        """Write a small file, or copy it."""
        target = self.model / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(target):
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
            sync(target)

    def publish(self) -> None:
        """Give the folder its name."""
        for folder in (self.model, *(path for path in self.model.rglob("*") if path.is_dir())):
            sync(folder)
        self.model.rename(self.out)
        sync(self.out.parent)


@contextmanager
def folder(out: Path, fingerprint: str, nbytes: int) -> Iterator[Folder | None]:
    """Yield the folder to fill, None where an earlier run has finished it.

    fingerprint: of all that decides its bytes; nbytes: what it will take. Raises DstoolsError where
    OUT exists, another run is at work or was begun for another plan, and where the disk is short.
    """
    work = work_folder(out)
    if os.path.lexists(out) and not work.is_dir():
        raise DstoolsError(f"{out}: exists", "name a new folder, or delete this one")
    is_new = not work.exists()
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _take(work, lock)
        journal = os.open(work / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            done = _read(work, journal, fingerprint)
            if os.path.lexists(out):
                if (work / MODEL).exists():
                    raise DstoolsError(f"{out}: exists", "name a new folder, or delete this one")
                yield None
            else:
                _require_space(work, nbytes, is_new)
                (work / MODEL).mkdir(exist_ok=True)
                yield Folder(out, journal, done)
        finally:
            os.close(journal)
        (work / JOURNAL).unlink()
        work.rmdir()
    finally:
        os.close(lock)


def work_folder(out: Path) -> Path:
    """Return the folder in which OUT is worked on."""
    return out.with_name(f"{out.name}.incomplete")


def _take(work: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DstoolsError(
            f"{work}: another run is writing it", "wait for it, or stop it"
        ) from error
    for path in work.iterdir():
        if path.name not in (JOURNAL, MODEL):
            raise DstoolsError(
                f"{path}: dstools export did not write it",
                "move it; the output is worked on in this folder",
            )


def _read(work: Path, journal: int, fingerprint: str) -> dict[tuple[str, str], str]:
    """Return what earlier runs have written; begin the journal where there is none."""
    with os.fdopen(os.dup(journal), "r+b") as file:
        records = [record for _, record in recover_log(file)]
    if not records:
        append_record(journal, {"plan": fingerprint})
        return {}
    if records[0] != {"plan": fingerprint}:
        raise DstoolsError(
            f"{work}: was begun from another source, with other options or by another dstools",
            "finish that run with its own command, or delete the folder",
        )
    return {(r["file"], r["tensor"]): r["sha256"] for r in records[1:]}


def _require_space(work: Path, nbytes: int, is_new: bool) -> None:
    written = sum(path.stat().st_blocks * 512 for path in (work / MODEL).rglob("*"))
    free = shutil.disk_usage(work).free + written
    if nbytes > free:
        if is_new:
            (work / JOURNAL).unlink()
            work.rmdir()
        raise DstoolsError(
            f"{work.with_suffix('')}: needs {size(nbytes)}, the disk has {size(free)} free",
            "free some space, or name a folder on another disk",
        )
