"""FP8 with one scale per block, the native format of DeepSeek checkpoints, on raw buffers.

A weight [rows, cols] is cut into blocks, 128 x 128 by default; blocks at the right and bottom
edge may be short. Each has one float32 `scale_inv`, and an element is E4M3 code x scale_inv.

    scale_inv = max(amax, floor) / 448          one IEEE division in float32
    code      = e4m3(x / scale_inv)             again, then nearest even, saturated at +-448
    back      = bf16(float32(code) * scale_inv) two roundings, as DeepSeek's kernel does

With `ue8m0` the scale is the least power of two that is not below that quotient.
Source: deepseek-ai/DeepSeek-V3, README_WEIGHTS.md and inference/kernel.py.

Every function takes any object with the buffer protocol (bytes, mmap, memoryview, a numpy array)
at any address, in the byte order of safetensors, little-endian; inputs may be read-only. Outputs
may be longer than needed: their first part is written. An output must not overlap an input.
`block_fp8_numpy` defines the results; the compiled library gives the same without numpy.
"""

from __future__ import annotations

import ctypes
import math
import struct
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from dstools_kernels.cpu.buffers import at_least_one, exactly, input_bytes, output_bytes, whole_rows
from dstools_kernels.formats.dispatch import run
from dstools_kernels.fp8 import (
    AMAX_FLOOR,
    ITEMSIZE,
    NON_FINITE_BITS,
    Dtype,
    FiniteDtype,
    ScaleFormat,
    WidenDtype,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from dstools_kernels.cpu.buffers import Buffer, WritableBuffer


# the format of `struct` that holds a dtype's bits, shifted left
_LAYOUT = {
    "BF16": ("f", 16),
    "F16": ("e", 0),
    "F32": ("f", 0),
    "F64": ("d", 0),
    "F8_E5M2": ("e", 8),
}


class NonFiniteError(ValueError):
    """A weight holds infinity or NaN at [row, col]; its whole block would be lost in FP8."""

    def __init__(self, row: int, col: int) -> None:
        super().__init__(f"the weight holds infinity or NaN at row {row}, column {col}")
        self.row = row
        self.col = col


class Difference(NamedTuple):
    """The distance of b from a, summed in double; `diff` is b - a. A NaN makes its sums NaN."""

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
    """Cast `weight` [rows, cols] to FP8, each block scaled so that its amax becomes 448.

    Writes `codes` uint8 [rows, cols] and `scale_inv` float32 [blocks of rows, blocks of cols]. The
    size of the buffer gives the number of rows.

    Raises NonFiniteError where the weight holds infinity or NaN, naming the first one of the first
    block that does; the outputs are then undefined. Raises ValueError where a size is wrong.
    """
    _check_choice("dtype", dtype, get_args(Dtype))
    _check_choice("scale_format", scale_format, AMAX_FLOOR)
    at_least_one(cols=cols, block_size=block_size)
    source = input_bytes(weight, "weight")
    rows = whole_rows(source, "weight", cols, ITEMSIZE[dtype])
    blocks = -(-rows // block_size) * -(-cols // block_size)
    coded = output_bytes(codes, "codes", rows * cols)
    scales = output_bytes(scale_inv, "scale_inv", 4 * blocks)
    arguments = (source, dtype, rows, cols, coded, scales, scale_format, block_size)
    bad_index = run("block_fp8", "quantize", *arguments)
    if bad_index >= 0:
        raise NonFiniteError(*divmod(bad_index, cols))


def dequantize(
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    out: WritableBuffer,
    block_size: tuple[int, int] = (128, 128),
    dtype: Literal["BF16", "F32"] = "BF16",
) -> None:
    """Write the weight [rows, cols] of `codes` uint8 and `scale_inv` float32 in `dtype`.

    `block_size` is (rows, cols) of a block. F32 is float32(code) * scale_inv without the rounding
    to BF16. A NaN code gives NaN. Raises ValueError where a size is wrong.
    """
    coded = input_bytes(codes, "codes")
    rows, scales = _grid(coded, cols, scale_inv, block_size)
    target = output_bytes(out, "out", ITEMSIZE[dtype] * rows * cols)
    kernel = "dequantize" if dtype == "BF16" else "dequantize_float32"
    run("block_fp8", kernel, coded, rows, cols, scales, *block_size, target)


def widen(data: Buffer, dtype: WidenDtype, out_float32: WritableBuffer) -> None:
    """Write `data` as float32, exactly.

    F8_E8M0 holds exponents: byte v is 2^(v - 127), 255 is NaN (OCP Microscaling Formats 1.0).
    Raises ValueError where a size is wrong.
    """
    _check_choice("dtype", dtype, get_args(WidenDtype))
    source = input_bytes(data, "data")
    count = whole_rows(source, "data", 1, ITEMSIZE[dtype])
    target = output_bytes(out_float32, "out_float32", 4 * count)
    run("block_fp8", "widen", source, dtype, count, target)


def narrow(data_float32: Buffer, out_bf16: WritableBuffer) -> None:
    """Write float32 `data_float32` as BF16, rounded to nearest even; NaN stays NaN.

    Raises ValueError where a size is wrong.
    """
    source = input_bytes(data_float32, "data_float32")
    count = whole_rows(source, "data_float32", 1, 4)
    run("block_fp8", "narrow", source, count, output_bytes(out_bf16, "out_bf16", 2 * count))


def outside_bound(
    weight_float32: Buffer,
    codes: Buffer,
    cols: int,
    scale_inv: Buffer,
    block_size: tuple[int, int] = (128, 128),
) -> tuple[int, int]:
    """Count the codes that rounding to nearest cannot have given, and find the first of them.

    Returns (count, flat index of the first, or -1). With w of `weight_float32` [rows, cols], s its
    block's scale and step the distance from the code to the next one on w's side (2^(e-3) away
    from zero, subnormal 2^-9; half of that below a power of two), an element is inside where either

        |w - code * s| <= s * step / 2 + 2^-23 |w|      the slack is for the float32 division
        code = +-448, with the sign of w, and |w| > 448 s

    Infinity or NaN in weight, code or scale is always outside, and so is a scale below zero.
    Computed in double, where code * s is exact. Raises ValueError where a size is wrong.
    """
    coded = input_bytes(codes, "codes")
    rows, scales = _grid(coded, cols, scale_inv, block_size)
    weight = input_bytes(weight_float32, "weight_float32")
    exactly(weight, "weight_float32", 4 * rows * cols)
    first = (ctypes.c_int64 * 1)()
    arguments = (weight, coded, rows, cols, scales, *block_size, memoryview(first).cast("B"))
    return run("block_fp8", "outside_bound", *arguments), first[0]


def difference(a_float32: Buffer, b_float32: Buffer) -> Difference:
    """Return the sums over b - a of two float32 buffers of one length; see Difference.

    The additions are made in one fixed order, so every level returns the same doubles. Raises
    ValueError where the lengths differ.
    """
    a, b = input_bytes(a_float32, "a_float32"), input_bytes(b_float32, "b_float32")
    count = whole_rows(a, "a_float32", 1, 4)
    exactly(b, "b_float32", 4 * count)
    sums = (ctypes.c_double * 4)()
    run("block_fp8", "difference", a, b, count, memoryview(sums).cast("B"))
    return Difference(*sums)


def first_non_finite(data: Buffer, dtype: FiniteDtype) -> int:
    """Return the index of the first infinity or NaN in `data`, -1 where there is none.

    Raises ValueError where a size is wrong.
    """
    itemsize, mask = ITEMSIZE[dtype], NON_FINITE_BITS[dtype]
    source = input_bytes(data, "data")
    count = whole_rows(source, "data", 1, itemsize)
    return run("block_fp8", "first_with_all", source, itemsize, mask, count)


def largest_magnitude(data: Buffer, dtype: FiniteDtype) -> float:
    """Return the largest |x| in `data`: infinity or NaN where it holds one, 0.0 if it is empty.

    Costs one reading of the data and nothing else. Raises ValueError where a size is wrong.
    """
    itemsize = ITEMSIZE[dtype]
    source = input_bytes(data, "data")
    count = whole_rows(source, "data", 1, itemsize)
    return _number(run("block_fp8", "largest", source, itemsize, count), dtype)


def smallest(data_float32: Buffer) -> float:
    """Return the least x in float32 without NaN: infinity if it is empty.

    Where some have a sign, -0 too, it is the least magnitude of these. Raises ValueError where a
    size is wrong.
    """
    source = input_bytes(data_float32, "data_float32")
    count = whole_rows(source, "data_float32", 1, 4)
    bits = run("block_fp8", "smallest", source, count)
    number: float = struct.unpack("<f", struct.pack("<i", bits))[0]
    return number


def largest_finite(dtype: FiniteDtype) -> float:
    """Return the largest finite number of `dtype`."""
    return _number(NON_FINITE_BITS[dtype] - 1, dtype)


def _number(bits: int, dtype: FiniteDtype) -> float:
    """Return the number that `bits`, without a sign, are in `dtype`."""
    if dtype == "F8_E4M3":
        exponent, mantissa = bits >> 3, bits & 7
        significand = mantissa + 8 if exponent else mantissa  # in eighths
        is_nan = bits == NON_FINITE_BITS[dtype]
        return math.nan if is_nan else math.ldexp(significand, max(exponent, 1) - 10)
    # BF16 is the upper half of a float32, E5M2 of a float16
    letter, shift = _LAYOUT[dtype]
    raw = (bits << shift).to_bytes(struct.calcsize(letter), "little")
    number: float = struct.unpack(f"<{letter}", raw)[0]
    return number


def _grid(
    codes: memoryview, cols: int, scale_inv: Buffer, block_size: tuple[int, int]
) -> tuple[int, memoryview]:
    """Return the rows of `codes`, and the scales as bytes; ValueError where they do not match."""
    block_rows, block_cols = block_size
    at_least_one(cols=cols, block_rows=block_rows, block_cols=block_cols)
    rows = whole_rows(codes, "codes", cols, 1)
    scales = input_bytes(scale_inv, "scale_inv")
    exactly(scales, "scale_inv", 4 * -(-rows // block_rows) * -(-cols // block_cols))
    return rows, scales


def _check_choice(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {list(choices)}, got {value!r}")
