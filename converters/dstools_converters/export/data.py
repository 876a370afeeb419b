"""The weights of a graph, written: ranges copied by the kernel, the rest converted in rows.

A tensor of the graph is written piece by piece into its place in the file, and its hash is taken
from what the page cache then holds. No tensor is ever whole in memory.

The journal gets {"file", "tensor", "sha256"} of each. The next run hashes them again, and writes
those again that a power failure has lost.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo, format_header
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    block_rows,
    columns,
    read_scales,
    require_finite,
    slabs,
)
from dstools_converters.checkpoint.tensors import restored_rows
from dstools_converters.errors import DstoolsError, disk_errors
from dstools_converters.export.ranges import PIECE_BYTES, Piece, copy_piece, write_at
from dstools_converters.export.sources import TORCH, Source
from dstools_converters.export.unfinished import Unfinished
from dstools_kernels.fp8 import NON_FINITE_BITS

ALIGNMENT = 4096  # a page, so that ONNX Runtime can map each tensor
Progress = Callable[[int], object]  # called with the number of bytes just written


class Entry(NamedTuple):
    """A tensor's place in a file."""

    name: str
    source: Source
    offset: int

    @property
    def nbytes(self) -> int:
        """Return its bytes."""
        return self.source.nbytes


class DataFile(NamedTuple):
    """A file of weights."""

    path: str  # in the folder
    header: bytes
    entries: list[Entry]
    make: Callable[[str], Tensor]  # the values of a tensor that is not from the checkpoint

    @property
    def nbytes(self) -> int:
        """Return its size."""
        last = self.entries[-1]
        return len(self.header) + last.offset + last.nbytes


def fill(
    inventory: Inventory, data: DataFile, folder: Unfinished, workers: int, progress: Progress
) -> list[str]:
    """Write a file of weights, or what earlier runs have left of it; return each tensor's sha256.

    Raises DstoolsError as `write` does, and where the disk is full.
    """
    file, _ = folder.open(data.path, data.nbytes)
    earlier = {
        record["tensor"]: record["sha256"]
        for record in folder.records
        if record.get("file") == data.path
    }

    def one(entry: Entry) -> str:
        at = len(data.header) + entry.offset
        digest = earlier.get(entry.name)
        if digest is None or digest != digest_of(file, at, entry.nbytes):
            made = None if entry.source.pieces else data.make(entry.name)
            digest = write(inventory, entry, file, at, made)
            folder.note({"file": data.path, "tensor": entry.name, "sha256": digest})
        progress(entry.nbytes)
        return digest

    try:
        with disk_errors(folder.model / data.path), ThreadPoolExecutor(workers, "export") as pool:
            write_at(file, data.header, 0)
            futures = [pool.submit(one, entry) for entry in data.entries]
            try:
                digests = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            os.fsync(file)
    finally:
        os.close(file)
    return digests


def lay_out(sources: Iterable[tuple[str, Source]], alignment: int = ALIGNMENT) -> list[Entry]:
    """Return tensors at aligned offsets of a file, in the order given."""
    entries: list[Entry] = []
    end = 0
    for name, source in sources:
        entries.append(Entry(name, source, -(-end // alignment) * alignment))
        end = entries[-1].offset + entries[-1].nbytes
    return entries


def lay_out_safetensors(sources: Iterable[tuple[str, Source]]) -> tuple[bytes, list[Entry]]:
    """Return the header of a .safetensors file and its tensors, which leave no gaps.

    Those of the largest items come first, so that each begins at a multiple of its item's size.
    """
    ordered = sorted(sources, key=lambda item: -ITEM_BITS[item[1].dtype])
    entries = lay_out(ordered, alignment=1)
    infos = (TensorInfo(e.name, e.source.dtype, e.source.shape, "", 0, e.nbytes) for e in entries)
    return format_header(infos), entries


def write(inventory: Inventory, entry: Entry, file: int, at: int, made: Tensor | None) -> str:
    """Write a tensor at an offset of a file; return the sha256 of its bytes, in hexadecimal.

    made: the values of one that has no pieces. Raises DstoolsError, naming the tensor, for NaN,
    infinity, and numbers that the dtype cannot hold.
    """
    digest = sha256()
    if made is not None:
        values = _bytes(made.to(TORCH[entry.source.dtype]))
        write_at(file, values, at)
        digest.update(values)
    for piece in entry.source.pieces:
        nbytes = piece.numel * ITEM_BITS[entry.source.dtype] // 8
        if entry.source.is_copy:
            with (inventory.checkpoint.folder / piece.info.shard).open("rb") as shard:
                copy_piece(piece, shard.fileno(), file, at)
        else:
            _convert(inventory, entry, piece, file, at)
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


def _convert(inventory: Inventory, entry: Entry, piece: Piece, file: int, at: int) -> None:
    """Write a piece in another dtype, some rows at a time."""
    for _, rows in widened(inventory, piece):
        own = rows.to(TORCH[entry.source.dtype])
        if entry.source.dtype == "F16" and not own.isfinite().all():
            raise DstoolsError(
                f"{piece.info.where}: holds {rows.abs().max():g}, and float16 ends at 65504",
                "export with --dtype bfloat16 or float32",
            )
        data = _bytes(own)
        write_at(file, data, at)
        at += len(data)


def widened(inventory: Inventory, piece: Piece) -> Iterator[tuple[int, Tensor]]:
    """Yield a piece as float32 in slabs of rows, and the number of the first row of each.

    Raises DstoolsError for NaN, infinity and scales that are not positive.
    """
    info, (first, last), (begin, end) = piece.info, piece.rows, piece.columns
    block = 1 if piece.weight is not None else block_rows(inventory, info)
    for start, stop in slabs(first // block * block, last, block, columns(info) * 4):
        if piece.weight is None:
            rows = restored_rows(inventory, info, start, stop)
        else:
            rows = _scales(inventory, piece.weight, start, stop)
        own = max(start, first)
        yield own, rows[own - start :, begin:end]


def _scales(inventory: Inventory, weight: TensorInfo, first: int, last: int) -> Tensor:
    """Return rows of the scales of a weight, as float32."""
    block = inventory.storage[weight.name].block[0]
    data = read_scales(inventory, weight, first * block, min(last * block, weight.shape[0]))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(last - first, -1)


def _bytes(values: Tensor) -> memoryview:
    """Return the bytes of a tensor, which stays in memory with them."""
    return values.contiguous().flatten().view(torch.uint8).numpy().data
