"""Shards for DeepSeek's own inference code against the checkpoint that they are slices of.

Which slices a rank has is read from `export.deepseek_inference`, as the exporter does: the files
are checked, not the layout, which a test holds to DeepSeek's own conversion. Takes no torch.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.header import read_header
from dstools_converters.checkpoint.inventory import require_sound, without_mtp
from dstools_converters.checkpoint.rows import width
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.deepseek_config import CONFIG_NAME
from dstools_converters.export.deepseek_inference import RankFile, plan_shards
from dstools_converters.export.folder import Export
from dstools_converters.verify.exported.pieces import (
    differences,
    differing,
    other,
    reshaped,
    stored,
    unmade,
)
from dstools_converters.verify.report import Results


def compare(
    folder: Path, export: Export, checkpoint: Checkpoint, results: Results, workers: int
) -> None:
    """Add to `results` which tensors of the shards of a folder are not those of a checkpoint.

    Raises DstoolsError for a checkpoint of which no such shards are made.
    """
    inventory = require_sound(checkpoint if export.has_mtp else without_mtp(checkpoint))
    plan = plan_shards(inventory, export.tp, mtp=export.has_mtp)
    if (folder / CONFIG_NAME).read_bytes() != plan.config:
        results.findings.append(other(CONFIG_NAME, "is not the one of this checkpoint"))
    with ThreadPoolExecutor(workers, "compare") as pool:
        found = pool.map(lambda file: list(_compare(folder, checkpoint, file)), plan.files)
        results.findings += chain.from_iterable(found)
    slices = [part for file in plan.files for part in file.slices]
    results.elements_compared = sum(part.piece.numel for part in slices)
    results.checked.append(f"{len(slices)} tensors against the checkpoint, byte by byte")


def _compare(folder: Path, checkpoint: Checkpoint, file: RankFile) -> Iterator[Finding]:
    """Yield where a file is not what is made of the checkpoint; each tensor at most once."""
    try:
        _, infos = read_header(folder, file.name)
    except DstoolsError as error:
        yield Finding.error("shard-unreadable", file.name, str(error), error.hint)
        return
    there = {info.name: info for info in infos}
    shard = os.open(folder / file.name, os.O_RDONLY)
    try:
        for target, piece in file.slices:
            where = f"{file.name}: {printable(target.name)}"
            info = there.pop(target.name, None)
            if info is None:
                yield other(where, "is missing from the file")
            elif (info.dtype, info.shape) != (target.dtype, target.shape):
                yield reshaped(where, info.dtype, info.shape, target.dtype, target.shape)
            else:
                rows = stored(checkpoint, piece)
                for place in differences(shard, info.offset, piece, width(info), rows):
                    yield differing(where, "copied", place)
    finally:
        os.close(shard)
    for name in there:
        yield unmade(f"{file.name}: {printable(name)}")
