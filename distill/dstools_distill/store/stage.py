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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, disk_errors
from dstools_converters.files import sync, write_synced
from dstools_distill.store.ranks import LOCKED, rank

Report = dict[str, Any]  # what a stage says of itself: JSON, the same bytes for the same inputs
MANIFEST, TIMING, JOURNAL = "manifest.json", "timing.json", "journal.jsonl"
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
