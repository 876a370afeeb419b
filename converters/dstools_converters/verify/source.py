"""Compare every element of a checkpoint with the source that it was made from."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dstools_converters.checkpoint.config import sound_config
from dstools_converters.checkpoint.folder import Checkpoint, scan
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    block_rows,
    columns,
    memory,
    read_rows,
    read_scales,
    recover_tensor,
    restore,
    slabs,
    unlike_dequantized,
    width,
)
from dstools_converters.checkpoint.storage import FLOATS
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.plan.plan import is_left_out
from dstools_converters.sidefiles.calibration import WeightNote, is_kv_scale
from dstools_converters.sidefiles.carried import carried, carried_files
from dstools_converters.sidefiles.manifest import MANIFEST, Manifest
from dstools_converters.verify.calibrated import compare_calibrated
from dstools_converters.verify.hashes import Hashing
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import Dtype, ScaleFormat


def open_source(source: Path) -> Checkpoint:
    """Return the checkpoint of --source; raises DstoolsError where it cannot be read."""
    checkpoint, findings = scan(source)
    for finding in findings:
        if finding.level == "error":
            raise DstoolsError(f"--source {finding.where}: {finding.message}", finding.hint)
    return checkpoint


def check_against(
    made: Inventory,
    source: Inventory,
    manifest: Manifest | None,
    notes: Mapping[str, WeightNote] | None,
    workers: int,
    hashing: Hashing,
) -> tuple[list[Finding], int]:
    """Return what differs from the source beyond rounding, and how many elements were compared.

    `notes` None: it is not known which weights are calibrated, so no quantized one is compared.
    A shard that waits to be hashed is hashed while its tensors are compared, then comes the next:
    with room for a shard in the page cache, the disk is read once.
    """
    findings = [*_check_config(made, source), *_check_carried(made, source)]
    unpaired, pairs = _pair_up(made, source)
    findings += unpaired
    if notes is None:
        pairs = [(mine, info) for mine, info in pairs if not made.is_quantized(mine)]
        notes = {}
    groups: dict[str, list[tuple[TensorInfo, TensorInfo]]] = {}
    for mine, info in pairs:
        shard = mine.shard if mine.shard in hashing.waiting else ""
        groups.setdefault(shard, []).append((mine, info))
    with ThreadPoolExecutor(workers, "verify") as pool:
        for shard, group in groups.items():
            hashed = pool.submit(hashing.hash, shard, lambda nbytes: None)  # a look counts them
            compared = pool.map(
                lambda pair: _compare_tensor(made, pair[0], source, pair[1], manifest, notes), group
            )
            findings += [finding for finding in compared if finding is not None]
            hashed.result()
    return findings, sum(info.numel for _, info in pairs)


def _pair_up(
    made: Inventory, source: Inventory
) -> tuple[list[Finding], list[tuple[TensorInfo, TensorInfo]]]:
    """Return tensors that only one side has or that differ in shape, and pairs of the others."""
    findings, pairs = [], []
    ours = {info.name: info for info, _ in made.weights()}
    for info, parsed in source.weights():
        mine = ours.pop(info.name, None)
        if mine is None and parsed is not None and is_left_out(parsed, made.scheme):
            continue
        if mine is None:
            where = printable(info.name)
            findings.append(Finding.error("lost", where, "is in the source, but not here"))
        elif mine.shape != info.shape:
            message = f"is {list(mine.shape)}, source {list(info.shape)}"
            findings.append(Finding.error("shape", mine.where, message))
        else:
            pairs.append((mine, info))
    findings += [
        Finding.error("added", info.where, "is not in the source")
        for info in ours.values()
        if not is_kv_scale(made, info)
    ]
    return findings, pairs


def _compare_tensor(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    manifest: Manifest | None,
    notes: Mapping[str, WeightNote],
) -> Finding | None:
    """Return how a tensor differs from the source: in a byte, or by more than rounding explains."""
    note = notes.get(mine.name)
    is_mine_fp8, is_fp8 = made.is_quantized(mine), source.is_quantized(info)
    try:
        if note is not None and is_mine_fp8:
            assert made.scheme is not None
            written = manifest.scale_fmt if manifest else None
            scale_format = written or made.scheme.scale_format
            return compare_calibrated(made, mine, source, info, note, scale_format)
        if is_mine_fp8 and (is_fp8 or info.dtype in FLOATS):
            return _compare_codes(made, mine, source, info) or _compare_scales(
                made, mine, source, info, manifest
            )
        if is_fp8 and mine.dtype == "BF16":
            return _compare_dequantized(made, mine, source, info)
        if mine.dtype != info.dtype:
            return Finding.error("dtype", mine.where, f"is {mine.dtype}, the source {info.dtype}")
        return _compare_bytes(made, mine, source, info)
    except DstoolsError as error:  # NaN, or a read that failed
        return Finding.error("not-compared", mine.where, str(error), error.hint)


def _compare_bytes(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    step = 1 << 20
    for begin in range(0, info.nbytes, step):
        end = min(begin + step, info.nbytes)
        a = bytes(made.checkpoint.read(mine, begin, end))
        b = bytes(source.checkpoint.read(info, begin, end))
        if a != b:
            first = next(i for i in range(len(a)) if a[i] != b[i])
            element = (begin + first) // max(width(info), 1)
            return Finding.error(
                "bytes-differ",
                mine.where,
                f"is not the source's, first at element {list(divmod(element, columns(info)))}",
                "it should have been copied; convert again",
            )
    return None


def _compare_codes(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Check that every code is within half a step of the FP8 grid of the source's weight."""
    rows, cols = mine.shape
    block = math.lcm(block_rows(made, mine), block_rows(source, info))
    count, first_at = 0, -1
    for first, last in slabs(0, rows, block, cols * 4):
        weight = restore(source, info, first, last)
        codes = read_rows(made, mine, first, last)
        scales = read_scales(made, mine, first, last)
        outside, at = block_fp8.outside_bound(
            weight, codes, cols, scales, made.storage[mine.name].block
        )
        if outside and not count:
            first_at = first * cols + at
        count += outside
    if not count:
        return None
    return Finding.error(
        "outside-bound",
        mine.where,
        f"{count} of {rows * cols} elements are not the source's rounded to FP8, first at "
        f"{list(divmod(first_at, cols))}",
        "codes or scales are damaged, or of another checkpoint; quantize again",
    )


