"""The folder that a conversion writes: complete under its name, or not there.

    OUT.incomplete/            locked by the run that fills it
        journal.jsonl          what is done; see journal.py
        calibration/           what a calibration resumes from, deleted at the end
        model/                 becomes OUT
            x.safetensors.partial -> x.safetensors

After a kill at any moment, the next run of the same plan resumes from the journal.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.errors import RESUME_HINT, DstoolsError, disk_errors, size
from dstools_converters.files import sync
from dstools_converters.plan.plan import Plan
from dstools_converters.settings import difference
from dstools_converters.sidefiles.calibration import LayerNote
from dstools_converters.sidefiles.signature import Sign
from dstools_converters.sidefiles.sums import SIGNATURE, SUMS, format_sums, sha256_of, sums_of
from dstools_converters.write.journal import JOURNAL, Journal, Note, Notes, begun_by
from dstools_converters.write.metadata import read_back

MODEL, CALIBRATION = "model", "calibration"  # folders in OUT.incomplete
Files = dict[str, Path | bytes]  # beside the shards, by path in the folder
HASHERS = 2  # threads; one hashes about as fast as a disk writes
LAST = (INDEX, "config.json")  # written last: no folder loads as a model without them


class _StoppedError(Exception):
    """A run is being stopped."""


class Writer:
    """The folder of one plan, from its lock to its last rename."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        files: Callable[["Writer"], Files],
        fingerprint: Note,
        *,
        is_synced: bool,
        writes_sums: bool,
        sign: Sign | None,
    ) -> None:
        self.plan = plan
        self.fingerprint = fingerprint  # of all that decides which job writes which bytes
        self.files = files  # called when all jobs, and so their notes, are done
        self.out = out
        self.work = work_folder(out)
        self.model = self.work / MODEL
        self.calibration = self.work / CALIBRATION
        self.is_synced = is_synced
        self.writes_sums = writes_sums  # SHA256SUMS is written
        self.sign = sign  # called when the folder it gets has all other files
        self.is_stopped = False  # set to end what takes long
        self.is_published = False  # by an earlier run that was killed before it had cleaned up
        self.finished: set[int] = set()  # numbers of shards
        self.sha256: dict[int, str] = {}  # of the shards that this run has hashed
        self.earlier_sha256: dict[int, str] = {}  # of finished shards, by earlier runs
        self.jobs: dict[int, set[int]] = {}  # shard -> numbers of jobs, of shards not finished
        self.notes: Notes = {}
        self.layers: dict[int, LayerNote] = {}  # what a calibration saw in each
        self._files: dict[int, int] = {}  # shard -> descriptor, of shards being filled
        self._syncer = ThreadPoolExecutor(1, "fsync")
        self._syncs: list[Future[None]] = []
        self._hasher = ThreadPoolExecutor(HASHERS, "sha256")
        self._hashes: list[Future[None]] = []

    def __enter__(self) -> "Writer":
        """Take the lock and read the journal.

        Raises DstoolsError where OUT exists, another run is at work, the journal is of another
        plan, or the disk is too small.
        """
        if os.path.lexists(self.out) and not self.work.is_dir():
            raise _exists(self.out)
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _require_own(self.work, self._lock, self.fingerprint, fcntl.LOCK_EX)
            self._journal = Journal(self.work / JOURNAL)
            unsynced = self._resume()
            self._journal.begin(self.fingerprint)
        except BaseException:
            os.close(self._lock)
            raise
        for number in sorted(unsynced):
            self._sync_later(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_stopped = self.is_stopped or kind is not None
        for pool in (self._hasher, self._syncer):
            pool.shutdown(cancel_futures=kind is not None)
        for file in self._files.values():
            os.close(file)
        self._journal.close()
        os.close(self._lock)

    def _resume(self) -> set[int]:
        """Take over what earlier runs did; return the finished shards that are not flushed."""
        journal = self._journal
        if os.path.lexists(self.out):
            self._recognize_published()
            return set()
        named = journal.named()
        for number, shard in enumerate(self.plan.shards):
            path = self.model / shard.name
            if number not in named and path.is_file():
                # killed before it was recorded as written, or the machine before it was on disk;
                # what was flushed of its jobs counts all the same
                path.rename(self.model / f"{shard.name}.partial")
        unsynced = self._read_progress()
        for number, shard in enumerate(self.plan.shards):
            if number not in self.finished:  # complete by name, but lost in a power failure
                (self.model / shard.name).unlink(missing_ok=True)
        self._check_space()
        self.model.mkdir(exist_ok=True)
        return unsynced

    def _recognize_published(self) -> None:
        """Raise DstoolsError where OUT is not this plan's: else a run was killed cleaning up."""
        self.notes, self.layers = self._journal.all_notes()
        if not self._journal.records:  # killed after deleting the journal, before its folder
            notes, self.layers = read_back(self.out, self.plan)
            self.notes = {(0, number): note for number, note in enumerate(notes)}
        files = self.files(self)
        written = {name: content for name, content in files.items() if isinstance(content, bytes)}
        try:
            is_same = all((self.out / name).read_bytes() == written[name] for name in written)
        except OSError:
            is_same = False
        is_same &= (self.out / SUMS).exists() == self.writes_sums
        is_same &= (self.out / SIGNATURE).exists() == (self.sign is not None)
        if self.model.exists() or not is_same:
            raise _exists(self.out)
        self.is_published = True

    def _read_progress(self) -> set[int]:
        """Keep what the journal records and the files confirm; return shards not flushed."""
        done = self._journal.done()
        for number, shard in enumerate(self.plan.shards):
            if not self._is_laid_out(number, shard.name):
                done.finished.discard(number)
            if number in done.finished or not self._is_laid_out(number, f"{shard.name}.partial"):
                done.jobs.pop(number, None)
        self.finished, self.jobs, self.layers = done.finished, done.jobs, done.layers
        self.earlier_sha256 = {n: done.sha256[n] for n in done.finished & done.sha256.keys()}
        self.notes = {
            (number, job): note
            for (number, job), note in done.notes.items()
            if number in self.finished or job in self.jobs.get(number, ())
        }
        return self.finished - done.synced

    def _is_laid_out(self, number: int, name: str) -> bool:
        """Return whether a file has the size and the header of a shard."""
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
        # the space of unfinished shards is used again
        left = sum(path.stat().st_blocks * 512 for path in self.model.glob("*.partial"))
        free = shutil.disk_usage(self.work).free + left
        if needed > free:
            if not any(self.work.iterdir()):
                self.work.rmdir()
            raise DstoolsError(
                f"{self.out}: needs {size(needed)}, the disk has {size(free)} free",
                "free some space, or name a folder on another disk",
            )

    def open(self, number: int) -> int:
        """Return a descriptor of a shard's file, its header written and its space allocated."""
        if number in self._files:
            return self._files[number]
        shard = self.plan.shards[number]
        partial = self.model / f"{shard.name}.partial"
        is_new = not self.jobs.get(number)
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if is_new else 0)
        file = self._files[number] = os.open(partial, flags, 0o666)
        if is_new:
            self._journal.opened(number)
        with disk_errors(partial):
            os.posix_fallocate(file, 0, shard.nbytes)
            os.pwrite(file, shard.header, 0)
        return file

    def job_done(self, number: int, job: int, note: Note | None = None) -> None:
        """Record that the bytes of a job are written, with its note."""
        self._journal.job(number, job, note)
        self.jobs.setdefault(number, set()).add(job)
        if note is not None:
            self.notes[number, job] = note

    def layer_done(self, layer: int, note: LayerNote) -> None:
        """Record what was seen in a layer; flush it and all jobs until now."""
        self._journal.layer(layer, note)
        self.layers[layer] = note
        if self.is_synced:
            for file in self._files.values():
                os.fsync(file)
            self._journal.flushed(self._files)
            self._journal.sync()
        while self._files:  # the shards of all layers may be more than files may be open
            os.close(self._files.popitem()[1])

    def shard_done(self, number: int) -> None:
        """Record that all jobs of a shard are done; flush and hash it in the background.

        The hash is of the file as it is in the page cache, while the disk takes it. Raises
        DstoolsError where an earlier flush has failed.
        """
        for flush in self._syncs:
            if flush.done():
                flush.result()
        name = self.plan.shards[number].name
        (self.model / f"{name}.partial").rename(self.model / name)
        self._journal.written(number)
        os.close(self._files.pop(number))
        self._sync_later(number)
        if self.writes_sums:  # workers that hashed would leave the disk idle
            self._hashes.append(self._hasher.submit(self._hash, number))

    def _hash(self, number: int) -> None:
        """Hash a shard and record it; leave it to `publish` if the run is being stopped."""

        def go_on(nbytes: int) -> None:
            if self.is_stopped:
                raise _StoppedError

        try:
            digest = sha256_of(self.model / self.plan.shards[number].name, go_on)
        except _StoppedError:
            return
        self.sha256[number] = digest
        self._journal.hashed(number, self.sha256[number])

    def _sync_later(self, number: int) -> None:
        if self.is_synced:
            self._syncs.append(self._syncer.submit(self._sync_shard, number))

    def _sync_shard(self, number: int) -> None:
        path = self.model / self.plan.shards[number].name
        try:
            sync(path)
            sync(self.model)
        except OSError as error:
            # a second fsync would succeed, though the pages are lost: the shard is made again
            self._journal.opened(number)
            raise DstoolsError(
                f"{path}: the disk did not take it ({error.strerror})",
                f"check the disk; then {RESUME_HINT}",
            ) from error
        self._journal.synced(number)
        self._journal.sync()

    def publish(self, workers: int) -> None:
        """Write the side files, those of LAST at the end; sign; rename the folder to OUT."""
        for done in (*self._syncs, *self._hashes):
            done.result()
        self._remove_side_files()
        folders = {self.model}
        files = self.files(self)
        if self.writes_sums:
            files[SUMS] = self._sums(files, workers)
        for name in sorted(files, key=lambda name: (*(name == last for last in LAST), name)):
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
        if self.sign is not None:
            with disk_errors(self.model / SIGNATURE):
                self.sign(self.model)
                if self.is_synced:
                    sync(self.model / SIGNATURE)
        if self.is_synced:
            for folder in folders:
                sync(folder)
        self.model.rename(self.out)
        if self.is_synced:
            sync(self.out.parent)

    def _remove_side_files(self) -> None:
        """Remove all but shards: side files of an earlier run, with other options or inputs."""
        shards = {shard.name for shard in self.plan.shards}
        for path in self.model.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in shards:
                path.unlink()

    def _sums(self, files: Files, workers: int) -> bytes:
        """Return SHA256SUMS; `workers` threads read the shards of earlier runs.

        Raises DstoolsError where one has changed since; the next run makes it again.
        """
        names = [shard.name for shard in self.plan.shards]
        digests = {names[number]: digest for number, digest in self.sha256.items()}
        unread = [self.model / name for name in names if name not in digests]
        digests |= {path.name: digest for path, digest in sums_of(unread, workers).items()}
        for number, digest in self.earlier_sha256.items():
            if digests[names[number]] != digest:
                self._journal.opened(number)
                raise DstoolsError(
                    f"{self.model / names[number]}: has changed since an earlier run wrote it",
                    f"check the disk; then {RESUME_HINT}",
                )
        for name, content in files.items():
            if isinstance(content, bytes):
                digests[name] = sha256(content).hexdigest()
            else:
                digests[name] = sha256_of(content)
        return format_sums(digests)

    def clean_up(self) -> None:
        """Delete the work folder, once OUT has its name."""
        shutil.rmtree(self.calibration, ignore_errors=True)
        (self.work / JOURNAL).unlink(missing_ok=True)
        self.work.rmdir()


