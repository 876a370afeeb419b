"""Hold a calibrated tensor to what was noted of it when it was made, and to its source.

Plain rounding has a bound for each element; a calibrated weight strays from it by design, here and
there by more than one step of the FP8 grid. So what can be proven is another thing: the bytes are those
that were written (their sha256), the scales are such as the method makes, and how far the codes stray
from the source's weights is, to the last element, what the calibration said.
"""

import math
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    block_rows,
    memory,
    read_rows,
    read_scales,
    restore,
    slabs,
    unlike_dequantized,
)
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.sidefiles.calibration import (
    CALIBRATION,
    Calibration,
    WeightNote,
    is_kv_scale,
    kv_scales,
    read_calibration,
)
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD
from dstools_converters.sidefiles.manifest import MANIFEST, read_manifest, require_digest
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import SEARCHED, ScaleFormat

# What no calibration of real weights came near: GPTQ makes the error of a weight 1.1 to 1.5 times as
# large, and 2 to 12 % of its codes move by more than a step.
MOST_STRAY = 4.0
MOST_FAR = 0.5
ERROR_TOLERANCE = 1e-9  # of sums of squares in double, added in another order


def check_calibration(made: Inventory) -> Iterator[Finding]:
    """Yield where the files that a calibration left are not those it wrote; needs no source."""
    folder = made.checkpoint.folder
    try:
        calibration = read_proven(made)
        manifest = read_manifest(folder)
        require_digest(folder, EXPERT_LOAD, manifest.expert_load if manifest else None)
    except DstoolsError as error:
        where, _, message = str(error).partition(": ")
        yield Finding.error(
            "calibration", where, f"{message}; calibrated weights are not compared", error.hint
        )
        return
    amax = calibration.layer_amax() if calibration else {}
    for spelled, name in made.names.items():
        info = made.tensors[spelled]
        if name is None or not is_kv_scale(made, info) or info.shape != (1,):
            continue
        wanted = kv_scales({spelled: name}, amax)[spelled].tobytes()
        if info.dtype != "F32" or bytes(made.checkpoint.read(info, 0, info.nbytes)) != wanted:
            yield Finding.error(
                "bytes-differ",
                info.where,
                f"is not the largest value that {CALIBRATION} has of layer {name.layer}, over 448",
                "the scale is damaged; quantize again",
            )


def read_proven(made: Inventory) -> Calibration | None:
    """Return calibration.json where the manifest has its digest, None where nothing was calibrated.

    Raises DstoolsError where it is lost: where it is another file, or the manifest is missing.
    """
    folder = made.checkpoint.folder
    manifest = read_manifest(folder)
    if manifest is None and (folder / CALIBRATION).exists():
        raise DstoolsError(
            f"{MANIFEST}: is missing or damaged, and without it {CALIBRATION} cannot be relied on",
            "restore it, or quantize again",
        )
    if require_digest(folder, CALIBRATION, manifest.calibration if manifest else None) is None:
        return None
    return read_calibration(folder, made)


def compare_calibrated(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    note: WeightNote,
    scale_format: ScaleFormat,
) -> Finding | None:
    """Return how a tensor is not what its note says. Raises DstoolsError for NaN in it.

    `scale_format` is that of the scales that were made here: compressed-tensors does not tell.
    """
    digest = sha256()
    digest.update(read_rows(made, mine, 0, mine.shape[0]))
    digest.update(read_scales(made, mine, 0, mine.shape[0]))
    if digest.hexdigest() != note.sha256:
        return Finding.error(
            "bytes-differ",
            mine.where,
            f"codes or scales are not those that {CALIBRATION} was written with",
            "they are damaged; quantize again",
        )
    if note.method == "lossless":
        span = unlike_dequantized(made, mine, source, info)
        if span is None:
            return None
        return Finding.error(
            "bytes-differ",
            mine.where,
            f"is not the source to the bit, within rows {span[0]} to {span[1] - 1}, though "
            f"{CALIBRATION} says so",
            "quantize again",
        )
    return _compare_error(made, mine, source, info, note, scale_format)


