"""Hold every element of a checkpoint to the source that it was made from."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    Progress,
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
from dstools_converters.sidefiles.calibration import WeightNote, is_kv_scale
from dstools_converters.sidefiles.carried import carried_files
from dstools_converters.sidefiles.manifest import Manifest, read_manifest
from dstools_converters.verify.calibrated import compare_calibrated, read_proven
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import Dtype, ScaleFormat


def check_against(
    made: Inventory, source: Inventory, workers: int, progress: Progress
) -> tuple[list[Finding], int]:
    """Return what differs from the source beyond rounding, and how many elements were compared."""
    findings = [*_check_config(made, source), *_check_side_files(made, source)]
    pairs = []
    ours = {info.name: info for info, _ in made.weights()}
    for info, parsed in source.weights():
        mine = ours.pop(info.name, None)
        if mine is None and made.scheme is None and parsed and parsed.role == "kv_cache":
            continue  # it is of the FP8 that went
        if mine is None:
            findings.append(
                Finding.error("lost", printable(info.name), "is in the source and not in here")
            )
        elif mine.shape != info.shape:
            findings.append(
                Finding.error(
                    "shape", mine.where, f"is {list(mine.shape)}, source {list(info.shape)}"
                )
            )
        else:
            pairs.append((mine, info))
    manifest = read_manifest(made.checkpoint.folder)
    findings += [
        Finding.error("added", info.where, "is not in the source")
        for info in ours.values()
        if not is_kv_scale(made, info)
    ]
    notes = _read_notes(made)
    if notes is None:  # which weights are calibrated is not known: nothing is said of any
        pairs = [(mine, info) for mine, info in pairs if not made.is_quantized(mine)]
        notes = {}
    with ThreadPoolExecutor(workers, "verify") as pool:
        each = pool.map(
            lambda pair: _compare_tensor(
                made, pair[0], source, pair[1], manifest, notes.get(pair[0].name)
            ),
            pairs,
        )
        for finding, (_, info) in zip(each, pairs, strict=True):
            findings += [finding] if finding else []
            progress(info.nbytes)
    return findings, sum(info.numel for _, info in pairs)


def _read_notes(made: Inventory) -> dict[str, WeightNote] | None:
    """Return the notes of calibrated weights, None where they are lost; see check_calibration."""
    try:
        calibration = read_proven(made)
    except DstoolsError:
        return None
    return calibration.tensors if calibration else {}


def _compare_tensor(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    manifest: Manifest | None,
    note: WeightNote | None,
) -> Finding | None:
    """Return how a tensor differs from the source: in a byte, or by more than rounding explains."""
    is_mine_fp8, is_fp8 = made.is_quantized(mine), source.is_quantized(info)
    try:
        if note is not None and is_mine_fp8:
            assert made.scheme is not None
            written = manifest.scale_fmt if manifest else None
            scale_format = written or made.scheme.scale_format
            return compare_calibrated(made, mine, source, info, note, scale_format)
        if is_mine_fp8 and (is_fp8 or info.dtype in FLOATS):
            found = _compare_codes(made, mine, source, info)
            return found or _compare_scales(made, mine, source, info, manifest)
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
    """Hold every code to its bound: half a step of the FP8 grid around the source's weight."""
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
    """Compare to the bit the scales that we made: the bound of the codes leaves room in their last bits.

    Copied codes keep the source's scales; codes of our own have those that the source's amax gives.
    What was recovered has the scales that recovering gives, and is the source to the bit. With --base
    some are the base's, and nothing is said of them.
    """
    block = made.storage[mine.name].block[0]
    scale_format = manifest.scale_fmt if manifest else None
    if manifest and mine.name in manifest.recovered_weights and info.dtype == "BF16":
        span = unlike_dequantized(made, mine, source, info)
        if span is not None:
            return Finding.error(
                "bytes-differ",
                mine.where,
                f"is not the source to the bit, within rows {span[0]} to {span[1] - 1}, "
                "though manifest.json says that it was recovered",
                "quantize again",
            )
        is_ue8m0 = scale_format == "ue8m0"
        wanted: bytes | None = _recovered_scales(source, info, block, is_ue8m0=is_ue8m0)
    elif source.scheme is not None and source.is_quantized(info):
        is_copied = (source.scheme.scale_format, scale_format) != ("float32", "ue8m0")
        scales = read_scales(source, info, 0, info.shape[0])
        wanted = bytes(scales) if manifest and is_copied else None
    elif manifest is None or manifest.has_foreign_scales or scale_format is None:
        wanted = None
    else:
        wanted = _scales_of(source, info, scale_format, block)
    if wanted is None or wanted == bytes(read_scales(made, mine, 0, mine.shape[0])):
        return None
    return Finding.error(
        "bytes-differ",
        made.storage[mine.name].scale.where,
        "is not what the source's weights or scales give",
        "the scales are damaged; convert again",
    )


def _scales_of(source: Inventory, info: TensorInfo, scale_format: ScaleFormat, block: int) -> bytes:
    """Return the scales that quantizing the source gives."""
    rows, cols = info.shape
    scale_row = -(-cols // block) * 4
    found = b""
    for first, last in slabs(0, rows, block, cols * width(info)):
        codes = memory.view("codes", (last - first) * cols)
        scales = memory.view("scales", -(-(last - first) // block) * scale_row)
        weight = read_rows(source, info, first, last)
        dtype: Dtype = info.dtype  # type: ignore[assignment]  # one of FLOATS
        block_fp8.quantize(weight, dtype, cols, codes, scales, scale_format, block)
        found += bytes(scales)
    return found


def _recovered_scales(source: Inventory, info: TensorInfo, block: int, *, is_ue8m0: bool) -> bytes:
    """Return the scales that recovering the source gives; of nothing, where it cannot be."""
    rows, cols = info.shape
    found: dict[int, bytes] = {}

    def take(first: int, codes: memoryview, scales: memoryview) -> None:
        found[first] = bytes(scales)

    spans = list(slabs(0, rows, block, cols * width(info)))
    is_whole = recover_tensor(source, info, spans, block, take, powers_only=is_ue8m0)
    return b"".join(found.values()) if is_whole else b""


def _compare_dequantized(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Compare BF16 to the bit with what the source's codes and scales give."""
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
    config, wanted = made.checkpoint.config, source.checkpoint.config
    for key in sorted((config.keys() | wanted.keys()) - {"quantization_config"}):
        if config.get(key) != wanted.get(key):
            yield Finding.warning("config-differs", "config.json", f"{key} is not the source's")


def _check_side_files(made: Inventory, source: Inventory) -> Iterator[Finding]:
    for name, path in carried_files(source.checkpoint.folder).items():
        mine = made.checkpoint.folder / name
        if not mine.is_file():
            yield Finding.warning("file-missing", printable(name), "did not travel along")
        elif mine.read_bytes() != path.read_bytes():
            yield Finding.warning("file-differs", printable(name), "is not the source's")
