"""A folder checked before it is published, and the hashes of its files, of the same read."""

from dataclasses import dataclass
from pathlib import Path

from dstools.hub.selection import Selection
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError
from dstools_converters.verify.folder import verify as verify_folder
from dstools_converters.verify.hashes import Blob, Digests, bytes_to_read
from dstools_converters.verify.report import Report


@dataclass(frozen=True)
class Verified:
    """A folder that is sound: the hashes of its files, and what `verify` says of it."""

    blobs: dict[str, Blob]
    report: Report


def verified(folder: Path, selection: Selection, workers: int, progress: Progress) -> Verified:
    """Check a folder as `dstools verify` does, and hash the files that will be published.

    Raises DstoolsError, naming file and tensor, at the first error of the folder.
    """
    inside = [name for name, path in selection.files.items() if path == folder / name]
    digests = Digests(inside)
    report = verify_folder(folder, digests=digests, workers=workers, progress=progress)
    errors = [finding for finding in report.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more errors)" if errors[1:] else ""
        raise DstoolsError(
            f"{errors[0].where}: {errors[0].message}{more}",
            errors[0].hint or f"dstools verify {folder}",
        )
    blobs = dict(digests.found)
    for name, path in selection.files.items():
        if name not in digests.names:
            blobs[name] = Blob.of(path.read_bytes())  # the card of a student
    return Verified(blobs, report)


def bytes_read(folder: Path, selection: Selection) -> int:
    """Return how many bytes `verified` reads, for a progress bar."""
    return bytes_to_read(folder, digests=Digests(list(selection.files)))
