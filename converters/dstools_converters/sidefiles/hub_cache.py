"""The folders of the Hub's cache: models--ORG--NAME/snapshots/COMMIT, of links into blobs/.

Source: huggingface_hub 2.4, file_download.py (repo_folder_name); a name on the Hub has no "--".
"""

import re
from pathlib import Path
from typing import NamedTuple

from dstools_converters.files import real

REPOSITORY = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


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


def blobs_of(folder: Path) -> Path:
    """Return where the links of `folder` lead to if it is a snapshot; it may not exist."""
    return real(folder).parent.parent / "blobs"
