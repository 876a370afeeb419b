"""Folders that look like a checkpoint, and are what `dstools export` made of one.

Their config.json and experts.safetensors would be read as a model without most of its weights.
"""

from pathlib import Path

from dstools_converters.errors import DstoolsError

EXPORT = "export.json"  # whose reader is above this layer
WRITER = b'"tool": "dstools '
MAX_BYTES = 256  # it is the first key


def is_exported(folder: Path) -> bool:
    """Return whether `dstools export` wrote a folder, by the first lines of its export.json."""
    try:
        with (folder / EXPORT).open("rb") as file:
            return WRITER in file.read(MAX_BYTES)
    except OSError:
        return False


def refuse_exported(folder: Path) -> None:
    """Raise DstoolsError for such a folder."""
    if is_exported(folder):
        raise DstoolsError(
            f"{folder}: was written by dstools export, and is not a checkpoint",
            "give the checkpoint it was made from; verify, push and generate take this folder",
        )
