"""Block FP8 in numpy: the definition that compiled kernels are tested against, and the fallback.

Called by `dispatch` with the arguments of the library's functions: memoryviews of bytes, their
sizes already checked. One block row at a time, so that memory stays a few rows for any weight.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dstools_kernels.fp8 import AMAX_FLOOR, E4M3_MAX, ITEMSIZE, NON_FINITE_BITS, ScaleFormat

Float32 = NDArray[np.float32]

# codes, rows, cols, scale_inv, rows of a block, columns of a block
Grid = tuple[memoryview, int, int, memoryview, int, int]

CHUNK = 1 << 20  # elements at a time where there are no rows


def quantize(
    weight: memoryview,
    dtype: str,
    rows: int,
    cols: int,
    codes: memoryview,
    scale_inv: memoryview,
    scale_format: ScaleFormat,
    block_size: int,
) -> int:
    """Write codes and scales; return the flat index of an infinity or NaN, or -1."""
    slab_bytes = block_size * cols * ITEMSIZE[dtype]
    all_codes = np.frombuffer(codes, np.uint8).reshape(rows, cols)
    blocks_wide = -(-cols // block_size)
    all_scales = np.frombuffer(scale_inv, "<f4").reshape(-1, blocks_wide)
    for slab, start in enumerate(range(0, weight.nbytes, slab_bytes)):
        x = as_float32(weight[start : start + slab_bytes], dtype).reshape(-1, cols)
        # zeros do not change a maximum, so short blocks are padded with them
        padded = np.zeros((len(x), blocks_wide * block_size), np.float32)
        padded[:, :cols] = x
        blocks = padded.reshape(len(x), blocks_wide, block_size)
        amax = np.abs(blocks).max(axis=(0, 2))
        if not np.isfinite(amax).all():
            block = int(np.flatnonzero(~np.isfinite(amax))[0])
            row, col = np.argwhere(~np.isfinite(blocks[:, block]))[0]
            return int((slab * block_size + row) * cols + block * block_size + col)
        scale = scale_of(amax, scale_format)
        quotient = (blocks / scale[:, None]).reshape(len(x), -1)[:, :cols]
        top = slab * block_size
        all_codes[top : top + len(x)] = e4m3_codes(quotient)
        all_scales[slab] = scale
    return -1


def scale_of(amax: Float32, scale_format: ScaleFormat) -> Float32:
    """Return the scale for each amax: over 448, for ue8m0 up to the next power of two."""
    floor, top = np.float32(AMAX_FLOOR[scale_format]), np.float32(E4M3_MAX)
    scale: Float32 = np.divide(np.maximum(amax, floor), top, dtype=np.float32)
    if scale_format == "float32":
        return scale
    bits = scale.view(np.uint32)
    up = np.where(bits & 0x7FFFFF, np.uint32(0x800000), np.uint32(0))
    power: Float32 = ((bits & 0x7F800000) + up).view(np.float32)
    return power


def e4m3_codes(x: Float32) -> NDArray[np.uint8]:
    """Return the E4M3 codes of finite float32, nearest even, saturated at +-448 (0x7E)."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    # drop 20 mantissa bits, nearest even, and move the exponent's bias from 127 to 7
    normal = ((magnitude + 0x7FFFF + (magnitude >> 20 & 1)) >> 20) - (120 << 3)
    size = magnitude.view(np.float32)
    # below the least normal number, 2^-6, codes are multiples of 2^-9; the minimum prevents an
    # overflow in elements that `where` discards
    subnormal = np.rint(np.minimum(size, 1) * np.float32(512)).astype(np.uint32)
    code = np.where(size < 2**-6, subnormal, np.minimum(normal, 0x7E))
    signed: NDArray[np.uint8] = (code | (bits >> 24 & 0x80)).astype(np.uint8)
    return signed


