"""Check calibrated weights against calibration.json and their source.

Rounding to nearest has a bound for each element; a calibrated weight exceeds it by design,
sometimes by more than a step of the FP8 grid. These checks take its place: the bytes are those that
were written (their sha256), the method can make such scales, and the distance of the codes from the
source's weights is what calibration.json says, to the last element.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

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
    CachePart,
    Calibration,
    WeightNote,
    is_kv_scale,
    kv_scales,
    read_calibration,
)
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD
from dstools_converters.sidefiles.manifest import MANIFEST, Manifest, require_digest
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import SEARCHED, ScaleFormat

# Limits far above real calibrations: GPTQ makes the error of a weight 1.1 to 1.5 times as large,
# and moves 2 to 12 % of its codes by more than a step.
MAX_ERROR_RATIO = 4.0  # over the error of rounding to nearest
MAX_FAR = 0.5  # share of the codes
ERROR_TOLERANCE = 1e-9  # of sums of squares in double, added in another order
_MAGNITUDES = np.arange(128, dtype=np.int16)
ORDINAL = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # code -> position on the FP8 grid; -0 as +0


def check_calibration(
    made: Inventory, manifest: Manifest | None
) -> tuple[dict[str, WeightNote] | None, list[Finding]]:
    """Return the notes of the calibrated weights, and findings about the calibration's files.

    The notes are None if calibration.json is lost: then it is unknown which weights are calibrated.
    The file is used only if the manifest has its digest.
    """
    try:
        calibration = _read_proven(made, manifest)
    except DstoolsError as error:
        return None, [_damaged(error, "; calibrated weights are not compared")]
    findings = []
    try:
        require_digest(
            made.checkpoint.folder, EXPERT_LOAD, manifest.expert_load if manifest else None
        )
    except DstoolsError as error:
        findings.append(_damaged(error))
    if calibration is None:  # scales of a cache, if any, are those of the source
        return {}, findings
    findings += _check_kv_scales(made, calibration.layer_amax())
    return calibration.tensors, findings


def _read_proven(made: Inventory, manifest: Manifest | None) -> Calibration | None:
    """Return calibration.json, None where nothing was calibrated.

    Raises DstoolsError if it is missing, replaced, damaged, or without a manifest.
    """
    folder = made.checkpoint.folder
    if manifest is None and (folder / CALIBRATION).exists():
        raise DstoolsError(
            f"{MANIFEST}: is missing or damaged, and without it {CALIBRATION} cannot be relied on",
            "restore it, or quantize again",
        )
    if require_digest(folder, CALIBRATION, manifest.calibration if manifest else None) is None:
        return None
    return read_calibration(folder, made)


def _damaged(error: DstoolsError, consequence: str = "") -> Finding:
    where, _, message = str(error).partition(": ")
    return Finding.error("calibration", Path(where).name, message + consequence, error.hint)


def _check_kv_scales(
    made: Inventory, layer_amax: Mapping[int, Mapping[CachePart, float]]
) -> Iterator[Finding]:
    for spelled, name in made.names.items():
        info = made.tensors[spelled]
        if name is None or not is_kv_scale(made, info) or info.shape != (1,):
            continue
        wanted = kv_scales({spelled: name}, layer_amax)[spelled].tobytes()
        if info.dtype != "F32" or bytes(made.checkpoint.read(info, 0, info.nbytes)) != wanted:
            yield Finding.error(
                "bytes-differ",
                info.where,
                f"is not the largest value that {CALIBRATION} has of layer {name.layer}, over 448",
                "the scale is damaged; quantize again",
            )


def compare_calibrated(
    made: Inventory,
    mine: TensorInfo,
    source: Inventory,
    info: TensorInfo,
    note: WeightNote,
    scale_format: ScaleFormat,
) -> Finding | None:
    """Return how a weight differs from its note, None if it does not.

    `scale_format` is from the manifest: the config of compressed-tensors does not have it. Raises
    DstoolsError for NaN in the weight.
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
    sums = _Sums()
    message = sums.add(made, mine, source, info, note, scale_format) or _contradiction(
        sums, note, mine.numel
    )
    if message is None:
        return None
    return Finding.error(
        "outside-bound",
        mine.where,
        message,
        "it was calibrated from another source, or is damaged; quantize again",
    )


