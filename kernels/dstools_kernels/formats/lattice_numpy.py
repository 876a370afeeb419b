"""Lattice recovery in numpy: the definition of the compiled kernel, and the fallback.

The proof of each step is in `lattice`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dstools_kernels.formats.block_fp8_numpy import (
    Float32,
    bf16_bits,
    e4m3_codes,
    e4m3_values,
    scale_of,
)
from dstools_kernels.fp8 import AMAX_FLOOR, E4M3_MAX, ScaleFormat

Codes = NDArray[np.uint8]
Bf16 = NDArray[np.uint16]

SIGNIFICANDS = 8  # of E4M3
TOP_CODES = range(0x7E, 0x76, -1)  # 448 to 240: what the largest element may be
LEAST_AMAX = np.float32(2**-90)  # from here on no product is a float32 subnormal
VALUES = e4m3_values()


def recover(
    weight: memoryview,
    rows: int,
    cols: int,
    codes: memoryview,
    scale_inv: memoryview,
    powers_only: bool,
    block_size: int,
) -> int:
    """Write codes and scales; return -1, or the number of the first block without them."""
    all_bits = np.frombuffer(weight, "<u2").reshape(rows, cols)
    all_codes = np.frombuffer(codes, np.uint8).reshape(rows, cols)
    all_scales = np.frombuffer(scale_inv, "<f4")
    number = 0
    for top in range(0, rows, block_size):
        for left in range(0, cols, block_size):
            block = slice(top, top + block_size), slice(left, left + block_size)
            recovered = _recover_block(all_bits[block], powers_only)
            if recovered is None:
                return number
            all_codes[block], all_scales[number] = recovered
            number += 1
    return -1


def _recover_block(block: Bf16, powers_only: bool) -> tuple[Codes, np.float32] | None:
    sizes: Bf16 = block & np.uint16(0x7FFF)
    if (sizes >= 0x7F80).any() or np.unique(sizes[sizes > 0] & 0x7F).size > SIGNIFICANDS:
        return None
    for scale in _candidates(sizes, powers_only):
        codes = e4m3_codes(_float32(block) / scale)
        if (bf16_bits(VALUES[codes] * scale) == block).all():
            return codes, scale
    return None


def _candidates(sizes: Bf16, powers_only: bool) -> Iterator[np.float32]:
    """Yield the scales to try, best first; where none of them fits, no other does."""
    scale_format: ScaleFormat = "ue8m0" if powers_only else "float32"
    floor, top = np.float32(AMAX_FLOOR[scale_format]), sizes.max(keepdims=True).ravel()
    amax = _float32(top)
    if amax < floor:
        yield scale_of(amax, scale_format)[0]
    if amax < LEAST_AMAX:
        return
    rule = np.divide(amax, np.float32(E4M3_MAX), dtype=np.float32).view(np.uint32)[0]
    if powers_only:
        yield _from_bits(_power_from(rule))
        return
    mantissas = np.unique(sizes[sizes > 0] & 0x7F)
    lifted = (top & 0x7F80) + mantissas - np.where(mantissas > (top & 0x7F), 0x80, 0)
    for code in TOP_CODES:
        low, high = _scales_under(code, top, lifted.astype(np.uint16))
        if low > high:
            continue
        power = _power_from(low)
        middle = low + (high - low) // 2
        yield _from_bits(rule if low <= rule <= high else power if power <= high else middle)


def _scales_under(code: int, top: Bf16, values: Bf16) -> tuple[np.uint32, np.uint32]:
    """Return bits of the least and greatest scale that give `top` this code and `values` any."""
    low, high = scales_of(VALUES[[code]], top)
    codes = e4m3_codes(np.divide(_float32(values), low.view(np.float32), dtype=np.float32))
    lows, highs = scales_of(VALUES[codes], values)
    return max(low[0], lows.max()), min(high[0], highs.min())


def scales_of(codes: Float32, values: Bf16) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return for each the bits of the least and greatest scale with bf16(code x scale) == value.

    Positive float32 order like their bits. A tie between two BF16 goes to the even one.
    """
    middle, reach = values.astype(np.uint32) << 16, np.where(values & 1, 0x7FFF, 0x8000)
    least = (middle - reach).astype(np.uint32).view(np.float32)
    greatest = (middle + reach).astype(np.uint32).view(np.float32)
    # a quotient is at most two steps from the end: less than one for its own rounding, one for
    # that of the product
    low, high = (least / codes).view(np.uint32) - 2, (greatest / codes).view(np.uint32) + 2
    while (outside := low.view(np.float32) * codes < least).any():
        low += outside
    with np.errstate(over="ignore"):  # above the largest number is infinity
        while (outside := high.view(np.float32) * codes > greatest).any():
            high -= outside
    return low, high


def _power_from(bits: np.uint32) -> np.uint32:
    """Return the bits of the least power of two that is not below this float32."""
    return (bits + np.uint32(0x7FFFFF)) & np.uint32(0x7F800000)


def _from_bits(bits: np.uint32) -> np.float32:
    return np.array([bits], np.uint32).view(np.float32)[0]  # type: ignore[no-any-return]


def _float32(bf16: Bf16) -> Float32:
    return (bf16.astype(np.uint32) << 16).view(np.float32)
