"""The graphs' weights of an exported folder against the checkpoint that they were made from.

Which bytes of the checkpoint make a tensor is read from `export.sources`, as the exporter does: the
files are checked, not that definition, which ONNX Runtime's logits are held to. A tensor that was
copied must equal the checkpoint byte by byte; one that was converted, the checkpoint's numbers as
float32, rounded once; one that needs no checkpoint, angles or the map of experts, is made again.
Imports torch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding, printable
from dstools_converters.export.data import widened
from dstools_converters.export.folder import (
    DATA,
    EXPERTS,
    Dtype,
    Export,
    Making,
    Weight,
    rank_folders,
)
from dstools_converters.export.graph import Form
from dstools_converters.export.ranges import Piece
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.sources import TORCH, Source, made, sources
from dstools_converters.runtime.weights import coded_names, sound_inventory
from dstools_converters.verify.exported.pieces import (
    HINT,
    Rows,
    differences,
    differing,
    other,
    reshaped,
    stored,
    unmade,
)
from dstools_converters.verify.report import Results

WORDS: dict[Making, str] = {
    "copy": "{} tensors against the checkpoint, byte by byte",
    "convert": "{} converted tensors against the checkpoint's numbers, rounded",
    "make": "{} tensors made anew (angles, maps of experts)",
}


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


def compare(
    folder: Path, export: Export, checkpoint: Checkpoint, results: Results, workers: int
) -> None:
    """Add to `results` which tensors of a folder are not those of a checkpoint.

    The places of all tensors are sound; those that are not what their sha256 says are left out.
    Raises DstoolsError for a checkpoint that is not sound.
    """
    inventory = sound_inventory(checkpoint, export.has_mtp)
    form = _form(inventory, export)
    known = {finding.where for finding in results.findings if finding.code == "weight-differs"}
    pairs = [p for p in _pairs(inventory, form, export, results.findings) if p.where not in known]
    with ThreadPoolExecutor(workers, "compare") as pool:
        found = pool.map(lambda pair: list(_compare(folder, inventory, form, pair)), pairs)
        results.findings += chain.from_iterable(found)
    counts = Counter(pair.source.making for pair in pairs)
    results.checked += [w.format(counts[making]) for making, w in WORDS.items() if counts[making]]
    results.elements_compared = sum(pair.source.numel for pair in pairs)


def _form(inventory: Inventory, export: Export) -> Form:
    """Return the form that a folder was exported in."""
    assert export.pool is not None
    return Form(
        getattr(torch, export.dtype),
        export.pool.context_length,
        export.pool.page_size,
        coded_names(inventory),
        Ranks(export.tp, export.ep),
        export.expert_inputs,
    )


def _pairs(
    inventory: Inventory, form: Form, export: Export, findings: list[Finding]
) -> Iterator[_Pair]:
    """Yield the tensors that can be compared; add a finding for each that cannot."""
    for rank, place in enumerate(rank_folders(form.ranks.count)):
        made_of = sources(inventory, form, rank)
        for file in (f"{place}{DATA}", f"{place}{EXPERTS}"):
            for weight in export.weights.get(file, ()):
                source = made_of.get(weight.name)
                where = f"{file}: {printable(weight.name)}"
                if source is None:
                    findings.append(unmade(where))
                elif (source.shape, source.dtype) != (weight.shape, weight.dtype):
                    found = reshaped(where, weight.dtype, weight.shape, source.dtype, source.shape)
                    findings.append(found)
                elif source.making != weight.making:
                    message = f"is listed as {weight.making}, and this checkpoint makes it by "
                    findings.append(other(where, message + source.making))
                else:
                    yield _Pair(file, weight, source, rank)


def _compare(folder: Path, inventory: Inventory, form: Form, pair: _Pair) -> Iterator[Finding]:
    """Yield a finding where a tensor is not what it is made of."""
    weight, source = pair.weight, pair.source
    itemsize, at = TORCH[weight.dtype].itemsize, weight.offset
    with (folder / pair.file).open("rb") as file:
        if not source.pieces:
            file.seek(at)
            data = bytearray(file.read(weight.nbytes))
            there = torch.frombuffer(data, dtype=TORCH[weight.dtype]).view(weight.shape)
            wanted = made(inventory, form, pair.rank, weight.name)
            yield from _compare_made(wanted, there, pair.where)
        for piece in source.pieces:
            rows: Iterable[tuple[int, Rows]]
            if source.is_copy:
                rows = stored(inventory.checkpoint, piece)
            else:
                rows = _converted(inventory, piece, source.dtype)
            for place in differences(file.fileno(), at, piece, itemsize, rows):
                yield differing(pair.where, "copied" if source.is_copy else "converted", place)
                return
            at += piece.numel * itemsize


def _converted(inventory: Inventory, piece: Piece, dtype: Dtype) -> Iterator[tuple[int, Rows]]:
    """Yield the rows of a piece in another dtype, in slabs with the number of the first."""
    for first, rows in widened(inventory, piece):
        values = rows.to(TORCH[dtype]).contiguous()
        yield first, values.view(torch.uint8).numpy()


def _compare_made(wanted: Tensor, there: Tensor, where: str) -> Iterator[Finding]:
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
        yield Finding.warning("source-rounding", where, message, hint)
    else:
        yield Finding.error("source-differs", where, message, HINT)
