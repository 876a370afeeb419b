"""Resolving a SOURCE to a folder: a local one, or a repository in the Hub's cache."""

import re
from pathlib import Path

from dstools_converters.errors import DstoolsError

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
