"""The folder that an export writes: complete under its name, or not there.

    OUT.incomplete/            locked by the run that fills it
        journal.jsonl          the settings, then what is written, as the export notes it
        model/                 becomes OUT
        scratch/               files of another program, before they are moved into model/

A file that is filled from front to back is flushed, and the count of its parts noted, by `done`.
One whose tensors come in any order is noted by their hashes, which the next run compares.
"""

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, disk_errors, size
from dstools_converters.files import append_record, recover_log, sync
from dstools_converters.settings import Settings, difference

JOURNAL, MODEL, SCRATCH = "journal.jsonl", "model", "scratch"


class Unfinished:
    """The folder of one export, from its lock to its last rename.

    settings: all that decides which bytes are written.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out = out
        self.settings = dict(settings)
        self.work = out.with_name(f"{out.name}.incomplete")
        self.model = self.work / MODEL
        self.is_published = False  # by an earlier run that was killed before it had cleaned up
        self.records: list[dict[str, Any]] = []  # what earlier runs noted
        self._parts: dict[str, int] = {}  # of files, by earlier runs
        self._names: set[str] = set()  # of files that this run has opened

    def __enter__(self) -> "Unfinished":
        """Take the lock and read the journal.

        Raises DstoolsError where OUT exists, another run is at work, or the journal is of another
        export.
        """
        if os.path.lexists(self.out) and not self.work.is_dir():
            raise self._exists()
        self.work.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.work)
        try:
            self._take_over()
        except BaseException:
            os.close(self.lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._journal)
        os.close(self.lock)

    def _take_over(self) -> None:
        for path in self.work.iterdir():
            if path.name not in (JOURNAL, MODEL, SCRATCH):
                raise DstoolsError(
                    f"{path}: dstools did not write it",
                    "move it; the output is worked on in this folder",
                )
        records = self.records = self._records()
        if records and records[0].get("settings") != self.settings:
            how = difference(records[0].get("settings"), self.settings) or "by another dstools"
            raise DstoolsError(
                f"{self.work}: was begun {how}",
                "finish that run with its own command, or delete the folder",
            )
        if os.path.lexists(self.out):
            self.is_published = {"publish": True} in records and not self.model.exists()
            if not self.is_published:
                if not any(self.work.iterdir()):
                    self.work.rmdir()
                raise self._exists()
        self._parts = {record["file"]: record["parts"] for record in records if "parts" in record}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(self.work / JOURNAL, flags, 0o666)
        if not records:
            self.note({"settings": self.settings})

    def _records(self) -> list[dict[str, Any]]:
        path = self.work / JOURNAL
        if not path.exists():
            return []
        with path.open("r+b") as file:
            return [record for _, record in recover_log(file)]

    def note(self, record: dict[str, Any]) -> None:
        """Append a record to the journal."""
        with disk_errors(self.work / JOURNAL):
            append_record(self._journal, record)

    def require_space(self, nbytes: int) -> None:
        """Raise DstoolsError where the disk does not take `nbytes`, unfinished files included."""
        left = sum(path.stat().st_blocks * 512 for path in self.model.rglob("*"))
        free = shutil.disk_usage(self.work).free + left
        if nbytes > free:
            if not self.model.exists():
                shutil.rmtree(self.work)
            raise DstoolsError(
                f"{self.out}: needs {size(nbytes)}, the disk has {size(free)} free",
                "free some space, or name a folder on another disk",
            )

    def start_over(self) -> Path:
        """Delete what earlier runs have left; return an empty folder for another program's files.

        A program that inherits the descriptor `lock` keeps others out for as long as it runs.
        """
        scratch = self.work / SCRATCH
        for folder in (self.model, scratch):
            if folder.exists():
                shutil.rmtree(folder)
        scratch.mkdir()
        return scratch

    def open(self, name: str, nbytes: int) -> tuple[int, int]:
        """Return a descriptor of a file of this size, and how many of its parts are done."""
        self._names.add(name)
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_there = path.is_file() and path.stat().st_size == nbytes
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with disk_errors(path):
                os.truncate(file, nbytes)
                os.posix_fallocate(file, 0, nbytes)
        except BaseException:
            os.close(file)
            raise
        return file, self._parts.get(name, 0) if is_there else 0

    def done(self, name: str, file: int, parts: int) -> None:
        """Flush a file and record that so many of its parts are written."""
        with disk_errors(self.model / name):
            os.fdatasync(file)
        self.note({"file": name, "parts": parts})

    def take(self, path: Path) -> None:
        """Move a file out of `start_over`'s folder into the one that becomes OUT."""
        sync(path)
        self.model.mkdir(exist_ok=True)
        path.rename(self.model / path.name)
        self._names.add(path.name)

    def publish(self, files: Mapping[str, Path | bytes]) -> None:
        """Write `files`, contents or what to copy, beside those opened; rename the folder to OUT.

        All else in it is of an earlier run with other files, and is removed.
        """
        for path in self._files():
            if path.relative_to(self.model).as_posix() not in self._names:
                path.unlink()
        for name, content in files.items():
            target = self.model / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(target):
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
                sync(target)
        for folder in {self.model, *(path.parent for path in self._files())}:
            sync(folder)
        self.note({"publish": True})
        os.fsync(self._journal)
        self.model.rename(self.out)
        sync(self.out.parent)

    def _files(self) -> list[Path]:
        return [path for path in self.model.rglob("*") if not path.is_dir()]

    def clean_up(self) -> None:
        """Delete the work folder, once OUT has its name."""
        shutil.rmtree(self.work)

    def _exists(self) -> DstoolsError:
        return DstoolsError(f"{self.out}: exists", "name a new folder, or delete this one")


def lock_folder(folder: Path) -> int:
    """Return a descriptor of a folder that holds its lock until it is closed.

    Raises DstoolsError where another run holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DstoolsError(
            f"{folder}: another run is writing it", "wait for it, or stop it"
        ) from error
    return descriptor
