"""SHA256SUMS: the sha256 of every file that a conversion wrote, as `sha256sum -c` reads it.

Source of the format: GNU coreutils, md5sum invocation: digest, two spaces, file name. A name with a
backslash or a line break is escaped, and its line begins with a backslash.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from hashlib import _Hash

SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # over all files, SHA256SUMS too
MAX_SUMS_BYTES = 8 << 20  # that of DeepSeek-V3's 163 shards takes 20 KB
PIECE_BYTES = 1 << 20  # hashed at a time
LINE = re.compile(  # "*": read as binary, no difference; the second form is of BSD and `--tag`
    rb"(\\?)(?:(?P<gnu>[0-9a-fA-F]{64}) [ *](.+)|SHA256 \((.+)\) = (?P<bsd>[0-9a-fA-F]{64}))"
)
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
UNESCAPED = {escaped: plain for plain, escaped in ESCAPES.items()}
# a `find` that follows the links of a Hub cache, and leaves out what is hidden
MAKE = f"find -L . -type f ! -path '*/.*' ! -name {SUMS} -exec sha256sum {{}} + > {SUMS}"
HINT = "download it again, or write it in a copy that you trust: " + f"`{MAKE}`"


def sha256_of(path: Path, progress: Callable[[int], object] = lambda nbytes: None) -> str:
    """Return the sha256 of a file, in hexadecimal; `progress` gets the bytes of each piece.

    Raises DstoolsError where the file cannot be read.
    """
    digest = hashlib.sha256()
    hash_file(path, [digest], progress)
    return digest.hexdigest()


def hash_file(
    path: Path, hashes: Iterable["_Hash"], progress: Callable[[int], object] = lambda nbytes: None
) -> None:
    """Feed a file to `hashes`, read once; `progress` gets the bytes of each piece.

    Raises DstoolsError where the file cannot be read.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                for digest in hashes:
                    digest.update(buffer[:count])  # without the interpreter's lock
                progress(count)
    except OSError as error:
        raise DstoolsError(
            f"{path}: cannot be read ({error.strerror})", "check the disk or mount"
        ) from error


def sums_of(paths: Iterable[Path], workers: int) -> dict[Path, str]:
    """Return the sha256 of each file, read by `workers` threads."""
    paths = list(paths)
    with ThreadPoolExecutor(workers, "sums") as pool:
        return dict(zip(paths, pool.map(sha256_of, paths), strict=True))


def format_sums(digests: Mapping[str, str]) -> bytes:
    """Return SHA256SUMS, sorted by name, of {path in the folder: hexadecimal sha256}."""
    lines = []
    for name in sorted(digests):
        escaped = "".join(ESCAPES.get(character, character) for character in name)
        lines.append(f"{chr(92) if escaped != name else ''}{digests[name]}  {escaped}\n")
    return os.fsencode("".join(lines))


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return {path in the folder: hexadecimal sha256} of SHA256SUMS, None without that file.

    Reads what `sha256sum -c` does: comments and lines of BSD, too. What it says of itself and of
    the signature, which are written after it, is left out.
    Raises DstoolsError, naming the line, where it is not of the format, names a file twice, or one
    outside the folder; and where it is not a file.
    """
    path = folder / SUMS
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise DstoolsError(f"{SUMS}: is not a regular file", HINT)
    if path.stat().st_size > MAX_SUMS_BYTES:
        raise DstoolsError(f"{SUMS}: has over {MAX_SUMS_BYTES >> 20} MiB", HINT)
    digests: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        line = line.removesuffix(b"\r")  # of Windows; one of a name is escaped
        if not line or line.startswith(b"#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise DstoolsError(f"{SUMS}: line {number} is not a sha256 and a file name", HINT)
        name = os.fsdecode(match[3] or match[4])
        if match[1]:
            name = re.sub(r"\\[\\nr]", lambda escape: UNESCAPED[escape[0]], name)
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\0" in name:
            raise DstoolsError(f"{SUMS}: line {number} names a file outside the folder", HINT)
        name = os.path.normpath(name)
        digest = (match["gnu"] or match["bsd"]).decode().lower()
        if name not in (SUMS, SIGNATURE) and digests.setdefault(name, digest) != digest:
            raise DstoolsError(f"{SUMS}: line {number} names a file a second time", HINT)
    return digests
