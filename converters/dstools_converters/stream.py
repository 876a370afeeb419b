"""Run a plan: rows in, kernel, rows out, at places known beforehand.

A job is some rows of one tensor. It reads them in slabs that stay in a core's cache, and writes them in
pieces large enough for the page cache to take whole folios. Memory is workers times one job's buffers,
whatever the size of a tensor or shard; a very wide matrix (rows of w bytes) takes 3 x 128 x w a worker.
Which job runs when does not change a byte.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dstools_converters.inventory import Inventory
from dstools_converters.metadata import side_files
from dstools_converters.plan import Plan, ShardPlan, TensorPlan
from dstools_converters.rows import (
    dequantize_rows,
    memory,
    not_finite,
    read,
    read_rows,
    read_scales,
    require_finite,
    restore,
    slabs,
    width,
)
from dstools_converters.writer import Writer
from dstools_kernels import block_fp8

PIECE_BYTES = 4 << 20  # of output at a time: 4 MiB is written a fifth faster than 1 MiB, on ext4
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Report:
    """What a run did. `shards_resumed` were finished by an earlier run of the same plan."""

    out: str
    bytes_in: int
    bytes_out: int
    seconds: float
    tensors: dict[str, int]
    unknown_tensors: list[str]
    shards: int
    shards_resumed: int


def run(
    plan: Plan,
    out: Path,
    *,
    tool: str,
    workers: int,
    is_synced: bool = True,
    progress: Progress = lambda nbytes: None,
) -> Report:
    """Write the folder `out` as `plan` says; `progress` is told of input bytes as they are done.

    Raises DstoolsError for NaN or infinity in a weight, an input that changes meanwhile, a full disk,
    or an `out` that exists; what was finished stays, and the next run with the same plan goes on there.
    """
    start = time.perf_counter()
    files = side_files(plan, tool)
    resumed = 0
    with Writer(plan, out, is_synced=is_synced) as writer:
        if writer.is_published:
            writer.clean_up()
            resumed = len(plan.shards)
        else:
            resumed = len(writer.finished)
            with ThreadPoolExecutor(workers, "convert") as pool:
                for shard in plan.shards:
                    if shard.name in writer.finished:
                        progress(_bytes_in(shard))
                        continue
                    with writer.shard(shard) as file:
                        _fill(pool, plan, shard, file, progress)
            plan.inventory.checkpoint.check_unmoved()
            if plan.base is not None:
                plan.base.checkpoint.check_unmoved()
            writer.publish(files)
    return Report(
        out=str(out),
        bytes_in=plan.bytes_in,
        bytes_out=plan.bytes_out,
        seconds=time.perf_counter() - start,
        tensors={str(action): count for action, count in plan.counts.items()},
        unknown_tensors=[info.name for info in plan.inventory.unknown],
        shards=len(plan.shards),
        shards_resumed=resumed,
    )


def _bytes_in(shard: ShardPlan) -> int:
    return sum(tensor.source.nbytes for tensor in shard.tensors)


def _fill(
    pool: ThreadPoolExecutor, plan: Plan, shard: ShardPlan, file: int, progress: Progress
) -> None:
    """Do all jobs of a shard; the first error stops the rest."""
    jobs = [pool.submit(_do, plan, tensor, job, file) for tensor, job in _jobs(plan, shard)]
    try:
        for job in jobs:
            progress(job.result())
    except BaseException:
        for job in jobs:
            job.cancel()
        for job in jobs:
            if not job.cancelled():
                job.exception()  # wait: none may write after the descriptor is closed
        raise


def _jobs(plan: Plan, shard: ShardPlan) -> Iterator[tuple[TensorPlan, tuple[int, int]]]:
    """Yield (tensor, (begin, end)): rows of a matrix, bytes of a tensor that is copied."""
    for tensor in shard.tensors:
        nbytes = tensor.source.nbytes
        if tensor.action == "copy":
            for begin in range(0, max(nbytes, 1), PIECE_BYTES):
                yield tensor, (begin, min(begin + PIECE_BYTES, nbytes))
        elif tensor.action == "restore":
            yield tensor, (0, tensor.source.shape[0])  # equal to the base or not, as a whole
        else:
            rows, _ = tensor.source.shape
            step = _rows_a_piece(plan, tensor)
            for begin in range(0, rows, step):
                yield tensor, (begin, min(begin + step, rows))


def _rows_a_piece(plan: Plan, tensor: TensorPlan) -> int:
    """Return how many rows make a piece of output: whole rows of blocks, at least one."""
    block = _block_rows(plan)
    row_bytes = tensor.outputs[0].nbytes // max(tensor.source.shape[0], 1)
    return max(PIECE_BYTES // max(row_bytes, 1) // block, 1) * block


def _block_rows(plan: Plan) -> int:
    scheme = plan.scheme or plan.inventory.scheme
    assert scheme is not None
    return scheme.block_size[0]


def _do(plan: Plan, tensor: TensorPlan, span: tuple[int, int], file: int) -> int:
    """Do one job; return the input bytes it has dealt with."""
    begin, end = span
    if tensor.action == "copy":
        _copy(plan.inventory, tensor, begin, end, file)
        return end - begin
    if tensor.action == "dequantize":
        _dequantize(plan.inventory, tensor, begin, end, file)
    elif tensor.action == "restore" and _equals_base(plan, tensor):
        assert plan.base is not None
        original = replace(tensor, source=plan.base.tensors[tensor.source.name])
        for start in range(0, original.source.nbytes, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, original.source.nbytes)
            _copy(plan.base, original, start, stop, file)
    else:
        _quantize(plan, tensor, begin, end, file)
    return tensor.source.nbytes * (end - begin) // max(tensor.source.shape[0], 1)


def _quantize(plan: Plan, tensor: TensorPlan, begin: int, end: int, file: int) -> None:
    """Write codes and scales of rows [begin, end); FP8 in is restored to float32 first."""
    assert plan.scheme is not None
    info, cols, block = tensor.source, tensor.source.shape[1], plan.scheme.block_size[0]
    scale_row = -(-cols // plan.scheme.block_size[1]) * 4
    codes = memory.view("codes", (end - begin) * cols)
    scales = memory.view("scales out", -(-(end - begin) // block) * scale_row)
    for first, last in slabs(begin, end, block, cols * width(info)):
        if tensor.action == "requantize":
            weight, dtype = restore(plan.inventory, info, first, last), "F32"
        else:
            weight, dtype = read_rows(plan.inventory, info, first, last), info.dtype
        at = first - begin
        try:
            block_fp8.quantize(
                weight,
                dtype,  # type: ignore[arg-type]  # one of FLOATS, says the plan
                cols,
                codes[at * cols :],
                scales[at // block * scale_row :],
                plan.scheme.scale_format,
                block,
            )
        except block_fp8.NonFiniteError as error:
            raise not_finite(info, (first + error.row) * cols + error.col) from None
    _write(file, codes, tensor.outputs[0].offset + begin * cols)
    _write(file, scales, tensor.outputs[1].offset + begin // block * scale_row)


def _dequantize(inventory: Inventory, tensor: TensorPlan, begin: int, end: int, file: int) -> None:
    """Write rows [begin, end) in BF16."""
    row_bytes = tensor.source.shape[1] * 2
    values = memory.view("values", (end - begin) * row_bytes)
    assert inventory.scheme is not None
    for first, last in slabs(begin, end, inventory.scheme.block_size[0], row_bytes):
        piece = values[(first - begin) * row_bytes :]
        dequantize_rows(inventory, tensor.source, first, last, piece)
    _write(file, values, tensor.outputs[0].offset + begin * row_bytes)


def _equals_base(plan: Plan, tensor: TensorPlan) -> bool:
    """Tell whether the source is, bit for bit, what the base's codes and scales dequantize to."""
    assert plan.base is not None
    assert plan.base.scheme is not None
    original = plan.base.tensors[tensor.source.name]
    rows, cols = original.shape
    for first, last in slabs(0, rows, plan.base.scheme.block_size[0], cols * 2):
        values = memory.view("values", (last - first) * cols * 2)
        dequantize_rows(plan.base, original, first, last, values)
        # as bytes, since memoryviews are compared element by element
        if bytes(values) != bytes(read_rows(plan.inventory, tensor.source, first, last)):
            return False
    return True


def _copy(inventory: Inventory, tensor: TensorPlan, begin: int, end: int, file: int) -> None:
    """Copy bytes [begin, end); a float must be finite. The first piece takes the scale along, as F32."""
    info = tensor.source
    if begin == 0 and len(tensor.outputs) == 2:
        _write(file, read_scales(inventory, info, 0, info.shape[0]), tensor.outputs[1].offset)
    data = read(inventory, info, begin, end, "rows")
    if info.dtype in block_fp8.FINITE_DTYPES:
        require_finite(info, data, begin // width(info))
    _write(file, data, tensor.outputs[0].offset + begin)


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