def _compare_error(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    note: WeightNote,
    scale_format: ScaleFormat,
) -> Finding | None:
    block_size = made.storage[mine.name].block
    rows, cols = mine.shape
    block = math.lcm(block_rows(made, mine), block_rows(source, info))
    moved = far = 0
    squares = plain = reference = 0.0
    for first, last in slabs(0, rows, block, cols * 4):
        weight = restore(source, info, first, last)
        codes = np.frombuffer(read_rows(made, mine, first, last), np.uint8)
        scales = np.frombuffer(read_scales(made, mine, first, last), np.float32)
        nearest, amax_scales = _rounded(weight, cols, scale_format, block_size[0])
        if note.method == "mse":
            if not _are_multiples(scales, amax_scales, scale_format):
                return _stray(mine, "has a scale that no search of scales gives")
            outside, _ = block_fp8.outside_bound(weight, codes, cols, scales, block_size)
            if outside:
                return _stray(mine, f"{outside} of its codes are not the nearest")
        elif not np.array_equal(scales, amax_scales):
            return _stray(mine, "has a scale that is not its amax over 448")
        else:
            steps = np.abs(ORDINAL[codes] - ORDINAL[nearest])
            moved += int(np.count_nonzero(steps))
            far += int(np.count_nonzero(steps > 1))
        restored = memory.view("values", (last - first) * cols * 4)
        block_fp8.dequantize_float32(codes, cols, scales, restored, block_size)
        found = block_fp8.difference(weight, restored)
        squares, reference = squares + found.sum_sq_diff, reference + found.sum_sq_a
        block_fp8.dequantize_float32(nearest, cols, amax_scales, restored, block_size)
        plain += block_fp8.difference(weight, restored).sum_sq_diff
    error = math.sqrt(squares / reference) if reference > 0 else 0.0
    if (moved, far) != (note.moved, note.far):
        return _stray(
            mine,
            f"{moved} codes are not the nearest and {far} more than a step from it, where "
            f"{CALIBRATION} has {note.moved} and {note.far}",
        )
    if note.method == "nearest" and moved:
        return _stray(mine, f"{moved} codes are not the nearest, which {CALIBRATION} says they are")
    if squares > plain * MOST_STRAY**2 or far > rows * cols * MOST_FAR:
        times = math.sqrt(squares / plain) if plain > 0 else math.inf
        return _stray(
            mine,
            f"its error is {times:.2g} times that of plain rounding, "
            f"{far / (rows * cols):.0%} of its codes are more than a step from the nearest",
        )
    if note.method != "nearest" and not _is_nearer(note):
        return _stray(mine, f"{CALIBRATION} has a larger error on the data than plain rounding's")
    if not math.isclose(error, note.weight_error, rel_tol=ERROR_TOLERANCE):
        return _stray(
            mine, f"its error is {error:.6g}, where {CALIBRATION} has {note.weight_error:.6g}"
        )
    return None


def _is_nearer(note: WeightNote) -> bool:
    """Return whether the method brought the weight nearer on the data; unknown is no."""
    if note.error is None or note.error_nearest is None:
        return False
    return note.error <= note.error_nearest


def _rounded(
    weight: memoryview, cols: int, scale_format: ScaleFormat, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return what plain rounding makes of float32 rows: codes and scales, each flat."""
    numel = weight.nbytes // 4
    codes = np.empty(numel, np.uint8)
    scales = np.empty(-(-(numel // cols) // block) * -(-cols // block), np.float32)
    block_fp8.quantize(weight, "F32", cols, codes, scales, scale_format, block)
    return codes, scales


def _are_multiples(
    scales: NDArray[np.float32],
    amax_scales: NDArray[np.float32],
    scale_format: ScaleFormat,
) -> bool:
    """Tell whether every scale is one that the search may choose, or the floor."""
    one_of = [scales == amax_scales * np.float32(factor) for factor in SEARCHED[scale_format]]
    return bool(np.logical_or.reduce([*one_of, scales == _floor(scale_format)]).all())


def _floor(scale_format: ScaleFormat) -> np.float32:
    """Return the scale of a block of zeros."""
    return np.float32(_rounded(memoryview(bytes(4)), 1, scale_format, 1)[1][0])


def _stray(mine: TensorInfo, message: str) -> Finding:
    return Finding.error(
        "outside-bound",
        mine.where,
        message,
        "it was calibrated from another source, or is damaged; quantize again",
    )


_MAGNITUDES = np.arange(128, dtype=np.int16)
ORDINAL = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # code -> place on the FP8 grid, -0 as +0