def e4m3_values() -> Float32:
    """Return the float32 value of each of the 256 codes."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    size[code & 0x7F == 0x7F] = np.nan
    return np.where(code & 0x80, -size, size).astype(np.float32)


def e4m3_ulps() -> NDArray[np.float64]:
    """Return, for each code, the distance between neighbouring codes of its binade."""
    exponent = np.maximum(np.arange(256) >> 3 & 15, 1) - 7
    ulps: NDArray[np.float64] = np.ldexp(1.0, exponent - 3)
    return ulps


def dequantize(
    codes: memoryview,
    rows: int,
    cols: int,
    scale_inv: memoryview,
    block_rows: int,
    block_cols: int,
    out: memoryview,
) -> None:
    """Write bf16(float32(code) * scale)."""
    target = np.frombuffer(out, "<u2")
    for start, product in _products((codes, rows, cols, scale_inv, block_rows, block_cols)):
        target[start : start + product.size] = bf16_bits(product)


def dequantize_float32(
    codes: memoryview,
    rows: int,
    cols: int,
    scale_inv: memoryview,
    block_rows: int,
    block_cols: int,
    out: memoryview,
) -> None:
    """Write float32(code) * scale."""
    target = np.frombuffer(out, "<f4")
    for start, product in _products((codes, rows, cols, scale_inv, block_rows, block_cols)):
        target[start : start + product.size] = product


def outside_bound(
    weight: memoryview,
    codes: memoryview,
    rows: int,
    cols: int,
    scale_inv: memoryview,
    block_rows: int,
    block_cols: int,
    first_out: memoryview,
) -> int:
    """Return how many codes are outside the bound; write the flat index of the first, or -1."""
    values, ulps = e4m3_values().astype(np.float64), e4m3_ulps()
    count, first = 0, -1
    grid = (codes, rows, cols, scale_inv, block_rows, block_cols)
    for start, coded, scale32 in _block_rows(grid):
        stop = 4 * (start + coded.size)
        w = np.frombuffer(weight[4 * start : stop], "<f4").reshape(coded.shape).astype(np.float64)
        scale = scale32.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, which is outside
            along = np.where(coded & 0x80, -w, w)
            is_power = (coded & 7 == 0) & (coded & 0x78 > 8)
            narrow = is_power & (along < np.abs(values[coded]) * scale)
            bound = scale * ulps[coded] / np.where(narrow, 4, 2) + np.abs(w) * 2.0**-23
            near = (np.abs(w - values[coded] * scale) <= bound) & (bound < np.inf)
            limit = E4M3_MAX * scale
            saturated = (coded & 0x7F == 0x7E) & (along > limit) & (limit >= 0) & (along < np.inf)
        outside = np.flatnonzero(~(near | saturated))
        if outside.size and first < 0:
            first = start + int(outside[0])
        count += outside.size
    np.frombuffer(first_out, np.int64)[0] = first
    return count


def widen(data: memoryview, dtype: str, count: int, out: memoryview) -> None:
    """Write `data` as float32."""
    target = np.frombuffer(out, "<f4")
    itemsize = ITEMSIZE[dtype]
    for start in range(0, count, CHUNK):
        chunk = data[start * itemsize : (start + CHUNK) * itemsize]
        target[start : start + CHUNK] = as_float32(chunk, dtype)


def narrow(data: memoryview, count: int, out: memoryview) -> None:
    """Write float32 `data` as BF16."""
    source, target = np.frombuffer(data, "<f4"), np.frombuffer(out, "<u2")
    for start in range(0, count, CHUNK):
        target[start : start + CHUNK] = bf16_bits(source[start : start + CHUNK])


def difference(a: memoryview, b: memoryview, count: int, out: memoryview) -> None:
    """Write the doubles of block_fp8.Difference: element i added in lane i % 16, then the lanes."""
    first, second = np.frombuffer(a, "<f4"), np.frombuffer(b, "<f4")
    sums, most = np.zeros((3, 16)), np.zeros(16)
    for start in range(0, count, CHUNK):
        x, y = first[start : start + CHUNK], second[start : start + CHUNK]
        lanes = np.zeros((2, -(-x.size // 16) * 16))
        lanes[0, : x.size], lanes[1, : x.size] = x, y
        with np.errstate(invalid="ignore"):
            diff = (lanes[1] - lanes[0]).reshape(-1, 16)
            terms = (diff * diff, lanes[0].reshape(-1, 16) ** 2, diff)
            for lane_sums, term in zip(sums, terms, strict=True):
                # along the first axis numpy adds row after row, the running sum included
                lane_sums[:] = np.add.reduce(np.concatenate([lane_sums[None], term]), axis=0)
        most = np.maximum(most, np.abs(diff).max(axis=0, initial=0.0))
    totals = [float(np.cumsum(lane_sums)[-1]) for lane_sums in sums]
    np.frombuffer(out, np.float64)[:] = [*totals, most.max()]


def as_float32(data: memoryview, dtype: str) -> Float32:
    """Return BF16, F16, F32 or F8_E8M0 `data` as float32, exactly."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "F32":
        return np.frombuffer(data, "<f4")
    exponent = np.frombuffer(data, np.uint8).astype(np.uint32)
    bits = np.where(exponent == 0, 0x00400000, exponent << 23)  # 2^-127 is subnormal
    return np.where(exponent == 255, 0x7FC00000, bits).astype(np.uint32).view(np.float32)


def bf16_bits(x: Float32) -> NDArray[np.uint16]:
    """Return float32 rounded to BF16, nearest even, as its bits; NaN becomes a quiet NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)


def _products(grid: Grid) -> Iterator[tuple[int, Float32]]:
    """Yield (index of the first element, code * scale of all elements in a row) by block row."""
    values = e4m3_values()
    for start, coded, scale in _block_rows(grid):
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be anything
            product: Float32 = values[coded] * scale
        yield start, product.ravel()


def _block_rows(grid: Grid) -> Iterator[tuple[int, NDArray[np.uint8], Float32]]:
    """Yield (index of the first element, codes [rows, cols], scale of each column) by block row."""
    codes, rows, cols, scale_inv, block_rows, block_cols = grid
    all_codes = np.frombuffer(codes, np.uint8).reshape(rows, cols)
    all_scales = np.frombuffer(scale_inv, "<f4").reshape(-1, -(-cols // block_cols))
    for block, scale in enumerate(all_scales):
        top = block * block_rows
        yield top * cols, all_codes[top : top + block_rows], scale.repeat(block_cols)[:cols]


def first_with_all(data: memoryview, itemsize: int, mask: int, count: int) -> int:
    """Return the index of the first of `count` elements with all bits of `mask` set, or -1."""
    bits = np.frombuffer(data, f"<u{itemsize}", count)
    has_all = (bits & bits.dtype.type(mask)) == mask
    return int(has_all.argmax()) if has_all.any() else -1


def largest(data: memoryview, itemsize: int, count: int) -> int:
    """Return the bits, without the sign, of the element of largest magnitude; 0 without any."""
    bits = np.frombuffer(data, f"<u{itemsize}", count)
    no_sign = bits.dtype.type(2 ** (8 * itemsize - 1) - 1)
    most = 0
    for start in range(0, count, CHUNK):
        most = max(most, int((bits[start : start + CHUNK] & no_sign).max()))
    return most


def smallest(data: memoryview, count: int) -> int:
    """Return the least of the bits of `count` float32 as signed integers, at most infinity's."""
    infinity = NON_FINITE_BITS["F32"]
    return int(np.frombuffer(data, "<i4", count).min(initial=infinity))
