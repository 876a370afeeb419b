"""The hashes that the Hub's client left beside what it downloaded, read offline.

A hash of 64 digits is the sha256 of a file in LFS or Xet; one of 40 is git's of a small file, the
sha1 of "blob SIZE", a zero byte, and the content.
Source: huggingface_hub 2.4, _local_folder.py (read_download_metadata) and file_download.py.
"""

import re
from pathlib import Path

from dstools_converters.sidefiles.hub_cache import blob_of

METADATA = Path(".cache/huggingface/download")  # of `hf download --local-dir`
ETAG = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
MAX_METADATA_BYTES = 4096  # of three lines: commit, etag, time
ETAG_LINE = 1  # from 0


def hub_hashes(folder: Path) -> dict[str, str]:
    """Return {path in the folder: sha256, or git's sha1} of what was downloaded.

    Such a file may have been deleted since. Files of another kind of hash, and metadata that is
    damaged, are left out.
    """
    hashes: dict[str, str] = {}
    suffix = ".metadata"
    for path in sorted((folder / METADATA).rglob(f"*{suffix}")):
        name = str(path.relative_to(folder / METADATA)).removesuffix(suffix)
        if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_METADATA_BYTES:
            continue
        lines = path.read_bytes().decode(errors="replace").splitlines()
        etag = lines[ETAG_LINE].strip().strip('"').lower() if len(lines) > ETAG_LINE else ""
        if ETAG.fullmatch(etag):
            hashes[name] = etag
    for path in sorted(folder.rglob("*")):
        blob = blob_of(path, folder)
        if blob is not None and blob.is_file() and ETAG.fullmatch(blob.name):
            hashes[str(path.relative_to(folder))] = blob.name
    return hashes
