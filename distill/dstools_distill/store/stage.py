"""Stages as pure functions from folders to a folder, each named by what decides its bytes.

    OUT/store/verify-1a2b3c4d5e6f/   records.jsonl ... manifest.json

The name of the folder holds a digest of the stage's settings, of its inputs by content, and of the
versions of the code. A finished folder never changes: the same recipe finds it again, another one
makes another folder. An unfinished folder is called `.incomplete`, and the next run resumes in it.
"""

import fcntl
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dstools_converters.errors import DISTRIBUTION, DstoolsError, disk_errors
from dstools_converters.files import real, sync, write_synced
from dstools_distill.store.ranks import LOCKED, rank

Report = dict[str, Any]  # a stage's counts: JSON, the same bytes for the same inputs
MANIFEST, TIMING, JOURNAL = "manifest.json", "timing.json", "journal.jsonl"
WHOLE_BYTES = 64 << 20  # larger files of a model are identified by size and pieces all over them:
SPREAD, SPREAD_BYTES = 1024, 4096  # a weight that takes a hundredth of the file holds ten
# from a total and what is counted to a function that adds to the progress
Bar = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]


def no_bar(_total: int, _what: str) -> AbstractContextManager[Callable[[int], object]]:
    """Show no progress."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Work:
    """The folder that a stage writes, and how it works, which changes no byte."""

    folder: Path  # with the files of an interrupted run
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
    parts: dict[str, Any]  # JSON

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        key = sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()
        return f"{self.stage}-{key[:12]}"


def identify(
    stage: str,
    revision: int,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    packages: tuple[str, ...],
) -> Identity:
    """Return the identity of a stage's result.

    revision: of the stage's code, raised when it gives other bytes for the same inputs;
    settings: JSON; inputs: the files and folders that it reads, by name; packages: distributions
    whose versions may change the bytes.
    """
    parts = {
        "stage": stage,
        "revision": revision,
        "settings": settings,
        "inputs": {name: digest(path) for name, path in sorted(inputs.items())},
        "versions": {name: version(name) for name in packages},
    }
    return Identity(stage, parts)


def find(store: Path, identity: Identity) -> Done | None:
    """Return the finished stage, or None.

    Raises DstoolsError if its files are not as it left them; see `require_whole`.
    """
    folder = store / identity.name
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if "report" not in manifest:
        raise DstoolsError(
            f"{folder / MANIFEST}: is not the manifest of a finished stage",
            f"delete {folder}; the next run makes it again",
        )
    require_whole(folder, manifest)
    return Done(identity.stage, folder, manifest["report"], is_reused=True)


def run_stage(
    store: Path, identity: Identity, body: Callable[[Work], Report], work: Callable[[Path], Work]
) -> Done:
    """Return a finished stage, made by `body` unless it is in the store.

    In a launched process with a rank other than 0 only `body` runs: rank 0 alone makes folders.
    """
    if finished := find(store, identity):
        return finished
    done = store / identity.name
    partial = store / f"{identity.name}.incomplete"
    if rank() > 0:
        return Done(identity.stage, done, body(work(partial)), is_reused=False)
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        started, cpu = time.monotonic(), cpu_seconds()
        report = body(work(partial))
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": cpu_seconds() - cpu}
        (partial / TIMING).write_text(json.dumps(spent) + "\n")  # of the last run only
        (partial / JOURNAL).unlink(missing_ok=True)
        manifest = identity.parts | {"dstools": version(DISTRIBUTION)}
        manifest |= {"outputs": outputs(partial), "report": report}
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_synced(partial / MANIFEST, text.encode())
        partial.rename(done)
        sync(store)
    return Done(identity.stage, done, report, is_reused=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished stage."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise DstoolsError(
            f"{folder / MANIFEST}: cannot be read: {error}", "name the folder of a finished stage"
        ) from None
    return manifest


def require_whole(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DstoolsError for a file of a finished stage that is missing or was changed.

    Files over 64 MiB are compared by their size alone.
    """
    for name, wanted in manifest["outputs"].items():
        path = real(folder) / name
        fault = "is missing"
        if path.is_file():
            size = path.stat().st_size
            is_same = size > WHOLE_BYTES or file_sha256(path) == wanted["sha256"]
            if size == wanted["bytes"] and is_same:
                continue
            fault = f"was changed after {manifest['stage']} wrote it"
        hint = f"put it back, or delete {real(folder)}; the next run makes it again"
        raise DstoolsError(f"{path}: {fault}", hint)


def outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file of a stage's result, by its path in the folder."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, TIMING)
    }


def digest(path: Path) -> str:
    """Return a digest of an input's content, wherever it is.

    Of a finished stage, its outputs, which must be as it left them; of a file, its sha256; of
    another folder, the names and contents of its files; one over 64 MiB counts by its size and 1024
    evenly spread pieces.
    """
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise DstoolsError(f"{path}: no such file or folder", "is the path right?")
    if (path / MANIFEST).exists() and "stage" in (manifest := read_manifest(path)):
        require_whole(path, manifest)
        content = json.dumps(manifest["outputs"], sort_keys=True)
    else:
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != ".")
        content = json.dumps([[file.name, _sampled_sha256(file)] for file in files])
    return sha256(content.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_sha256(path)
    content = sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SPREAD):
            file.seek(number * (size - SPREAD_BYTES) // (SPREAD - 1))
            content.update(file.read(SPREAD_BYTES))
    return content.hexdigest()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a folder; launched processes share that of the process that started them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = None if LOCKED in os.environ or rank() > 0 else (out / ".lock").open("w")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DstoolsError(f"{out}: cannot be written: {reason}", "name another --out") from error
    if lock is None:
        yield
        return
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DstoolsError(
                f"{out}: another run works in it", "wait for it, or choose another --out"
            ) from None
        os.set_inheritable(file.fileno(), True)  # processes that a launcher starts hold it, too
        yield


def cpu_seconds() -> float:
    """Return the user and system time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
