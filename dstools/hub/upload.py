"""Uploading files to a branch or a pull request: contents first, then commits of them."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.utils import disable_progress_bars

from dstools.hub.client import AGAIN, Hub
from dstools.hub.remote import read_tree
from dstools.options import progress_line
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.verify.hashes import Blob

COMMIT_FILES = 100  # the Hub's advice; docs/hub/storage-limits
IO = Path("/proc/self/io")
LOOK_SECONDS = 0.5
STALLED_SECONDS = 180
STALLED = (
    "no byte was read for 3 minutes: the network or the Hub is slow. Ctrl-C and the same command "
    "continue with what is already there; HF_HUB_DISABLE_XET=1 uploads over plain HTTPS"
)


class Addition(NamedTuple):
    """A file to upload."""

    content: Path | bytes
    blob: Blob
    stamp: tuple[int, int, int] | None = None  # of a file, when it had been checked

    @classmethod
    def of(cls, path: Path, blob: Blob) -> "Addition":
        """Return the addition of a file that was checked just now."""
        return cls(path, blob, _stamp(path))

    def require_unchanged(self, name: str) -> None:
        """Raise DstoolsError if somebody has written to the file, or removed it."""
        if isinstance(self.content, Path) and self.stamp != _stamp(self.content):
            raise _changed(name)

    def operation(self, name: str, uses_xet: bool) -> CommitOperationAdd:
        """Return the client's record of it.

        Over LFS with the hash that is known, which the Hub holds the content to. Xet takes a hash
        on trust, so there the client makes one of what it reads, and `require_same` compares.
        """
        operation = CommitOperationAdd(name, self.content)
        if not uses_xet:
            operation.upload_info.sha256 = bytes.fromhex(self.blob.sha256 or "")
        return operation

    def require_same(self, operation: CommitOperationAdd) -> None:
        """Raise DstoolsError unless what was uploaded is what was checked before."""
        if operation.upload_info.sha256.hex() != self.blob.sha256:
            raise _changed(operation.path_in_repo)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file: size, time, inode; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _changed(name: str) -> DstoolsError:
    message = f"{printable(name)}: changed while it was uploaded"
    return DstoolsError(message, f"let nothing write into the folder; {AGAIN}")


def upload(
    hub: Hub,
    additions: Mapping[str, Addition],
    deletions: Sequence[str],
    *,
    revision: str,
    message: str,
    parent: str | None,
    progress: Progress,
) -> None:
    """Upload files and delete others, in commits of COMMIT_FILES files.

    With `parent`, in one commit, which the Hub refuses unless the revision is still at that commit.
    `progress` gets the bytes that were read. What the Hub has of them is not sent again.
    Raises DstoolsError where the Hub refuses something, or does not answer for long.
    """
    disable_progress_bars()
    keep_stdout_clean()
    names = sorted(additions)
    step = len(names) if parent else COMMIT_FILES
    batches = [names[start : start + step] for start in range(0, len(names), step or 1)] or [[]]
    for number, batch in enumerate(batches):
        chosen = {name: additions[name] for name in batch}
        deleted = list(deletions) if number == len(batches) - 1 else []
        numbered = f"{message} ({number + 1} of {len(batches)})" if batches[1:] else message
        try:
            operations = _send(hub, chosen, revision, progress)
            _commit(hub, operations, chosen, deleted, revision, numbered, parent)
        except (DstoolsError, OSError, ValueError):
            for name, addition in chosen.items():
                addition.require_unchanged(name)
            raise


def keep_stdout_clean() -> None:
    """Give up hf_xet's log where its folder cannot be written to: it would go to stdout."""
    folder = Path(constants.HF_HOME) / "xet" / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)


def _send(
    hub: Hub, chosen: Mapping[str, Addition], revision: str, progress: Progress
) -> list[CommitOperationAdd]:
    """Send the contents of the files of a commit; return what it is to add."""
    operations = [addition.operation(name, hub.uses_xet) for name, addition in chosen.items()]
    with _meter(sum(addition.blob.nbytes for addition in chosen.values()), progress):
        for start in range(0, len(operations), COMMIT_FILES):
            hub.call(
                f"upload to {hub.repo}",
                hub.api.preupload_lfs_files,
                hub.repo,
                operations[start : start + COMMIT_FILES],
                revision=revision,
                free_memory=False,
                gitignore_content="",  # otherwise that of the repository makes it skip files
            )
    for operation in operations:
        chosen[operation.path_in_repo].require_same(operation)
    return operations


def _commit(
    hub: Hub,
    additions: list[CommitOperationAdd],
    blobs: Mapping[str, Addition],
    deletions: list[str],
    revision: str,
    message: str,
    parent: str | None,
) -> None:
    """Make one commit, and read the repository before it is tried again."""

    def commit() -> None:
        hub.api.create_commit(
            hub.repo,
            [*additions, *map(CommitOperationDelete, deletions)],
            commit_message=message,
            revision=revision,
            parent_commit=parent,
        )

    def is_there() -> bool:
        tree = read_tree(hub, revision)
        return not tree.keys() & set(deletions) and all(
            name in tree and addition.blob.equals(tree[name]) for name, addition in blobs.items()
        )

    hub.change(f"commit to {hub.repo}", commit, is_there)


@contextmanager
def _meter(nbytes: int, progress: Progress) -> Iterator[None]:
    """Report the bytes that this process reads as progress, `nbytes` in all.

    The client reports none of its own that is common to LFS and Xet. Files that the Hub has already
    are not read; they count at the end.
    """
    done = 0
    ended = threading.Event()

    def advance(until: int) -> None:
        nonlocal done
        step = min(until, nbytes) - done
        if step > 0:
            progress(step)
            done += step

    def look() -> None:
        start = last = _bytes_read()
        moved_at, is_said = time.monotonic(), False
        while not ended.wait(LOOK_SECONDS):
            read = _bytes_read()
            advance(read - start)
            if read > last:  # a second attempt reads, too, and is no progress
                last, moved_at, is_said = read, time.monotonic(), False
            elif time.monotonic() - moved_at > STALLED_SECONDS and not is_said:
                progress_line(STALLED)
                is_said = True

    thread = threading.Thread(target=look, name="meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    advance(nbytes)


def _bytes_read() -> int:
    """Return how many bytes this process has read; 0 where the system does not say."""
    try:
        return int(IO.read_text().split("rchar:")[1].split()[0])
    except (OSError, IndexError):
        return 0
