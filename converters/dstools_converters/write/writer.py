"""Write a folder so that it is whole or not there: a journal, a place to work in, one last rename.

    OUT.incomplete/            locked by the run that fills it
        journal.jsonl          the plan's digest, then a line for whatever is done
        calibration/           what a calibration goes on from, deleted in the end
        model/                 becomes OUT
            x.safetensors.partial -> x.safetensors

Killed anywhere, the next run with the same plan goes on from the journal. A line is written after the
bytes that it speaks of; the page cache outlives the process, but not the machine:

    line                      says                            holds until
    {"plan": fingerprint}     whose work this is              for good; another plan is refused
    {"boot": id}              the lines below are of that run of the machine
    {"job": [shard, number]}  those bytes are written         a restart, or "opened"
        with "note": {...}    what there is to say of them    as long as the job does
    {"layer": number, ...}    what was seen in that layer     a restart, or another such line
    {"flushed": [shards]}     all the above is on the disk    "opened"
    {"written": shard}        all its jobs, and it has its name   a restart, or "opened"
    {"synced": shard}         it is on the disk               "opened"
    {"opened": shard}         it begins anew, what was said before is void
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.errors import RESUME_HINT, DstoolsError, disk_errors
from dstools_converters.files import append_record, recover_log, sync
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import LayerNote
from dstools_converters.write.metadata import read_back

Files = dict[str, Path | bytes]  # beside the shards, by path in the folder
Notes = dict[tuple[int, int], dict[str, Any]]  # (shard, job) -> what there is to say of it

JOURNAL = "journal.jsonl"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Writer:
    """The folder of one plan, from its lock to its last rename."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        files: Callable[["Writer"], Files],
        fingerprint: str,
        *,
        is_synced: bool,
    ) -> None:
        self.plan = plan
        self.fingerprint = fingerprint  # of all that decides which job writes which bytes
        self.files = files  # asked for when all jobs are done, of which some may have notes
        self.out = out
        self.work = out.with_name(out.name + ".incomplete")
        self.model = self.work / "model"
        self.calibration = self.work / "calibration"
        self.is_synced = is_synced
        self.is_published = False  # by an earlier run that was killed before it had cleaned up
        self.finished: set[int] = set()  # numbers of shards
        self.jobs: dict[int, set[int]] = {}  # shard -> numbers of jobs, of shards not finished
        self.notes: Notes = {}
        self.layers: dict[int, LayerNote] = {}  # what a calibration saw in each
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
        for path in self.work.iterdir():
            if path.name not in (JOURNAL, self.model.name, self.calibration.name):
                raise DstoolsError(
                    f"{path}: is not of dstools", "move it; the output is worked on in this folder"
                )
        records = []
        if (self.work / JOURNAL).exists():
            with (self.work / JOURNAL).open("r+b") as journal:
                records = [record for _, record in recover_log(journal)]
        if records and records[0].get("plan") != self.fingerprint:
            raise DstoolsError(
                f"{self.work}: was begun from another source, with other options or another dstools",
                "finish that run with its own command, or delete the folder",
            )
        if os.path.lexists(self.out):
            self.notes = {tuple(r["job"]): r["note"] for r in records if "note" in r and "job" in r}
            self.layers = {r["layer"]: LayerNote(**r["note"]) for r in records if "layer" in r}
            if not records:  # killed between the journal's end and that of its folder
                notes, self.layers = read_back(self.out, self.plan)
                self.notes = {(0, number): note for number, note in enumerate(notes)}
            if self.model.exists() or not self._is_published():
                raise self._exists()
            self.is_published = True
        else:
            self._take_back(records)
            self._read_progress(records)
            for number, shard in enumerate(self.plan.shards):
                if number not in self.finished:  # whole to look at, but lost in a power failure
                    (self.model / shard.name).unlink(missing_ok=True)
            self._check_space()
            self.model.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(self.work / JOURNAL, flags, 0o666)
        if not records:
            self._record({"plan": self.fingerprint})
        self._record({"boot": _boot()})
        for number in sorted(self._unsynced):
            self._sync_later(number)

    def _take_back(self, records: list[dict[str, Any]]) -> None:
        """Give a shard its working name back where no line says that it is finished.

        It was renamed, and the run was killed before the line was written, or the machine before the
        shard was on the disk. What was flushed of its jobs holds all the same.
        """
        named = {record.get("written", record.get("synced")) for record in records}
        is_this_boot = bool(records) and _last_boot(records) == _boot()
        synced = {record["synced"] for record in records if "synced" in record}
        for number, shard in enumerate(self.plan.shards):
            path = self.model / shard.name
            if path.is_file() and number not in (named if is_this_boot else synced):
                path.rename(self.model / f"{shard.name}.partial")

    def _read_progress(self, records: list[dict[str, Any]]) -> None:
        """Take from the journal what still holds: nothing that a file does not look like."""
        synced: set[int] = set()
        before: dict[int, set[int]] = {}  # jobs of another run of the machine, not yet flushed
        layers: dict[int, LayerNote] = {}  # the same of layers
        boot = None
        for record in records:
            if "boot" in record and record["boot"] != boot:
                boot = record["boot"]
                before, layers = {}, {}
            elif "opened" in record:  # laid out anew: what was said of it before is void
                number = record["opened"]
                self.jobs.pop(number, None)
                before.pop(number, None)
                self.finished.discard(number)
                synced.discard(number)
            elif "synced" in record:
                synced.add(record["synced"])
                self.finished.add(record["synced"])
            elif "written" in record and boot == _boot():
                self.finished.add(record["written"])
            elif "job" in record:
                number, job = record["job"]
                before.setdefault(number, set()).add(job)
                if "note" in record:
                    self.notes[number, job] = record["note"]
            elif "layer" in record:
                layers[record["layer"]] = LayerNote(**record["note"])
            elif "flushed" in record:
                for number in record["flushed"]:
                    self.jobs.setdefault(number, set()).update(before.pop(number, set()))
                self.layers.update(layers)
        if boot == _boot():
            self.layers.update(layers)
            for number, jobs in before.items():
                self.jobs.setdefault(number, set()).update(jobs)
        for number, shard in enumerate(self.plan.shards):
            if not self._is_laid_out(number, shard.name):
                self.finished.discard(number)
            if number in self.finished or not self._is_laid_out(number, f"{shard.name}.partial"):
                self.jobs.pop(number, None)
        self._unsynced = self.finished - synced
        self.notes = {
            (number, job): note
            for (number, job), note in self.notes.items()
            if number in self.finished or job in self.jobs.get(number, ())
        }

    def _is_published(self) -> bool:
        """Tell whether OUT is this plan's: then a run was killed while it cleaned up."""
        files = self.files(self)
        made = {name: content for name, content in files.items() if isinstance(content, bytes)}
        try:
            return all((self.out / name).read_bytes() == made[name] for name in made)
        except OSError:
            return False

    def _is_laid_out(self, number: int, name: str) -> bool:
        """Tell whether a file has the size and the header of a shard."""
        path, shard = self.model / name, self.plan.shards[number]
        if not path.is_file() or path.stat().st_size != shard.nbytes:
            return False
        with path.open("rb") as file:
            return file.read(len(shard.header)) == shard.header

    def _check_space(self) -> None:
        needed = self.plan.scratch_bytes + sum(
            shard.nbytes for i, shard in enumerate(self.plan.shards) if i not in self.finished
        )
        for content in self.files(self).values():
            needed += len(content) if isinstance(content, bytes) else content.stat().st_size
        # what a killed run left of unfinished shards is used again
        left = sum(path.stat().st_blocks * 512 for path in self.model.glob("*.partial"))
        free = shutil.disk_usage(self.work).free + left
        if needed > free:
            if not any(self.work.iterdir()):
                self.work.rmdir()
            raise DstoolsError(
                f"{self.out}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
                "free some space, or name a folder on another disk",
            )

    def open(self, number: int) -> int:
        """Return a descriptor of a shard's file, its header written and its space taken."""
        if number in self._files:
            return self._files[number]
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

    def job_done(self, number: int, job: int, note: dict[str, Any] | None = None) -> None:
        """Note that the bytes of a job are written, and what there is to say of them."""
        self._record({"job": [number, job]} | ({"note": note} if note is not None else {}))
        self.jobs.setdefault(number, set()).add(job)
        if note is not None:
            self.notes[number, job] = note

    def layer_done(self, layer: int, note: LayerNote) -> None:
        """Note what was seen in a layer, and that it and all jobs until now outlive the machine."""
        self._record({"layer": layer, "note": note._asdict()})
        self.layers[layer] = note
        if self.is_synced:
            for file in self._files.values():
                os.fsync(file)
            self._record({"flushed": sorted(self._files)})
            os.fsync(self._journal)
        while self._files:  # the shards of all layers may be more than files may be open
            os.close(self._files.popitem()[1])

    def shard_done(self, number: int) -> None:
        """Note that all jobs of a shard are done, and flush it in the background.

        Raises DstoolsError where an earlier flush has failed.
        """
        for flush in self._syncs:
            if flush.done():
                flush.result()
        name = self.plan.shards[number].name
        (self.model / f"{name}.partial").rename(self.model / name)
        self._record({"written": number})
        os.close(self._files.pop(number))
        self._sync_later(number)

    def _sync_later(self, number: int) -> None:
        if self.is_synced:
            self._syncs.append(self._syncer.submit(self._sync_shard, number))

    def _sync_shard(self, number: int) -> None:
        path = self.model / self.plan.shards[number].name
        try:
            sync(path)
            sync(self.model)
        except OSError as error:
            # the next fsync would succeed, though the pages are lost: the shard is to be made again
            self._record({"opened": number})
            raise DstoolsError(
                f"{path}: the disk did not take it ({error.strerror})",
                f"is the disk sound? then {RESUME_HINT}",
            ) from error
        self._record({"synced": number})
        os.fsync(self._journal)

    def publish(self) -> None:
        """Add the other files, the index last, and give the folder its name."""
        for flush in self._syncs:
            flush.result()
        folders = {self.model}
        files = self.files(self)
        for name in sorted(files, key=lambda name: (name == INDEX, name)):
            target = self.model / name
            target.parent.mkdir(parents=True, exist_ok=True)
            folders |= {parent for parent in target.parents if self.model in parent.parents}
            content = files[name]
            with disk_errors(target):
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
                if self.is_synced:
                    sync(target)
        if self.is_synced:
            for folder in folders:
                sync(folder)
        self.model.rename(self.out)
        if self.is_synced:
            sync(self.out.parent)

    def clean_up(self) -> None:
        """Remove what is left of the work after OUT has its name."""
        shutil.rmtree(self.calibration, ignore_errors=True)
        (self.work / JOURNAL).unlink(missing_ok=True)
        self.work.rmdir()

    def _record(self, line: dict[str, Any]) -> None:
        """Append a line to the journal; one that is cut short is taken off by the next run."""
        with disk_errors(self.work / JOURNAL):
            append_record(self._journal, line)


def _last_boot(records: list[dict[str, Any]]) -> str | None:
    boots = [record["boot"] for record in records if "boot" in record]
    return boots[-1] if boots else None


def _boot() -> str:
    """Name this run of the machine; another one has lost its page cache."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else uuid4().hex