@dataclass
class _Sums:
    """Codes and squared errors of one weight, summed over its rows."""

    moved: int = 0  # codes that are not the nearest
    far: int = 0  # codes more than a step from the nearest
    difference: float = 0.0  # squares, from the source
    nearest: float = 0.0  # the same, of plain rounding
    reference: float = 0.0  # squares of the source

    def add(
        self,
        made: Inventory,
        mine: TensorInfo,
        source: Inventory,
        info: TensorInfo,
        note: WeightNote,
        scale_format: ScaleFormat,
    ) -> str | None:
        """Sum over all rows; return why the method cannot have made a scale or code, else None."""
        rows, cols = mine.shape
        block_size = made.storage[mine.name].block
        step = math.lcm(block_rows(made, mine), block_rows(source, info))
        for first, last in slabs(0, rows, step, cols * 4):
            weight = restore(source, info, first, last)
            codes = np.frombuffer(read_rows(made, mine, first, last), np.uint8)
            scales = np.frombuffer(read_scales(made, mine, first, last), np.float32)
            nearest, amax_scales = _rounded(weight, cols, scale_format, block_size[0])
            if note.method == "mse":
                if not _are_multiples(scales, amax_scales, scale_format):
                    return "has a scale that no search of scales gives"
                outside, _ = block_fp8.outside_bound(weight, codes, cols, scales, block_size)
                if outside:
                    return f"{outside} of its codes are not the nearest"
            elif not np.array_equal(scales, amax_scales):
                return "has a scale that is not its amax over 448"
            else:
                steps = np.abs(ORDINAL[codes] - ORDINAL[nearest])
                self.moved += int(np.count_nonzero(steps))
                self.far += int(np.count_nonzero(steps > 1))
            restored = memory.view("values", (last - first) * cols * 4)
            block_fp8.dequantize(codes, cols, scales, restored, block_size, "F32")
            squares = block_fp8.difference(weight, restored)
            self.difference += squares.sum_sq_diff
            self.reference += squares.sum_sq_a
            block_fp8.dequantize(nearest, cols, amax_scales, restored, block_size, "F32")
            self.nearest += block_fp8.difference(weight, restored).sum_sq_diff
        return None


def _contradiction(sums: _Sums, note: WeightNote, numel: int) -> str | None:
    """Return how the sums differ from the note or exceed a limit, None if they do not."""
    if (sums.moved, sums.far) != (note.moved, note.far):
        return (
            f"{sums.moved} codes are not the nearest and {sums.far} more than a step from it, "
            f"where {CALIBRATION} has {note.moved} and {note.far}"
        )
    if note.method == "nearest" and sums.moved:
        return f"{sums.moved} codes are not the nearest, which {CALIBRATION} says they are"
    if sums.difference > sums.nearest * MAX_ERROR_RATIO**2 or sums.far > numel * MAX_FAR:
        times = math.sqrt(sums.difference / sums.nearest) if sums.nearest > 0 else math.inf
        return (
            f"its error is {times:.2g} times that of plain rounding, "
            f"{sums.far / numel:.0%} of its codes are more than a step from the nearest"
        )
    if note.method != "nearest" and (
        note.error is None  # no token reached it, so there was nothing to choose a method by
        or note.error_nearest is None
        or note.error > note.error_nearest
    ):
        return f"{CALIBRATION} has a larger error on the data than plain rounding's"
    error = math.sqrt(sums.difference / sums.reference) if sums.reference > 0 else 0.0
    if not math.isclose(error, note.weight_error, rel_tol=ERROR_TOLERANCE):
        return f"its error is {error:.6g}, where {CALIBRATION} has {note.weight_error:.6g}"
    return None


def _rounded(
    weight: memoryview, cols: int, scale_format: ScaleFormat, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes and scales, both flat, of float32 rows rounded to nearest."""
    numel = weight.nbytes // 4
    codes = np.empty(numel, np.uint8)
    scales = np.empty(-(-(numel // cols) // block) * -(-cols // block), np.float32)
    block_fp8.quantize(weight, "F32", cols, codes, scales, scale_format, block)
    return codes, scales


def _are_multiples(
    scales: NDArray[np.float32], amax_scales: NDArray[np.float32], scale_format: ScaleFormat
) -> bool:
    """Return whether the search of scales can choose every scale, the floor included."""
    one_of = [scales == amax_scales * np.float32(factor) for factor in SEARCHED[scale_format]]
    return bool(np.logical_or.reduce([*one_of, scales == _floor(scale_format)]).all())


def _floor(scale_format: ScaleFormat) -> np.float32:
    """Return the scale of a block of zeros."""
    return np.float32(_rounded(memoryview(bytes(4)), 1, scale_format, 1)[1][0])
