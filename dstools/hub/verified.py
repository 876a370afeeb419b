"""A folder checked before it is published, and the hashes of its files, of the same read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path

from dstools.hub.remote import Blob
from dstools.hub.selection import Selection
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.sums import hash_file
from dstools_converters.verify.folder import Report
from dstools_converters.verify.folder import verify as verify_folder


@dataclass(frozen=True)
class Verified:
    """A folder that is sound: the hashes of its files, and what `verify` says of it."""

    blobs: dict[str, Blob]
    report: Report


def verified(folder: Path, selection: Selection, workers: int, progress: Progress) -> Verified:
    """Check a folder as `dstools verify` does, and hash the files that will be published.

    Raises DstoolsError, naming file and tensor, at the first error of the folder.
    """
    with ThreadPoolExecutor(workers, "hash") as pool:
        paths = selection.files.values()
        blobs = dict(zip(selection.files, pool.map(_blob, paths), strict=True))
    report = verify_folder(folder, workers=workers, progress=progress)
    errors = [finding for finding in report.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more errors)" if errors[1:] else ""
        raise DstoolsError(
            f"{errors[0].where}: {errors[0].message}{more}",
            errors[0].hint or f"dstools verify {folder}",
        )
    return Verified(blobs, report)


def _blob(path: Path) -> Blob:
    size = path.stat().st_size
    digests = [sha256(), sha1(b"blob %d\0" % size, usedforsecurity=False)]
    hash_file(path, digests)
    return Blob(size, *(digest.hexdigest() for digest in digests))
