"""The folders of the Hub's cache: models--ORG--NAME/snapshots/COMMIT, of links into blobs/.

What came over Xet is a link in blobs/, too, into a store that all repositories share.
Source: huggingface_hub 2.4, file_download.py (repo_folder_name) and utils/_shared_blobs.py; a name
on the Hub has no "--".
"""

import re
from pathlib import Path
from typing import NamedTuple

from dstools_converters.files import real

REPOSITORY = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
XET_HASH = re.compile(r"[0-9a-f]{64}")


class Snapshot(NamedTuple):
    """A commit of a repository on the Hub."""

    repository: str  # org/name
    commit: str  # 40 hexadecimal digits


def snapshot_of(folder: Path) -> Snapshot | None:
    """Return what a folder of the Hub's cache is a snapshot of, None for any other folder."""
    folder = real(folder)
    repository = REPOSITORY.fullmatch(folder.parent.parent.name)
    if folder.parent.name != "snapshots" or not repository or not COMMIT.fullmatch(folder.name):
        return None
    return Snapshot("/".join(repository.groups()), folder.name)


def blob_of(path: Path, folder: Path) -> Path | None:
    """Return the entry of blobs/ that a link of a snapshot leads to, None for any other path.

    Its name is the file's hash. It is the file, or a link to it in the shared store.
    """
    if not path.is_symlink():
        return None
    first = path.parent / path.readlink()
    blob = real(first.parent) / first.name
    repository = real(folder).parent.parent
    if blob.parent != repository / "blobs":
        return None
    target = real(blob)
    shared = repository.parent / "blobs" / target.name[:2]
    is_shared = target.parent == shared and XET_HASH.fullmatch(target.name)
    return blob if target == blob or is_shared else None
