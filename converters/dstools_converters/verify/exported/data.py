"""The weights of an exported folder: each tensor at its place and with its sha256, zeros between.

A tensor is hashed by itself, so that a flipped byte is named by file and tensor, and tensors of one
file are read in parallel. A file whose own hash is wanted, too, is read once, in order.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import NamedTuple

from dstools_converters.checkpoint.header import ITEM_BITS, read_header
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, Finding, printable, size
from dstools_converters.export.folder import EXPORT, Weight
from dstools_converters.verify.hashes import FileHash, Hashing

PIECE_BYTES = 4 << 20  # read at a time
AGAIN = "copy or download the file again"
MADE_AGAIN = "export the model again"


class Span(NamedTuple):
    """Bytes [begin, end) of a file: a tensor, or what is in front of one."""

    begin: int
    end: int
    weight: Weight | None
    before: str = ""  # of a gap, the tensor that follows; "" for a header


class _Job(NamedTuple):
    """Spans of a file that one thread reads in order."""

    path: Path
    name: str
    spans: list[Span]
    whole: FileHash | None  # to be updated with every byte


def check_places(path: Path, name: str, weights: tuple[Weight, ...]) -> Iterator[Finding]:
    """Yield what is wrong with the places of a file's tensors; no tensor is read."""
    seen: set[str] = set()
    end, last = 0, ""
    held = path.stat().st_size
    for weight in sorted(weights, key=lambda weight: (weight.offset, weight.nbytes)):
        where = f"{name}: {printable(weight.name)}"
        bits = prod(weight.shape) * ITEM_BITS[weight.dtype]
        if weight.name in seen:
            yield Finding.error("weight-twice", where, "is listed twice", MADE_AGAIN)
        if bits != 8 * weight.nbytes:
            message = f"is {weight.dtype} {list(weight.shape)}, and takes {weight.nbytes} bytes"
            yield Finding.error("weight-size", where, message, MADE_AGAIN)
        if weight.offset < end:
            message = f"begins at {weight.offset}, inside of {printable(last)}, which ends at {end}"
            yield Finding.error("weight-overlap", where, message, MADE_AGAIN)
        if weight.offset + weight.nbytes > held:
            message = f"ends at {weight.offset + weight.nbytes}, and the file at {held}"
            yield Finding.error("weight-outside", where, message, AGAIN)
        seen.add(weight.name)
        if weight.offset + weight.nbytes > end:
            end, last = weight.offset + weight.nbytes, weight.name
    if held > end:
        message = f"has {size(held)}, {held - end} bytes more than its tensors take"
        yield Finding.error("data-surplus", name, message, AGAIN)
    if path.suffix == ".safetensors":
        yield from _check_header(path, name, weights)


def _check_header(path: Path, name: str, weights: tuple[Weight, ...]) -> Iterator[Finding]:
    """Yield where the header of a .safetensors file and export.json contradict each other."""
    try:
        _, infos = read_header(path.parent, path.name)
    except DstoolsError as error:
        yield Finding.error("shard-unreadable", name, str(error), error.hint)
        return
    there = {info.name: (info.dtype, info.shape, info.offset) for info in infos}
    for weight in weights:
        wanted = (weight.dtype, weight.shape, weight.offset)
        if there.pop(weight.name, None) != wanted:
            message = f"is not in the header as {EXPORT} lists it"
            where = f"{name}: {printable(weight.name)}"
            yield Finding.error("weight-header", where, message, MADE_AGAIN)
    for other in there:
        message = f"is in the header, and {EXPORT} does not list it"
        yield Finding.error("weight-header", f"{name}: {printable(other)}", message, MADE_AGAIN)


def read_files(
    folder: Path,
    files: Mapping[str, tuple[Weight, ...]],
    hashing: Hashing,
    workers: int,
    progress: Progress,
) -> list[Finding]:
    """Read files whose tensors are at sound places; return which differ from their sha256.

    A file that waits in `hashing` is hashed whole by the same read.
    """
    jobs: list[_Job] = []
    for name, weights in files.items():
        spans = list(_spans(name, weights))
        if name in hashing.waiting:
            jobs.append(_Job(folder / name, name, spans, hashing.begin(name)))
        else:
            jobs += [_Job(folder / name, name, [span], None) for span in spans]
    findings: list[Finding] = []
    with ThreadPoolExecutor(workers, "verify") as pool:
        for found in pool.map(lambda job: list(_read(job, progress)), jobs):
            findings += found
    for job in jobs:
        if job.whole is not None:
            hashing.end(job.whole)
    return findings


def _spans(name: str, weights: Iterable[Weight]) -> Iterator[Span]:
    end = 0
    is_header = name.endswith(".safetensors")
    for weight in sorted(weights, key=lambda weight: weight.offset):
        if weight.offset > end:
            yield Span(end, weight.offset, None, "" if is_header else weight.name)
        end, is_header = weight.offset + weight.nbytes, False
        yield Span(weight.offset, end, weight)


def _read(job: _Job, progress: Progress) -> Iterator[Finding]:
    """Read spans in order; yield those that differ from their hash, and gaps with bytes in them."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with job.path.open("rb", buffering=0) as file:
        for span in job.spans:
            digest, is_zero = sha256(), True
            for piece in _pieces(job.path, file.fileno(), span, buffer):
                digest.update(piece)
                if job.whole is not None:
                    job.whole.update(piece)
                if span.before:
                    is_zero = is_zero and not any(piece)
                progress(len(piece))
            if span.weight is not None and digest.hexdigest() != span.weight.sha256:
                where = f"{job.name}: {printable(span.weight.name)}"
                message = f"its bytes differ from the sha256 in {EXPORT}"
                yield Finding.error("weight-differs", where, message, AGAIN)
            if not is_zero:
                where = f"{job.name}: {printable(span.before)}"
                message = f"bytes {span.begin} to {span.end}, in front of it, are not zeros"
                yield Finding.error("gap", where, message, AGAIN)


def _pieces(path: Path, file: int, span: Span, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a span; raise DstoolsError where the disk does not give them."""
    at = span.begin
    while at < span.end:
        try:
            count = os.preadv(file, [buffer[: span.end - at]], at)
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror})"
            raise DstoolsError(message, "check the disk or mount") from error
        if not count:
            raise DstoolsError(f"{path}: was cut short meanwhile", AGAIN)
        yield buffer[:count]
        at += count
