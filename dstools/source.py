"""Resolving a SOURCE to a folder, local or in the Hub's cache, and opening its checkpoint."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dstools.options import warn
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.checkpoint.folder import Checkpoint

REPO = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(source: str) -> Path:
    """Return the folder of `source`; nothing is downloaded.

    Raises DstoolsError if it is neither a folder nor org/name[@revision] in the Hub cache.
    """
    if source and Path(source).is_dir():
        return Path(source)
    repo, _, revision = source.partition("@")
    if Path(source).exists() or source.startswith((".", "/")) or not REPO.fullmatch(repo):
        raise DstoolsError(f"{source}: no such folder", "name a checkpoint folder or org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        download = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        raise DstoolsError(
            f"{source}: no such folder, and not in the Hub cache", f"download it first: {download}"
        ) from error


def open_source(source: str) -> "Checkpoint":
    """Return the checkpoint of `source`, opened; prints the warnings about its files.

    Raises DstoolsError at the first fault of its files.
    """
    return open_folder(resolve(source))


def open_folder(folder: Path) -> "Checkpoint":
    """Return the checkpoint in a folder, as `open_source` does."""
    from dstools_converters.checkpoint.folder import open_checkpoint

    checkpoint = open_checkpoint(folder)
    for finding in checkpoint.warnings:
        warn(finding)
    return checkpoint
