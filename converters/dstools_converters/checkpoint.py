"""A checkpoint folder as its headers describe it: every tensor's place, and bytes on demand.

Opening reads `config.json`, the index and the header of each shard, nothing else; no model code is
imported and nothing in the folder is executed. Everything read here may come from a stranger, so each
number and path is checked before it is used.

Source of the container format: safetensors, README, "Format": 8 bytes little-endian header length,
JSON header, data without holes; `data_offsets` count from the end of the header.
"""

import json
import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, NoReturn

from dstools_converters.errors import DstoolsError, Finding, printable

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_JSON_BYTES = 1 << 30
MAX_RANK = 64  # as torch has it; a shape of a million sizes would take minutes to multiply
ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "U8": 8, "I8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
LOOK_ALIKES = {  # what is met under a .safetensors name, by its first bytes
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
    """What a header says of one tensor; `offset` counts bytes from the start of the shard's file.

    A NamedTuple, as are the other records of which a checkpoint has 90,000: they are made in half
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
        """Name file and tensor, for messages."""
        return f"{self.shard}: {printable(self.name)}"

    @property
    def numel(self) -> int:
        """Count the elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One .safetensors file: its size and what identifies its header."""

    name: str
    nbytes: int
    mtime_ns: int
    header_sha256: str


class Checkpoint:
    """The tensors of a folder, by name, in the order of the shards and of the bytes within them."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorInfo],
        shards: dict[str, Shard],
        index_metadata: dict[str, Any],
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.shards = shards
        self.index_metadata = index_metadata
        self._files: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards that reads have opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def file(self, shard: str) -> int:
        """Return a descriptor of the shard, open for reading until `close`."""
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self.folder / shard, os.O_RDONLY)
            return self._files[shard]

    def read(self, info: TensorInfo, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return bytes of one tensor; a file that has become shorter meanwhile is a DstoolsError."""
        nbytes = info.nbytes - offset if nbytes is None else nbytes
        data = os.pread(self.file(info.shard), nbytes, info.offset + offset)
        if len(data) != nbytes:
            raise shortened(info.shard)
        return data

    def check_unmoved(self) -> None:
        """Raise where a shard was written to since the folder was opened: the reads may be mixed."""
        for shard in self.shards.values():
            try:
                now = (self.folder / shard.name).stat()
                is_same = (now.st_size, now.st_mtime_ns) == (shard.nbytes, shard.mtime_ns)
            except OSError:
                is_same = False
            if not is_same:
                raise DstoolsError(
                    f"{shard.name}: changed or went away while it was being read",
                    "let whatever writes to the source finish, delete the output, and start again",
                )

    @cached_property
    def digest(self) -> str:
        """Return a sha256 over config, headers, sizes and times: another source has another one."""
        parts = [json.dumps(self.config, sort_keys=True)]
        parts += [
            f"{s.name} {s.nbytes} {s.mtime_ns} {s.header_sha256}" for s in self.shards.values()
        ]
        return sha256("\n".join(parts).encode()).hexdigest()


def shortened(shard: str) -> DstoolsError:
    """Return the error for a shard that ends before its header says."""
    return DstoolsError(f"{shard}: ends before its header says", "download or copy the shard again")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`.

    Raises DstoolsError at the first thing that is wrong with its files: a shard missing, cut short or
    outside the folder, an index that disagrees with the shards, a header that lies.
    """
    checkpoint, findings = scan(folder)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        error = errors[0].raised()
        if len(errors) > 1:
            error.args = (f"{error} (and {len(errors) - 1} more; `dstools verify` lists all)",)
        raise error
    return checkpoint


def scan(folder: Path) -> tuple[Checkpoint, list[Finding]]:
    """Return what can be read of the checkpoint in `folder`, and everything found wrong with it.

    Raises DstoolsError only where there is no checkpoint to speak of: no folder, no config.json, no
    shard.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "name a checkpoint folder or org/name")
    config = _read_json(folder / "config.json")
    findings: list[Finding] = []
    weight_map, metadata = _read_index(folder, findings)
    tensors: dict[str, TensorInfo] = {}
    shards: dict[str, Shard] = {}
    for name in sorted(set(weight_map.values())):
        try:
            shard, infos = _read_header(folder, name)
        except DstoolsError as error:
            findings.append(Finding("error", "shard-unreadable", name, str(error), error.hint))
            continue
        shards[name] = shard
        for info in infos:
            if info.name in tensors:
                other = tensors[info.name].shard
                findings.append(Finding("error", "tensor-twice", info.where, f"also in {other}"))
            tensors[info.name] = info
    if (folder / INDEX).exists():
        findings += _disagreements(weight_map, tensors, shards)
    unlisted = {path.name for path in folder.glob("*.safetensors")} - set(weight_map.values())
    findings += [
        Finding(
            "warning", "shard-unlisted", printable(name), "is not in the index and is left alone"
        )
        for name in sorted(unlisted)
    ]
    metadata = metadata if isinstance(metadata, dict) else {}
    return Checkpoint(folder, config, tensors, shards, metadata), findings


def _read_index(folder: Path, findings: list[Finding]) -> tuple[dict[str, str], Any]:
    """Return {tensor: shard} and the metadata of the index, or the one shard where there is none."""
    if not (folder / INDEX).exists():
        if not os.path.lexists(folder / SINGLE):
            several = len(list(folder.glob("*.safetensors")))
            raise DstoolsError(
                f"{folder}: {several} .safetensors files, but neither {SINGLE} nor {INDEX}",
                "is the download complete? a sharded checkpoint needs its index",
            )
        return {"": SINGLE}, None
    index = _read_json(folder / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DstoolsError(f"{INDEX}: has no weight_map", "download the index again")
    refused = {}  # shard -> the first tensor said to be in it
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise DstoolsError(
                f"{INDEX}: {printable(tensor)} is in {shard!r}, which is no file name"
            )
        if shard not in refused:
            refused[shard] = "" if _is_plain(shard) else tensor
    for shard, tensor in refused.items():
        if tensor:
            findings.append(
                Finding(
                    "error", "path-outside", f"{INDEX}: {printable(tensor)}",
                    f"names {printable(shard)!r}, which is no plain file name in this folder",
                    "nothing outside the folder is read; download the index again",
                )
            )  # fmt: skip
    return {t: shard for t, shard in weight_map.items() if not refused[shard]}, index.get(
        "metadata"
    )


def _is_plain(shard: str) -> bool:
    return (
        shard.endswith(".safetensors")
        and shard.isprintable()
        and not shard.startswith(".")
        and os.path.basename(shard) == shard  # noqa: PTH119  a string, not yet a path
        and "\\" not in shard
    )


def _disagreements(
    weight_map: dict[str, str], tensors: dict[str, TensorInfo], shards: dict[str, Shard]
) -> Iterator[Finding]:
    """Yield where index and shards do not say the same of a tensor."""
    for name, shard in weight_map.items():
        info = tensors.get(name)
        if shard not in shards or (info is not None and info.shard == shard):
            continue  # an unreadable shard has its own finding
        found = "no shard holds it" if info is None else f"it lies in {info.shard}"
        yield Finding(
            "error", "index-disagrees", f"{INDEX}: {printable(name)}",
            f"is said to be in {shard}, but {found}",
            "a shard is missing, cut short or from another download; download again",
        )  # fmt: skip
    for info in tensors.values():
        if info.name not in weight_map:
            yield Finding(
                "error", "index-disagrees", info.where, "is not in the index",
                "index and shards are from different downloads; download again",
            )  # fmt: skip


def _read_header(folder: Path, name: str) -> tuple[Shard, list[TensorInfo]]:
    """Return one shard's identity and tensors in the order of their bytes.

    Raises DstoolsError where the file is missing, is no regular file, or has a header that does not
    describe exactly the bytes behind it.
    """
    path = folder / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise DstoolsError("is not a regular file", "a shard must be a file")
        with path.open("rb", buffering=0) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, status.st_size - 8):
                raise _not_safetensors(start, status.st_size, length)
            raw = file.read(length)
    except OSError as error:
        raise DstoolsError(f"is missing ({error.strerror})", "download the shard") from error
    try:
        header = _loads(raw)
    except (ValueError, RecursionError) as error:
        raise DstoolsError(f"its header is no JSON: {error}", "download the shard again") from error
    if not isinstance(header, dict):
        raise DstoolsError("its header is no JSON object", "download the shard again")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(type(value) is str for value in metadata.values())
    ):
        raise DstoolsError("its __metadata__ is no table of texts", "download the shard again")
    infos = [_tensor_info(name, tensor, entry, 8 + length) for tensor, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    end = 8 + length
    for info in infos:
        if info.offset != end:
            raise DstoolsError(f"{printable(info.name)} leaves a hole or overlaps its neighbour")
        end += info.nbytes
    if end != status.st_size:
        raise DstoolsError(
            f"holds {status.st_size} bytes where its header describes {end}",
            "the shard was cut short or added to; download it again",
        )
    digest = sha256(raw).hexdigest()
    return Shard(name, status.st_size, status.st_mtime_ns, digest), infos


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
        raise DstoolsError(f"{printable(name)} has a shape that is no list of sizes")
    for size in (*shape, begin, end):
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise DstoolsError(f"{printable(name)} has the size {size!r}, no natural number")
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
        f"is no safetensors file: {nbytes} bytes, header said to take {header_bytes}",
        "the shard was cut short or is something else; download it again",
    )


def _loads(raw: bytes) -> Any:
    """Return what the JSON says, as strictly as safetensors reads it.

    json.loads alone also takes UTF-16, NaN, half a surrogate pair, and the last of two equal keys.
    """
    found = json.loads(raw.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    if isinstance(found, dict) and b"\\u" in raw:
        "".join(found).encode()  # UnicodeEncodeError, a ValueError, for half a pair
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{printable(name)} stands in it twice")
            seen.add(name)
    return found


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, with DstoolsError naming it where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > MAX_JSON_BYTES:
            raise DstoolsError(f"{path.name}: is no regular file of a sane size")
        found = _loads(path.read_bytes())
    except OSError as error:
        raise DstoolsError(
            f"{path}: {error.strerror}",
            "a checkpoint folder holds config.json and .safetensors files",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DstoolsError(
            f"{path.name}: is no JSON: {error}", "download the file again"
        ) from error
    if not isinstance(found, dict):
        raise DstoolsError(f"{path.name}: is no JSON object", "download the file again")
    return found
