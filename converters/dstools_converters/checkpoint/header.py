"""The header of one .safetensors file: its tensors and their offsets, each number checked.

Everything read here is untrusted. Whatever the safetensors library refuses is refused here too, by
name; the library does not give the offset of a tensor's bytes, which streaming needs.
Source of the format: safetensors, README, "Format": 8 bytes little-endian header length, JSON
header, data without holes; `data_offsets` count from the end of the header.
"""

import json
import math
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import MAX_TABLE_VALUES, strict_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
DATA_ALIGNMENT = 4096  # of headers that we write, so that the data begins on a page
MAX_RANK = 64  # as in torch; a shape of a million sizes would take minutes to multiply
ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "U8": 8, "I8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
LOOK_ALIKES = {  # other contents of files named .safetensors, by their first bytes
    b"version ": ("a Git LFS pointer, not the weights", "run `git lfs pull`"),
    b"<!DOCTYP": ("a web page, not the weights", "download the file again"),
    b"<!doctyp": ("a web page, not the weights", "download the file again"),
    b"<html": ("a web page, not the weights", "download the file again"),
    b"PK\x03\x04": ("a zip or PyTorch pickle", "convert it to safetensors first"),
} | {
    bytes((0x80, protocol)): ("a Python pickle, never opened", "convert it to safetensors first")
    for protocol in (2, 3, 4, 5)
}


class TensorInfo(NamedTuple):
    """One tensor as its header describes it; `offset` counts bytes from the start of the file.

    A NamedTuple, as are the other records of which a checkpoint has 90,000: creating one takes half
    the time of a frozen dataclass.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int

    @property
    def where(self) -> str:
        """Return file and tensor, for messages."""
        return f"{self.shard}: {printable(self.name)}"

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One .safetensors file: its size and what identifies its header."""

    name: str
    nbytes: int
    inode: int
    mtime_ns: int
    header_sha256: str


def read_header(folder: Path, name: str) -> tuple[Shard, list[TensorInfo]]:
    """Return one shard's identity and tensors in the order of their bytes.

    Raises DstoolsError where the file is missing, is not a regular file, or has a header that does
    not describe exactly the bytes after it.
    """
    path = folder / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would block forever
            raise DstoolsError("is not a regular file", "a shard must be a file")
        with path.open("rb", buffering=0) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, status.st_size - 8):
                raise _not_safetensors(start, status.st_size, length)
            raw = file.read(length)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise DstoolsError("is missing", "download the shard") from error
        raise DstoolsError(
            f"cannot be opened ({error.strerror})", "check that you may read it"
        ) from error
    try:
        header = strict_json(raw, MAX_TABLE_VALUES)
    except (ValueError, RecursionError) as error:
        raise DstoolsError(
            f"header is not valid JSON: {error}", "download the shard again"
        ) from error
    if not isinstance(header, dict):
        raise DstoolsError("header is not a JSON object", "download the shard again")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(type(value) is str for value in metadata.values())
    ):
        raise DstoolsError("__metadata__ is not an object of strings", "download the shard again")
    infos = [_tensor_info(name, tensor, entry, 8 + length) for tensor, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    end = 8 + length
    for info in infos:
        if info.offset != end:
            raise DstoolsError(
                f"{printable(info.name)} leaves a gap or overlaps its neighbour",
                "download the shard again",
            )
        end += info.nbytes
    if end != status.st_size:
        raise DstoolsError(
            f"holds {status.st_size} bytes where its header describes {end}",
            "the shard was cut short or added to; download it again",
        )
    digest = sha256(raw).hexdigest()
    return Shard(name, status.st_size, status.st_ino, status.st_mtime_ns, digest), infos


def format_header(tensors: Iterable[TensorInfo]) -> bytes:
    """Return the header of a file that holds these tensors in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for info in tensors:
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": info.shape,
            "data_offsets": [end, end + info.nbytes],
        }
        end += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _tensor_info(shard: str, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise DstoolsError(f"{printable(name)} has no dtype, shape and data_offsets") from None
    if type(dtype) is not str or dtype not in ITEM_BITS:
        raise DstoolsError(
            f"{printable(name)} has the unknown dtype {printable(str(dtype))!r}",
            f"known are {', '.join(ITEM_BITS)}",
        )
    if type(shape) is not list or len(shape) > MAX_RANK:
        raise DstoolsError(f"{printable(name)} has a shape that is not a list of sizes")
    sizes = (*shape, begin, end)
    if set(map(type, sizes)) != {int} or min(sizes) < 0 or max(sizes) >= 1 << 63:
        size = next(size for size in sizes if type(size) is not int or not 0 <= size < 1 << 63)
        raise DstoolsError(
            f"{printable(name)} has the size {size!r}, which is not a natural number",
            "download the shard again",
        )
    bits = math.prod(shape) * ITEM_BITS[dtype]
    if bits != (end - begin) * 8 or (not bits and math.prod(filter(None, shape)) >= 1 << 60):
        raise DstoolsError(
            f"{printable(name)} is {dtype} {shape} but takes {end - begin} bytes",
            "the header is damaged; download the shard again",
        )
    return TensorInfo(name, dtype, tuple(shape), shard, data_start + begin, end - begin)


def _not_safetensors(start: bytes, nbytes: int, header_bytes: int) -> DstoolsError:
    for prefix, (what, hint) in LOOK_ALIKES.items():
        if start.startswith(prefix):
            return DstoolsError(f"is {what}", hint)
    return DstoolsError(
        f"is not a safetensors file: {nbytes} bytes, of which the header would take {header_bytes}",
        "the shard was cut short or is something else; download it again",
    )
