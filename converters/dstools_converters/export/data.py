"""Writes the weights of a graph: ranges copied by the kernel, the rest converted in rows.

A tensor of the graph is written piece by piece into its place in the file, and its hash is taken
from what the page cache then holds. No tensor is ever whole in memory.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.header import ITEM_BITS
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    block_rows,
    columns,
    read_scales,
    require_finite,
    slabs,
    width,
)
from dstools_converters.checkpoint.tensors import restored_rows
from dstools_converters.errors import DstoolsError
from dstools_converters.export.sources import DTYPES, Piece, Source
from dstools_kernels.fp8 import NON_FINITE_BITS

ALIGNMENT = 4096  # a page, so that ONNX Runtime can map each tensor
PIECE_BYTES = 4 << 20  # hashed, or copied without the kernel's help, at a time
TORCH = {name: dtype for dtype, name in DTYPES.items()}
# of copy_file_range: on another disk, or one that cannot
ELSEWHERE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Entry(NamedTuple):
    """A tensor's place in a file."""

    name: str
    source: Source
    offset: int

    @property
    def nbytes(self) -> int:
        """Return its bytes."""
        return self.source.numel * ITEM_BITS[self.source.dtype] // 8


def lay_out(sources: Iterable[tuple[str, Source]], alignment: int = ALIGNMENT) -> list[Entry]:
    """Return tensors at aligned offsets of a file, in the order given."""
    entries: list[Entry] = []
    end = 0
    for name, source in sources:
        entries.append(Entry(name, source, -(-end // alignment) * alignment))
        end = entries[-1].offset + entries[-1].nbytes
    return entries


def safetensors_header(entries: list[Entry]) -> bytes:
    """Return the header of a .safetensors file with these tensors."""
    table = {
        entry.name: {
            "dtype": entry.source.dtype,
            "shape": entry.source.shape,
            "data_offsets": [entry.offset, entry.offset + entry.nbytes],
        }
        for entry in entries
    }
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(inventory: Inventory, entry: Entry, file: int, base: int, made: Tensor | None) -> str:
    """Write a tensor at `base` and its offset; return the sha256 of its bytes, in hexadecimal.

    made: the values of one that has no pieces. Raises DstoolsError, naming the tensor, for NaN,
    infinity, and numbers that the dtype cannot hold.
    """
    digest, at = sha256(), base + entry.offset
    if made is not None:
        values = _bytes(made.to(TORCH[entry.source.dtype]))
        write_at(file, values, at)
        digest.update(values)
    for piece in entry.source.pieces:
        nbytes = _nbytes(piece, entry.source)
        if entry.source.is_copy and piece.is_range:
            _copy(inventory.checkpoint, piece, file, at, nbytes)
        else:
            _by_rows(inventory, entry, piece, file, at)
        for data in read_back(file, at, nbytes):
            digest.update(data)
            if entry.source.is_copy and piece.info.dtype in NON_FINITE_BITS:
                require_finite(piece.info, memoryview(data), 0)
        at += nbytes
    return digest.hexdigest()


def digest_of(file: int, offset: int, nbytes: int) -> str:
    """Return the sha256 of bytes of a file, in hexadecimal."""
    digest = sha256()
    for data in read_back(file, offset, nbytes):
        digest.update(data)
    return digest.hexdigest()


def read_back(file: int, offset: int, nbytes: int) -> Iterator[bytes]:
    """Yield bytes of a file in pieces; fewer where it ends."""
    end = offset + nbytes
    while offset < end:
        data = os.pread(file, min(PIECE_BYTES, end - offset), offset)
        if not data:
            return
        yield data
        offset += len(data)


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _nbytes(piece: Piece, source: Source) -> int:
    (first, last), (begin, end) = piece.rows, piece.columns
    return (last - first) * (end - begin) * ITEM_BITS[source.dtype] // 8


def _copy(checkpoint: Checkpoint, piece: Piece, file: int, at: int, nbytes: int) -> None:
    """Copy a range of a shard, by the kernel where it can."""
    begin = piece.rows[0] * columns(piece.info) * width(piece.info)
    source, end = piece.info.offset + begin, at + nbytes
    with (checkpoint.folder / piece.info.shard).open("rb") as shard:
        while at < end:
            try:
                count = os.copy_file_range(shard.fileno(), file, end - at, source, at)
            except OSError as error:
                if error.errno not in ELSEWHERE:
                    raise
                data = os.pread(shard.fileno(), min(PIECE_BYTES, end - at), source)
                write_at(file, memoryview(data), at)
                count = len(data)
            if not count:
                raise DstoolsError(
                    f"{piece.info.shard}: ends before its header says",
                    "download or copy the shard again",
                )
            source, at = source + count, at + count


def _by_rows(inventory: Inventory, entry: Entry, piece: Piece, file: int, at: int) -> None:
    """Write a piece through memory: some columns of it, or in another dtype."""
    (first, last), (begin, end), source = piece.rows, piece.columns, entry.source
    block = 1 if piece.weight is not None else block_rows(inventory, piece.info)
    for start, stop in slabs(first // block * block, last, block, columns(piece.info) * 4):
        rows = _rows(inventory, source, piece, start, stop)
        own = rows[max(first - start, 0) :, begin:end].to(TORCH[source.dtype])
        if source.dtype == "F16" and not own.isfinite().all():
            raise DstoolsError(
                f"{piece.info.where}: holds {rows.abs().max():g}, and float16 ends at 65504",
                "export with --dtype bfloat16 or float32",
            )
        data = _bytes(own)
        write_at(file, data, at)
        at += len(data)


def _rows(inventory: Inventory, source: Source, piece: Piece, first: int, last: int) -> Tensor:
    """Return whole rows of a piece's tensor: as they are for a copy, else as float32."""
    info, cols = piece.info, columns(piece.info)
    if source.is_copy:
        row = cols * width(info)
        data = inventory.checkpoint.read(info, first * row, last * row)
        stored = torch.frombuffer(bytearray(data), dtype=TORCH[source.dtype])
        return stored.view(last - first, cols)
    if piece.weight is None:
        return restored_rows(inventory, info, first, last)
    block = inventory.storage[piece.weight.name].block[0]
    end = min(last * block, piece.weight.shape[0])
    scales = read_scales(inventory, piece.weight, first * block, end)
    return torch.frombuffer(bytearray(scales), dtype=torch.float32).view(last - first, cols)


def _bytes(values: Tensor) -> memoryview:
    """Return the bytes of a tensor, copied."""
    return values.contiguous().flatten().view(torch.uint8).numpy().data