def _compare_scales(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    manifest: Manifest | None,
) -> Finding | None:
    """Compare scales bit for bit: with other last bits, codes would still be within bounds.

    Weights that were recovered must restore the source bit for bit, too.
    """
    if manifest and mine.name in manifest.recovered_weights and info.dtype == "BF16":
        span = unlike_dequantized(made, mine, source, info)
        if span is not None:
            return Finding.error(
                "bytes-differ",
                mine.where,
                f"is not the source to the bit, within rows {span[0]} to {span[1] - 1}, "
                f"though {MANIFEST} says that it was recovered",
                "quantize again",
            )
    wanted = _wanted_scales(source, info, made.storage[mine.name].block[0], manifest)
    if wanted is None or wanted == bytes(read_scales(made, mine, 0, mine.shape[0])):
        return None
    return Finding.error(
        "bytes-differ",
        made.storage[mine.name].scale.where,
        "does not follow from the source's weights or scales",
        "the scales are damaged; convert again",
    )


def _wanted_scales(
    source: Inventory, info: TensorInfo, block: int, manifest: Manifest | None
) -> bytes | None:
    """Return the scales that dstools writes for a weight of the source, None if unknown.

    Copied codes have the source's scales, recovered ones those that recovering gives, all others
    those of the source's amax. With --base, scales may be the base's, which is not at hand.
    """
    if manifest is None:
        return None
    if info.name in manifest.recovered_weights and info.dtype == "BF16":
        return _recovered_scales(source, info, block, is_ue8m0=manifest.scale_fmt == "ue8m0")
    if source.scheme is not None and source.is_quantized(info):
        is_copied = (source.scheme.scale_format, manifest.scale_fmt) != ("float32", "ue8m0")
        return bytes(read_scales(source, info, 0, info.shape[0])) if is_copied else None
    if manifest.has_foreign_scales or manifest.scale_fmt is None:
        return None
    return _scales_of(source, info, manifest.scale_fmt, block)


def _scales_of(source: Inventory, info: TensorInfo, scale_format: ScaleFormat, block: int) -> bytes:
    """Return the scales that quantizing the source makes."""
    rows, cols = info.shape
    scale_row = -(-cols // block) * 4
    wanted = b""
    for first, last in slabs(0, rows, block, cols * width(info)):
        codes = memory.view("codes", (last - first) * cols)
        scales = memory.view("scales", -(-(last - first) // block) * scale_row)
        weight = read_rows(source, info, first, last)
        dtype: Dtype = info.dtype  # type: ignore[assignment]  # one of FLOATS
        block_fp8.quantize(weight, dtype, cols, codes, scales, scale_format, block)
        wanted += bytes(scales)
    return wanted


def _recovered_scales(source: Inventory, info: TensorInfo, block: int, *, is_ue8m0: bool) -> bytes:
    """Return the scales that recovering the source gives, b"" where it cannot be recovered."""
    rows, cols = info.shape
    pieces: dict[int, bytes] = {}

    def take(first: int, codes: memoryview, scales: memoryview) -> None:
        pieces[first] = bytes(scales)

    spans = list(slabs(0, rows, block, cols * width(info)))
    is_whole = recover_tensor(source, info, spans, block, take, powers_only=is_ue8m0)
    return b"".join(pieces.values()) if is_whole else b""


def _compare_dequantized(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Compare BF16 bit for bit with the dequantized source."""
    span = unlike_dequantized(source, info, made, mine)
    if span is None:
        return None
    return Finding.error(
        "bytes-differ",
        mine.where,
        f"is not code times scale of the source, within rows {span[0]} to {span[1] - 1}",
        "dequantize again",
    )


def _check_config(made: Inventory, source: Inventory) -> Iterator[Finding]:
    """Yield where the config is neither the source's nor what dstools makes of that."""
    config, wanted = made.checkpoint.config, source.checkpoint.config
    sound = sound_config(source.checkpoint)
    for key in sorted((config.keys() | wanted.keys()) - {"quantization_config"}):
        if config.get(key) not in (wanted.get(key), sound.get(key)):
            yield Finding.warning("config-differs", "config.json", f"{key} is not the source's")


def _check_carried(made: Inventory, source: Inventory) -> Iterator[Finding]:
    for name, path in carried_files(source.checkpoint.folder).items():
        mine = made.checkpoint.folder / name
        if not mine.is_file():
            yield Finding.warning("file-missing", printable(name), "was not copied from the source")
        elif mine.read_bytes() not in (path.read_bytes(), carried(path)):
            yield Finding.warning("file-differs", printable(name), "is not the source's")
