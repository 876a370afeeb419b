"""FP8 with one scale per block, the native format of DeepSeek checkpoints, on raw buffers.

A weight [rows, cols] is cut into blocks, 128 x 128 unless said otherwise; blocks at the right and
bottom edge may be short. Each has one float32 `scale_inv`, and an element is E4M3 code x scale_inv.

    scale_inv = max(amax, floor) / 448          one IEEE division in float32
    code      = e4m3(x / scale_inv)             again, then nearest even, saturated at +-448
    back      = bf16(float32(code) * scale_inv) two roundings, as DeepSeek's kernel does

With `ue8m0` the scale is the least power of two that is not below that quotient.
Source: deepseek-ai/DeepSeek-V3, README_WEIGHTS.md and inference/kernel.py.

Everything here takes any object with the buffer protocol (bytes, mmap, memoryview, a numpy array)
at any address, in the byte order of safetensors, little-endian; inputs may be read-only. Outputs may
be longer than needed: their first part is written. An output must not overlap an input. The compiled
library does the work and this module then imports no numpy; without it `block_fp8_numpy` does,
which is also the definition that the library is tested against.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from dstools_kernels.cpu import native
from dstools_kernels.cpu.buffers import at_least_one, exactly, input_bytes, output_bytes, whole_rows

if TYPE_CHECKING:
    from dstools_kernels.cpu.buffers import Buffer, WritableBuffer

Dtype = Literal["BF16", "F16", "F32"]  # as safetensors spells them
WidenDtype = Literal["BF16", "F16", "F32", "F8_E8M0"]
FiniteDtype = Literal["BF16", "F16", "F32", "F8_E4M3"]
ScaleFormat = Literal["float32", "ue8m0"]

E4M3_MAX = 448.0
# Smallest amax that a scale is made of, so that a block of zeros does not divide zero by zero.
# For ue8m0 it is the floor of engines that quantize again at load time (DeepGEMM,
# per_block_cast_to_fp8): with the same one they change nothing.
AMAX_FLOOR: dict[ScaleFormat, float] = {"float32": 1e-12, "ue8m0": 1e-4}

# What a search of scales tries, times the scale that amax gives; the first of equals wins.
SEARCHED: dict[ScaleFormat, tuple[float, ...]] = {
    "float32": (1.0, *(n / 20 for n in range(14, 27) if n != 20)),
    "ue8m0": (1.0, 0.5, 2.0),
}

ITEMSIZE: dict[str, int] = {"BF16": 2, "F16": 2, "F32": 4, "F8_E8M0": 1, "F8_E4M3": 1}
# all of these bits set: infinity or NaN; E4M3 has no infinity and one NaN of each sign
NON_FINITE_BITS: dict[FiniteDtype, int] = {
    "BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F8_E4M3": 0x7F,
}  # fmt: skip
_WEIGHT_DTYPES: tuple[str, ...] = get_args(Dtype)
_DTYPE_NUMBER = {"BF16": 0, "F16": 1, "F32": 2, "F8_E8M0": 3}  # enum Dtype in csrc/cpu.cpp


class NonFiniteError(ValueError):
    """A weight holds infinity or NaN at [row, col]; its whole block would be lost in FP8."""

    def __init__(self, row: int, col: int) -> None:
        super().__init__(f"the weight holds infinity or NaN at row {row}, column {col}")
        self.row = row
        self.col = col


class Difference(NamedTuple):
    """What separates b from a, summed in double; `diff` is b - a. All NaN-bearing where a NaN is."""

    sum_sq_diff: float
    sum_sq_a: float
    sum_diff: float
    max_abs_diff: float


def quantize(
    weight: Buffer,
    dtype: Dtype,
    cols: int,
    codes: WritableBuffer,
    scale_inv: WritableBuffer,
    scale_format: ScaleFormat = "float32",
    block_size: int = 128,
) -> None:
    """Cast `weight` [rows, cols] to FP8, each block scaled so that its amax lands on 448.

    Writes `codes` uint8 [rows, cols] and `scale_inv` float32 [blocks of rows, blocks of cols]. Rows
    are as many as the buffer holds.

    Raises NonFiniteError where the weight holds infinity or NaN, naming the first one of the first
    block that does; the outputs then hold nothing of use. Raises ValueError where a size is wrong.
    """
    if dtype not in _WEIGHT_DTYPES:
        raise ValueError(f"dtype must be one of {list(_WEIGHT_DTYPES)}, got {dtype!r}")
    if scale_format not in AMAX_FLOOR:
        raise ValueError(f"scale_format must be one of {list(AMAX_FLOOR)}, got {scale_format!r}")
    at_least_one(cols=cols, block_size=block_size)
    source = input_bytes(weight, "weight")
    rows = whole_rows(source, "weight", cols, ITEMSIZE[dtype])
    blocks = -(-rows // block_size) * -(-cols // block_size)
    codes_out = output_bytes(codes, "codes", rows * cols)
    scale_out = output_bytes(scale_inv, "scale_inv", 4 * blocks)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        bad = block_fp8_numpy.quantize(
            source, dtype, cols, codes_out, scale_out, scale_format, block_size
        )
    else:
        bad = lib.dstools_quantize(
            native.level(),
            native.address(source),
            _DTYPE_NUMBER[dtype],
            rows,
            cols,
            native.address(codes_out),
            native.address(scale_out),
            scale_format == "ue8m0",
            block_size,
        )
    if bad >= 0:
        raise NonFiniteError(*divmod(bad, cols))


def dequantize(
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    out: WritableBuffer,
    block_size: tuple[int, int] = (128, 128),
) -> None:
    """Write the BF16 weight [rows, cols] that `codes` uint8 and `scale_inv` float32 stand for.

    `block_size` is (rows, cols) of a block. A NaN code gives NaN. Raises ValueError where a size is
    wrong.
    """
    _dequantize(codes, cols, scale_inv, out, block_size, "BF16")


def dequantize_float32(
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    out_float32: WritableBuffer,
    block_size: tuple[int, int] = (128, 128),
) -> None:
    """Write float32(code) * scale_inv [rows, cols], without the rounding to BF16.

    Raises ValueError where a size is wrong.
    """
    _dequantize(codes, cols, scale_inv, out_float32, block_size, "F32")


def widen(data: Buffer, dtype: WidenDtype, out_float32: WritableBuffer) -> None:
    """Write `data` as float32, exactly.

    F8_E8M0 holds exponents: byte v is 2^(v - 127), 255 is NaN (OCP Microscaling Formats 1.0).
    Raises ValueError where a size is wrong.
    """
    if dtype not in get_args(WidenDtype):
        raise ValueError(f"dtype must be one of {list(get_args(WidenDtype))}, got {dtype!r}")
    source = input_bytes(data, "data")
    count = whole_rows(source, "data", 1, ITEMSIZE[dtype])
    out = output_bytes(out_float32, "out_float32", 4 * count)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        block_fp8_numpy.widen(source, dtype, out)
    else:
        lib.dstools_widen(
            native.level(), native.address(source), _DTYPE_NUMBER[dtype], count, native.address(out)
        )


def narrow(data_float32: Buffer, out_bf16: WritableBuffer) -> None:
    """Write float32 `data_float32` as BF16, rounded to nearest even; NaN stays NaN.

    Raises ValueError where a size is wrong.
    """
    source = input_bytes(data_float32, "data_float32")
    count = whole_rows(source, "data_float32", 1, 4)
    out = output_bytes(out_bf16, "out_bf16", 2 * count)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        block_fp8_numpy.narrow(source, out)
    else:
        lib.dstools_narrow(native.level(), native.address(source), count, native.address(out))


def outside_bound(
    weight_float32: Buffer,
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    block_size: tuple[int, int] = (128, 128),
) -> tuple[int, int]:
    """Count the codes that rounding to nearest cannot have given, and find the first of them.

    Returns (count, flat index of the first, or -1). With w of `weight_float32` [rows, cols], s its
    block's scale and step the distance from the code to the next one on w's side (2^(e-3) away from
    zero, subnormal 2^-9; half of that below a power of two), an element is inside where either

        |w - code * s| <= s * step / 2 + 2^-23 |w|      the slack is for the float32 division
        code = +-448, with the sign of w, and |w| > 448 s

    Infinity or NaN in weight, code or scale is always outside, and so is a scale below zero. Computed
    in double, where code * s is exact. Raises ValueError where a size is wrong.
    """
    coded = input_bytes(codes, "codes")
    rows, scales = _grid(coded, cols, scale_inv, block_size)
    weight = input_bytes(weight_float32, "weight_float32")
    exactly(weight, "weight_float32", 4 * rows * cols)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        return block_fp8_numpy.outside_bound(weight, coded, cols, scales, block_size)
    first = ctypes.c_int64()
    count = lib.dstools_outside_bound(
        native.level(),
        native.address(weight),
        native.address(coded),
        rows,
        cols,
        native.address(scales),
        *block_size,
        ctypes.addressof(first),
    )
    return count, first.value


def difference(a_float32: Buffer, b_float32: Buffer) -> Difference:
    """Return the sums over b - a of two float32 buffers of one length; see Difference.

    The additions are made in one fixed order, so every level returns the same doubles. A NaN makes
    every figure of a sum it is part of NaN. Raises ValueError where the lengths differ.
    """
    a, b = input_bytes(a_float32, "a_float32"), input_bytes(b_float32, "b_float32")
    count = whole_rows(a, "a_float32", 1, 4)
    exactly(b, "b_float32", 4 * count)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        return Difference(*block_fp8_numpy.difference(a, b))
    sums = (ctypes.c_double * 4)()
    lib.dstools_difference(
        native.level(), native.address(a), native.address(b), count, ctypes.addressof(sums)
    )
    return Difference(*sums)


def first_non_finite(data: Buffer, dtype: FiniteDtype) -> int:
    """Return the index of the first infinity or NaN in `data`, -1 where there is none.

    Raises ValueError where a size is wrong.
    """
    mask = NON_FINITE_BITS[dtype]
    source = input_bytes(data, "data")
    count = whole_rows(source, "data", 1, ITEMSIZE[dtype])
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        return block_fp8_numpy.first_with_all(source, ITEMSIZE[dtype], mask)
    address, itemsize = native.address(source), ITEMSIZE[dtype]
    return int(lib.dstools_first_with_all(native.level(), address, itemsize, mask, count))


def _dequantize(
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    out: WritableBuffer,
    block_size: tuple[int, int],
    dtype: Literal["BF16", "F32"],
) -> None:
    coded = input_bytes(codes, "codes")
    rows, scales = _grid(coded, cols, scale_inv, block_size)
    target = output_bytes(out, "out", ITEMSIZE[dtype] * rows * cols)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import block_fp8_numpy

        block_fp8_numpy.dequantize(coded, cols, scales, target, block_size, dtype)
        return
    kernel = lib.dstools_dequantize if dtype == "BF16" else lib.dstools_dequantize_float32
    kernel(
        native.level(),
        native.address(coded),
        rows,
        cols,
        native.address(scales),
        *block_size,
        native.address(target),
    )


def _grid(
    codes: memoryview, cols: int, scale_inv: Buffer, block_size: tuple[int, int]
) -> tuple[int, memoryview]:
    """Return the rows of `codes`, and the scales as bytes, once their number fits."""
    block_rows, block_cols = block_size
    at_least_one(cols=cols, block_rows=block_rows, block_cols=block_cols)
    rows = whole_rows(codes, "codes", cols, 1)
    scales = input_bytes(scale_inv, "scale_inv")
    exactly(scales, "scale_inv", 4 * -(-rows // block_rows) * -(-cols // block_cols))
    return rows, scales
