"""An exported folder against the checkpoint that it was made from, tensor by tensor.

The only check of an exported folder that imports torch: which bytes of the checkpoint make a tensor
is known to `export.sources`. A tensor of which all bytes were copied must equal them, byte by byte;
one that was converted must equal its definition, the checkpoint's numbers as float32, rounded once;
one that was made without the checkpoint, angles or the map of experts, is made again.
"""

from collections import Counter
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.folder import Checkpoint, scan
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import block_rows, columns, read_scales, slabs, width
from dstools_converters.checkpoint.tensors import restored_rows
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.folder import DATA, EXPERTS, Export, Making, Weight, rank_folders
from dstools_converters.export.graph import MAP, Form
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.sources import DTYPES, Piece, Source, sources
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.rotary import rotary
from dstools_converters.runtime.weights import coded_names, sound_inventory

TORCH = {name: dtype for dtype, name in DTYPES.items()}
HINT = "export the model again, from this checkpoint"
WORDS: dict[Making, str] = {
    "copy": "{} tensors against the checkpoint, byte by byte",
    "convert": "{} converted tensors against the checkpoint's numbers, rounded",
    "make": "{} tensors made anew (angles, maps of experts)",
}


class Compared(NamedTuple):
    """What a comparison found."""

    findings: list[Finding]
    elements: int
    checked: list[str]


class _Pair(NamedTuple):
    """A tensor of the folder, and what it is made of."""

    file: str
    weight: Weight
    source: Source
    rank: int

    @property
    def where(self) -> str:
        """Return file and tensor, for messages."""
        return f"{self.file}: {printable(self.weight.name)}"


def check_source(
    folder: Path, export: Export, source: Path, known: Container[str], workers: int
) -> Compared:
    """Compare the tensors of a folder with a checkpoint; those at `known` places are not what
    their sha256 says, and are left out.

    The places of all tensors are sound. Raises DstoolsError for a checkpoint that cannot be read.
    """
    with _open(source) as checkpoint:
        inventory = sound_inventory(checkpoint, export.has_mtp)
        findings, pairs = _pairs(inventory, export)
        pairs = [pair for pair in pairs if pair.where not in known]
        with ThreadPoolExecutor(workers, "compare") as pool:
            for found in pool.map(lambda pair: _compare(folder, inventory, export, pair), pairs):
                findings += found
        checkpoint.check_unmoved()
    counts = Counter(pair.weight.making for pair in pairs)
    checked = [words.format(counts[making]) for making, words in WORDS.items() if counts[making]]
    return Compared(findings, sum(pair.source.numel for pair in pairs), checked)


def _open(source: Path) -> Checkpoint:
    checkpoint, findings = scan(source)
    for finding in findings:
        if finding.level == "error":
            raise DstoolsError(f"--source {finding.where}: {finding.message}", finding.hint)
    return checkpoint


def _pairs(inventory: Inventory, export: Export) -> tuple[list[Finding], list[_Pair]]:
    """Return the tensors that can be compared, and a finding for each that cannot."""
    assert export.pool is not None
    form = Form(
        getattr(torch, export.dtype),
        export.pool.context_length,
        export.pool.page_size,
        coded_names(inventory),
        Ranks(export.tp, export.ep),
        export.expert_inputs,
    )
    findings, pairs = [], []
    for rank, place in enumerate(rank_folders(form.ranks.count)):
        made_of = sources(inventory, form, rank)
        for file in (f"{place}{DATA}", f"{place}{EXPERTS}"):
            for weight in export.weights.get(file, ()):
                source = made_of.get(weight.name)
                where = f"{file}: {printable(weight.name)}"
                if source is None:
                    message = "is not made of anything in this checkpoint"
                elif (source.shape, source.dtype) != (weight.shape, weight.dtype):
                    message = f"is {weight.dtype} {list(weight.shape)}; this checkpoint makes it "
                    message += f"{source.dtype} {list(source.shape)}"
                elif making_of(source) != weight.making:
                    message = f"is listed as {weight.making}, and this checkpoint makes it by "
                    message += making_of(source)
                else:
                    pairs.append(_Pair(file, weight, source, rank))
                    continue
                findings.append(Finding.error("source-other", where, message, HINT))
    return findings, pairs


def making_of(source: Source) -> Making:
    """Return how a tensor is made, as export.json says it."""
    if not source.pieces:
        return "make"
    return "copy" if source.is_copy else "convert"


