"""FP8 codes and scales recovered from the BF16 weight that they were dequantized to.

A weight that once was block FP8 lies on a lattice: within a block every element is bf16(code x scale).
Quantizing it anew misses that lattice unless the scale comes out as it was; `recover` finds it again,
or says that a block has none. It is exact both ways. A block is taken only where its codes times its
scale are the weight to the bit, negative zeros included; and it is refused only where no float32 scale
and no codes give it (or where it holds non-zeros all below 2^-90).

Why it is complete. The float32 scales that take a code to a given BF16 are an interval, its ends found
by trying, so the scales of a block are an intersection of intervals as soon as codes are assigned.
  - The largest element fixes the assignment. Given its code, the scale is known within 2^-7 of itself
    and each other element within 2^-8, while codes lie at least a 15th apart: only one fits.
  - Eight codes are enough to try for the largest, those in (224, 448]: a solution in which it is
    smaller is one of these with all codes doubled and the scale halved.
  - A power of two changes no significand, and E4M3 has 8 of them. So a lattice has 8 mantissas, not
    more, and one element of each gives all intervals; a block with a ninth is refused by the row
    that shows it. An ordinary weight shows 128.

The scale need not be the one that it was: a whole interval of them gives the same BF16. Of that
interval comes amax / 448 where it is inside (the scale that was, if it was made of BF16), else a power
of two, else its middle. A block of zeros, or below the floor of `block_fp8`, gets the floor's scale
where that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstools_kernels.cpu import native
from dstools_kernels.cpu.buffers import at_least_one, input_bytes, output_bytes, whole_rows

if TYPE_CHECKING:
    from dstools_kernels.cpu.buffers import Buffer, WritableBuffer


def recover(
    weight_bf16: Buffer,
    cols: int,
    codes: WritableBuffer,
    scale_inv: WritableBuffer,
    block_size: int = 128,
    *,
    powers_only: bool = False,
) -> int:
    """Return -1 and write FP8 that dequantizes to the BF16 weight [rows, cols] bit for bit.

    Writes `codes` uint8 [rows, cols] and `scale_inv` float32 [blocks of rows, blocks of cols], as
    `block_fp8.quantize` does. Where a block has no such codes and scale, or holds infinity or NaN,
    returns its number instead (they are counted along the rows); the outputs then hold nothing of use.

    With `powers_only` a scale is a power of two, the least that reaches amax, as ue8m0 wants it; below
    its floor of 1e-4 the floor's scale where that fits. Raises ValueError where a size is wrong.
    """
    at_least_one(cols=cols, block_size=block_size)
    source = input_bytes(weight_bf16, "weight_bf16")
    rows = whole_rows(source, "weight_bf16", cols, 2)
    blocks = -(-rows // block_size) * -(-cols // block_size)
    codes_out = output_bytes(codes, "codes", rows * cols)
    scale_out = output_bytes(scale_inv, "scale_inv", 4 * blocks)
    lib = native.library()
    if lib is None:
        from dstools_kernels.formats import lattice_numpy

        return lattice_numpy.recover(source, cols, codes_out, scale_out, block_size, powers_only)
    return int(
        lib.dstools_recover(
            native.level(),
            native.address(source),
            rows,
            cols,
            native.address(codes_out),
            native.address(scale_out),
            powers_only,
            block_size,
        )
    )
