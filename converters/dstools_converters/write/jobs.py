"""Jobs: rows of a tensor in, a kernel, rows out, at offsets known from the plan.

A job is some rows of one tensor: its input mapped, one call of the kernel, one write large enough
for the page cache to take whole folios. An action that decides for a tensor as a whole is one job,
written in pieces.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.oddities import absurd_scales, large_weight, odd_magnitude
from dstools_converters.checkpoint.rows import (
    dequantize_rows,
    memory,
    not_finite,
    read_rows,
    read_scales,
    recover_tensor,
    require_finite,
    require_no_overflow,
    restore,
    unlike_dequantized,
    width,
)
from dstools_converters.checkpoint.zeros import is_weight
from dstools_converters.errors import Finding, merged
from dstools_converters.plan.layout import ShardPlan, TensorPlan
from dstools_converters.plan.plan import Plan
from dstools_converters.write.journal import Note
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import NON_FINITE_BITS

PIECE_BYTES = 4 << 20  # of output at a time: 4 MiB is written a fifth faster than 1 MiB, on ext4


@dataclass(frozen=True)
class Job:
    """Rows [begin, end) of a matrix, or bytes [begin, end) of a tensor that is copied."""

    number: int
    tensor: TensorPlan
    begin: int
    end: int

    @property
    def bytes_in(self) -> int:
        """Return the bytes of the source that it reads."""
        info = self.tensor.source
        if self.tensor.action == "copy":
            return self.end - self.begin
        return info.nbytes // max(info.shape[0], 1) * (self.end - self.begin)


def jobs_of(plan: Plan, shard: ShardPlan) -> Iterator[Job]:
    """Yield the jobs of a shard; the same plan gives the same jobs, which a journal relies on."""
    numbers = count()
    for tensor in shard.tensors:
        rows = tensor.source.shape[0] if tensor.source.shape else 1
        if tensor.action == "copy":
            end, step = max(tensor.source.nbytes, 1), PIECE_BYTES
        elif tensor.action in ("restore", "recover", "calibrate"):  # as a whole
            end, step = rows, max(rows, 1)
        else:
            end, step = rows, _rows_a_piece(plan, tensor)
        for begin in range(0, end, step):
            stop = min(begin + step, end)
            if tensor.action == "copy":
                stop = min(stop, tensor.source.nbytes)
            yield Job(next(numbers), tensor, begin, stop)


def _rows_a_piece(plan: Plan, tensor: TensorPlan) -> int:
    """Return how many rows make a job: whole rows of blocks, at least one."""
    source = plan.inventory.storage[tensor.source.name]
    block = math.lcm(source.block[0], tensor.target.block[0])
    row_bytes = tensor.target.parts[0].nbytes // max(tensor.source.shape[0], 1)
    if tensor.action == "requantize":
        row_bytes *= 4  # it goes through float32
    return max(PIECE_BYTES // max(row_bytes, 1) // block, 1) * block


def do(plan: Plan, job: Job, file: int) -> Note | None:
    """Write the output of a job; return a note for the journal, if any."""
    note, found = _do(plan, job, file)
    return note_of(job.tensor.source.name, note, found)


def note_of(tensor: str, note: Note, found: Iterable[Finding]) -> Note | None:
    """Return a note with what was found in a tensor, None where there is nothing to note."""
    warnings = [[finding.code, finding.where, finding.message] for finding in found]
    note = note | ({"warnings": warnings} if warnings else {})
    return {"tensor": tensor} | note if note else None


def warnings_of(notes: Iterable[Note]) -> list[Finding]:
    """Return what notes have of warnings, the first of a kind for a tensor."""
    first: dict[tuple[str, str], Finding] = {}
    for note in notes:
        for code, where, message in note.get("warnings", ()):
            first.setdefault((code, where), Finding.warning(code, where, message))
    return merged(first.values())


def _do(plan: Plan, job: Job, file: int) -> tuple[Note, list[Finding]]:
    """Write the output of a job; return what to note, and the odd values that passed through."""
    tensor, begin, end = job.tensor, job.begin, job.end
    if tensor.action == "copy":
        return {}, _copy(plan.inventory, tensor, begin, end, file)
    if tensor.action == "dequantize":
        return {}, _dequantize(plan.inventory, tensor, begin, end, file)
    found: list[Finding] = []
    if tensor.action == "restore" and _is_unchanged(plan, tensor):
        assert plan.base is not None
        original = tensor._replace(source=plan.base.tensors[tensor.source.name])
        for start in range(0, original.source.nbytes, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, original.source.nbytes)
            found += _copy(plan.base, original, start, stop, file)
        return {}, found
    if tensor.action == "recover" and _recover(plan, tensor, file, found):
        return {"recovered": True}, found
    step = _rows_a_piece(plan, tensor)
    for first in range(begin, end, step):
        found += _quantize(plan, tensor, first, min(first + step, end), file)
    return {}, found


def _quantize(plan: Plan, tensor: TensorPlan, begin: int, end: int, file: int) -> Iterator[Finding]:
    """Write codes and scales of rows [begin, end); FP8 in is restored to float32 first."""
    assert plan.scheme is not None
    info, cols = tensor.source, tensor.source.shape[1]
    block, block_cols = tensor.target.block
    scale_row = -(-cols // block_cols) * 4
    codes = memory.view("codes", (end - begin) * cols)
    scales = memory.view("scales", -(-(end - begin) // block) * scale_row)
    if tensor.action == "requantize":
        weight, dtype = restore(plan.inventory, info, begin, end), "F32"
    else:
        weight, dtype = read_rows(plan.inventory, info, begin, end), info.dtype
    try:
        block_fp8.quantize(
            weight,
            dtype,  # type: ignore[arg-type]  # one of FLOATS, says the plan
            cols,
            codes,
            scales,
            plan.scheme.scale_format,
            block,
        )
    except block_fp8.NonFiniteError as error:
        raise not_finite(info, (begin + error.row) * cols + error.col) from None
    to_codes, to_scales = tensor.target.parts
    write_at(file, codes, to_codes.offset + begin * cols)
    write_at(file, scales, to_scales.offset + begin // block * scale_row)
    return large_weight(info, scales)


def _recover(plan: Plan, tensor: TensorPlan, file: int, found: list[Finding]) -> bool:
    """Write the codes and scales that the source was made from; return False where it has none.

    Without, some may have been written; the caller overwrites them. `found` gets odd values.
    """
    assert plan.scheme is not None
    rows, cols = tensor.source.shape
    block, step = tensor.target.block[0], _rows_a_piece(plan, tensor)
    to_codes, to_scales = tensor.target.parts
    scale_row = -(-cols // block) * 4

    def write(first: int, codes: memoryview, scales: memoryview) -> None:
        write_at(file, codes, to_codes.offset + first * cols)
        write_at(file, scales, to_scales.offset + first // block * scale_row)
        found.extend(large_weight(tensor.source, scales))

    spans = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    powers_only = plan.scheme.scale_format == "ue8m0"
    return recover_tensor(
        plan.inventory, tensor.source, spans, block, write, powers_only=powers_only
    )


def _dequantize(
    inventory: Inventory, tensor: TensorPlan, begin: int, end: int, file: int
) -> list[Finding]:
    """Write rows [begin, end) in BF16."""
    info, row_bytes = tensor.source, tensor.source.shape[1] * 2
    values = memory.view("values", (end - begin) * row_bytes)
    scales = dequantize_rows(inventory, info, begin, end, values)
    write_at(file, values, tensor.target.parts[0].offset + begin * row_bytes)
    storage = inventory.storage[info.name]
    return list(absurd_scales(storage.scale, scales, begin // storage.block[0]))


def _is_unchanged(plan: Plan, tensor: TensorPlan) -> bool:
    """Return whether the base's codes and scales dequantize to the source, bit for bit."""
    assert plan.base is not None
    original = plan.base.tensors[tensor.source.name]
    return unlike_dequantized(plan.base, original, plan.inventory, tensor.source) is None


def _copy(
    inventory: Inventory, tensor: TensorPlan, begin: int, end: int, file: int
) -> list[Finding]:
    """Copy bytes [begin, end); floats must be finite. The first piece copies scales, as F32."""
    info, target = tensor.source, tensor.target
    found: list[Finding] = []
    if begin == 0 and target.is_quantized:
        scales = read_scales(inventory, info, 0, info.shape[0])
        require_no_overflow(inventory, info, scales)
        write_at(file, scales, target.scale.offset)
        found += absurd_scales(inventory.storage[info.name].scale, scales)
    data = inventory.checkpoint.read(info, begin, end)
    if info.dtype in NON_FINITE_BITS:
        largest = require_finite(info, data, begin // width(info))
        found += odd_magnitude(info, largest, is_weight=is_weight(inventory, info))
    write_at(file, data, target.parts[0].offset + begin)
    return found


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data` to a file, starting at `offset`."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