def _compare(folder: Path, inventory: Inventory, export: Export, pair: _Pair) -> list[Finding]:
    """Return a finding where a tensor is not what it is made of."""
    weight = pair.weight
    at = weight.offset
    with (folder / pair.file).open("rb") as file:
        if not pair.source.pieces:
            file.seek(at)
            there = _tensor(file.read(weight.nbytes), weight)
            return list(_compare_made(_made(inventory, export, pair), there, pair))
        for piece in pair.source.pieces:
            for first, rows in _expected(inventory, pair.source, piece):
                wanted = rows.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                file.seek(at)
                data = file.read(len(wanted))
                at += len(wanted)
                if data != wanted:
                    return [_difference(pair, piece, first, data, wanted)]
    return []


def _tensor(data: bytes, weight: Weight) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=TORCH[weight.dtype]).view(weight.shape)


def _difference(pair: _Pair, piece: Piece, first: int, data: bytes, wanted: bytes) -> Finding:
    """Return the finding about rows that differ, the first of them at row `first` of a piece."""
    at = next(n for n, (a, b) in enumerate(zip(data, wanted, strict=True)) if a != b)
    (begin, end), itemsize = piece.columns, TORCH[pair.weight.dtype].itemsize
    row, column = divmod(at // itemsize, end - begin)
    how = "copied from" if pair.source.is_copy else "converted from"
    place = f"row {first + row}, column {begin + column}"
    message = f"is not what is {how} {piece.info.where}: they differ at {place}"
    return Finding.error("source-differs", pair.where, message, HINT)


def _expected(inventory: Inventory, source: Source, piece: Piece) -> Iterator[tuple[int, Tensor]]:
    """Yield rows of a piece as the folder must have them, and the number of the first."""
    info, dtype = piece.info, TORCH[source.dtype]
    (first, last), (begin, end) = piece.rows, piece.columns
    block = 1 if piece.weight is not None else block_rows(inventory, info)
    for start, stop in slabs(first // block * block, last, block, columns(info) * 4):
        if source.is_copy:
            row = columns(info) * width(info)
            data = bytearray(inventory.checkpoint.read(info, start * row, stop * row))
            rows = torch.frombuffer(data, dtype=dtype).view(stop - start, -1)
        elif piece.weight is None:
            rows = restored_rows(inventory, info, start, stop)
        else:
            rows = _scales(inventory, piece.weight.name, start, stop)
        from_ = max(first - start, 0)
        yield start + from_, rows[from_:, begin:end].to(dtype)


def _scales(inventory: Inventory, weight: str, first: int, last: int) -> Tensor:
    """Return rows of the scales of a weight, as float32."""
    info, block = inventory.tensors[weight], inventory.storage[weight].block[0]
    data = read_scales(inventory, info, first * block, min(last * block, info.shape[0]))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(last - first, -1)


# ------------------------------------------------------------------------- without the checkpoint


def _made(inventory: Inventory, export: Export, pair: _Pair) -> Tensor:
    """Return a tensor that has no pieces: the map of a rank's experts, or a table of angles."""
    assert export.pool is not None
    if pair.weight.name.endswith(f".{MAP}"):
        held = Ranks(export.tp, export.ep).experts(pair.weight.shape[0], pair.rank)
        places = [held.index(e) if e in held else -1 for e in range(pair.weight.shape[0])]
        return torch.tensor(places, dtype=torch.int32)
    config = inventory.checkpoint.config
    architecture = replace(read_architecture(config), model=inventory.model)
    angles = rotary(architecture, torch.arange(export.pool.context_length))
    table: Tensor = getattr(angles, pair.weight.name.rpartition(".")[2])
    return table.float()


def _compare_made(wanted: Tensor, there: Tensor, pair: _Pair) -> Iterator[Finding]:
    """Yield how a tensor differs from the one that was made here.

    Another CPU or torch may round the base's powers otherwise. An ulp of a frequency, at most 2^-24
    as frequencies are below 1, moves the angle of the last position by that times positions; twice
    that for the product's rounding, and as much again to be safe.
    """
    if torch.equal(wanted, there):
        return
    difference = float((wanted.double() - there.double()).abs().max())
    bound = 0.0 if there.dtype == torch.int32 else 4 * len(there) * 2.0**-24
    message = f"differs from what is made here by up to {difference:.3g}"
    if difference <= bound:
        hint = "another CPU or torch rounds angles so; tensors of experts would not differ"
        yield Finding.warning("source-rounding", pair.where, message, hint)
    else:
        yield Finding.error("source-differs", pair.where, message, HINT)
