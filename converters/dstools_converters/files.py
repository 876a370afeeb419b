"""Files: strict JSON, atomic replacement, logs that survive a kill, flushing to disk."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from dstools_converters.errors import printable

POINTER_START = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
MAX_TABLE_VALUES = 1_500_000  # of a header or an index; that of V3 has 0.1 million
GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
MAGICS = (  # first bytes, what the file is, and what to do; by < as tools refuse other suffixes
    (GZIP_MAGIC, "compressed with gzip", "unpack it: gunzip < FILE > NEW"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: unzstd < FILE > NEW"),
    (b"BZh", "compressed with bzip2", "unpack it: bunzip2 < FILE > NEW"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it: unxz < FILE > NEW"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it with unzip"),
    (PARQUET_MAGIC, "a Parquet file", "name it .parquet"),
)
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LFS_HINT = "run `git lfs pull` in the folder"


def strict_json(raw: bytes, max_values: int | None = None) -> Any:
    """Parse JSON as strictly as safetensors does.

    Raises ValueError for what json.loads alone accepts: UTF-16, NaN, half a surrogate pair, and two
    equal keys, of which it keeps the last; and for more than about `max_values` values, which take
    some 200 bytes of memory each.
    """
    if max_values is not None and sum(raw.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise ValueError(f"holds more than {max_values} values")
    value = json.loads(
        raw.decode(),
        object_pairs_hook=_no_duplicates,
        parse_float=_finite,
        parse_constant=_no_constant,
    )
    if isinstance(value, dict) and b"\\u" in raw:
        "".join(value).encode()  # UnicodeEncodeError, a ValueError, for half a pair
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"has the key {printable(name)} twice")
            seen.add(name)
    return table


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def real(path: Path) -> Path:
    """Return a path without its links; of a link that leads to itself, the link.

    `Path.resolve` raises RuntimeError for that.
    """
    return Path(os.path.realpath(path))


def json_object(path: Path) -> dict[str, Any] | str:
    """Return the object in a JSON file of a library, or why there is none."""
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}" if raw else "is empty"
    return content if isinstance(content, dict) else "is not a JSON object"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer, left by a clone without `git lfs pull`.

    Source: git-lfs, docs/spec.md: less than 1024 bytes, and "version" comes first.
    """
    if path.stat().st_size >= MAX_POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER_START)) == POINTER_START


def not_utf8(start: bytes) -> tuple[str, str] | None:
    """Return what a file is in place of UTF-8 text, by its first bytes, and what to do about it.

    None where these do not say. A hint names no file.
    """
    if start.startswith(POINTER_START):
        return "is a Git LFS pointer, not the file", LFS_HINT
    for magic, kind, hint in MAGICS:
        if start.startswith(magic):
            return f"is {kind}", hint
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "is an HTML page", "download the file itself; the page may say what that takes"
    if start.startswith(UTF16_MARKS) or (len(start) > 1 and 0 in start[:2]):
        return "is UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8"
    return None


def to_json(value: dict[str, Any]) -> bytes:
    """Return JSON as we write it for people and programs; NaN is a ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush it; its name belongs to the folder, which `sync` flushes."""
    path.write_bytes(data)
    sync(path)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path`, flushed, when the block ends without an error.

    After an error or a kill, `path` is unchanged. If `path` is a link, the link is replaced and not
    its target.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def recover_log(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield offset and record of each complete line of a log, then truncate it after the last.

    `file` is open for reading and writing. A kill may tear the last line, a power failure more than
    that, so everything from the first line that is not a JSON object and a newline is removed.
    Otherwise records appended after it would never be read.
    """
    offset = 0
    file.seek(0)
    for line in file:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            break
        yield offset, record
        offset += len(line)
    file.truncate(offset)
    file.seek(offset)


def append_record(descriptor: int, record: dict[str, Any]) -> None:
    """Append a record to a log in one write; the file is open with O_APPEND.

    Raises OSError if the disk takes only a part of it, which `recover_log` will remove.
    """
    line = json.dumps(record).encode() + b"\n"
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