def work_folder(out: Path) -> Path:
    """Return the folder in which OUT is worked on."""
    return out.with_name(f"{out.name}.incomplete")


def require_own_work(out: Path, fingerprint: Note) -> None:
    """Raise DstoolsError where a run of this fingerprint would refuse OUT.incomplete as it is now.

    Nothing is written.
    """
    work = work_folder(out)
    if not work.is_dir():
        return
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _require_own(work, descriptor, fingerprint, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    if os.path.lexists(out) and ((work / MODEL).exists() or not (work / JOURNAL).exists()):
        raise _exists(out)


def _require_own(work: Path, descriptor: int, fingerprint: Note, lock: int) -> None:
    """Lock a work folder; raise DstoolsError where it is another run's or has files of others."""
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except OSError as error:
        message = f"{work}: another run is writing it"
        raise DstoolsError(message, "wait for it, or stop it") from error
    for path in work.iterdir():
        if path.name not in (JOURNAL, MODEL, CALIBRATION):
            raise DstoolsError(
                f"{path}: dstools did not write it",
                "move it; the output is worked on in this folder",
            )
    begun = begun_by(work / JOURNAL)
    if begun not in (None, fingerprint):
        settings = begun.get("settings")  # an older dstools did not write them
        other = "with another recipe" if settings else "by an older dstools"
        how = difference(settings, fingerprint["settings"]) or other
        raise DstoolsError(
            f"{work}: was begun {how}", "finish that run with its own command, or delete the folder"
        )


def _exists(out: Path) -> DstoolsError:
    return DstoolsError(f"{out}: exists", "name a new folder, or delete this one")
