"""A file of text as plain bytes: gzip is unpacked, and Parquet becomes JSONL.

Both go to a temporary file without a name, in TMPDIR. pyarrow is imported for Parquet alone.
"""

import gzip
import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import GZIP_MAGIC, MAGICS, PARQUET_MAGIC

JSONL_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_COLUMNS = ("text", "messages", "raw", "reasoning", "answer")
CHUNK_BYTES = 1 << 20
BATCH_ROWS = 64
MAX_NAMES = 8  # of keys or columns in an error
FOREIGN = {  # the first bytes of files that are not text: what they are, and what to do
    b"version https://git-lfs": (
        "a Git LFS pointer, not the data",
        "run `git lfs pull` in its folder",
    ),
    b"ARROW1": ("an Arrow file", "save it as Parquet or JSONL: Dataset.to_parquet, to_json"),
    **{m: (kind, hint) for m, kind, hint in MAGICS if m not in (GZIP_MAGIC, PARQUET_MAGIC)},
}
BROKEN_HINT = "the file is damaged or cut short; download it again"


class DataFile(NamedTuple):
    """A file of documents, open for reading."""

    file: BinaryIO  # seekable
    is_jsonl: bool  # a document a line, otherwise a paragraph
    unit: str  # what an error counts: "line", or "row" of a Parquet file
    sha256: str  # of the file as it is on disk; "" if `file` is that file


@contextmanager
def open_data(path: Path) -> Iterator[DataFile]:
    """Open a file of text, plain, as gzip or as Parquet; its first bytes decide which it is.

    Raises DstoolsError where it is not a regular file (a pipe might never end), of a kind that is
    not read, or damaged.
    """
    with _open_regular(path) as file:
        head = file.read(32)
        file.seek(0)
        for start, (kind, hint) in FOREIGN.items():
            if head.startswith(start):
                raise DstoolsError(f"{path}: is {kind}", hint)
        is_parquet = head.startswith(PARQUET_MAGIC)
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if not head and suffixes[-1:] in ([".parquet"], [".gz"]):
            raise DstoolsError(f"{path}: is empty", "download it again")
        if suffixes[-1:] == [".parquet"] and not is_parquet:
            raise DstoolsError(f"{path}: is not a Parquet file", BROKEN_HINT)
        if suffixes[-1:] == [".gz"]:
            suffixes.pop()
            if not head.startswith(GZIP_MAGIC):
                raise DstoolsError(f"{path}: is not compressed by gzip", BROKEN_HINT)
        is_jsonl = suffixes[-1:] != [] and suffixes[-1] in JSONL_SUFFIXES
        if not is_parquet and not head.startswith(GZIP_MAGIC):
            yield DataFile(file, is_jsonl, "line", "")
            return
        with TemporaryFile() as plain:
            (_parquet_to_jsonl if is_parquet else _unpack)(path, file, plain)
            plain.seek(0)
            if is_parquet:
                yield DataFile(plain, True, "row", _digest(file))
            elif plain.read(4) == PARQUET_MAGIC:
                raise DstoolsError(f"{path}: is a Parquet file inside gzip", "unpack it: gunzip")
            else:
                plain.seek(0)
                yield DataFile(plain, is_jsonl, "line", _digest(file))


def _open_regular(path: Path) -> BinaryIO:
    """Open `path` if it is a regular file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DstoolsError(f"{path}: is a folder", "name one of its files")
        if not stat.S_ISREG(mode):
            raise DstoolsError(f"{path}: is not a regular file", "save its content as a file")
        return path.open("rb")
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}", "check its permissions") from error


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = sha256()
    while piece := file.read(CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _unpack(path: Path, file: BinaryIO, plain: BinaryIO) -> None:
    """Write the content of a gzip file to `plain`."""
    packed = gzip.GzipFile(fileobj=file)
    while True:
        try:
            piece = packed.read(CHUNK_BYTES)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DstoolsError(
                f"{path}: is a damaged gzip file: {printable(str(error))}", BROKEN_HINT
            ) from None
        if not piece:
            return
        plain.write(piece)


def _parquet_to_jsonl(path: Path, file: BinaryIO, plain: BinaryIO) -> None:
    """Write a line for each row to `plain`, a blank one where it has neither text nor messages."""
    for row in _parquet_rows(path, file):
        values = {key: value for key, value in row.items() if value is not None}
        if isinstance(row.get("text"), str) and not row["text"].strip():
            del values["text"]
        if "text" in values or "messages" in values:
            plain.write(json.dumps(values, default=_json_value).encode())
        plain.write(b"\n")


def _parquet_rows(path: Path, file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the columns of a document, a row at a time.

    Raises DstoolsError without pyarrow, for a file that it cannot read, and for one without text.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DstoolsError(
            f"{path}: reading Parquet needs pyarrow", "pip install pyarrow, or save it as JSONL"
        ) from None
    try:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        if not {"text", "messages"} & set(names):
            raise DstoolsError(
                f"{path}: has neither of the columns text and messages, but {listed(names)}",
                "rename the column with the text, or with lists of role and content",
            )
        columns = [name for name in PARQUET_COLUMNS if name in names]
        for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"{path}: cannot be read as Parquet: {reason}", BROKEN_HINT) from None


def listed(names: list[str]) -> str:
    """Return the names of keys or columns for an error, the first of many."""
    return printable(", ".join(names[:MAX_NAMES]) + (", ..." if names[MAX_NAMES:] else ""))


def _json_value(value: Any) -> str | None:
    """Return a value that JSON does not have as text; bytes are not a text."""
    return None if isinstance(value, bytes) else str(value)
