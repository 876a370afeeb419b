"""FP8 codes and scales recovered from the BF16 weight that they were dequantized to.

A weight that once was block FP8 is on a lattice: within a block every element is
bf16(code x scale). Quantizing it anew misses that lattice unless the scale comes out as it was;
`recover` finds the lattice again, or reports a block that has none. It is exact both ways: a block
is accepted only where its codes times its scale are the weight to the bit, negative zeros included;
it is refused only where no float32 scale and no codes give it (or where its non-zeros are all below
2^-90).

Why it is complete. The float32 scales that take a code to a given BF16 are an interval, its ends
found by trying, so the scales of a block are an intersection of intervals as soon as codes are
assigned.
  - The largest element fixes the assignment. Given its code, the scale is known within 2^-7 of
    itself and each other element within 2^-8, while codes are at least a 15th apart: only one fits.
  - Eight codes are enough to try for the largest, those in (224, 448]: a solution in which it is
    smaller is one of these with all codes doubled and the scale halved.
  - A power of two changes no significand, and E4M3 has 8 of them. So a lattice has at most 8
    mantissas, and one element of each gives all intervals; a block with a ninth is refused at the
    row that shows it. An ordinary weight shows 128.

The scale need not be the original one: every scale of an interval gives the same BF16. The choice
is amax / 448 where it is inside (the original scale, if that was made from BF16), else a power of
two, else the middle. A block of zeros, or below the floor of `block_fp8`, gets the floor's scale
where that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstools_kernels.cpu.buffers import at_least_one, input_bytes, output_bytes, whole_rows
from dstools_kernels.formats.dispatch import run

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
    returns its number instead (blocks are counted along the rows); the outputs are then undefined.

    With `powers_only` a scale is a power of two, the least that reaches amax, as in ue8m0; below
    its floor of 1e-4 it is the floor's scale where that fits. Raises ValueError where a size is
    wrong.
    """
    at_least_one(cols=cols, block_size=block_size)
    source = input_bytes(weight_bf16, "weight_bf16")
    rows = whole_rows(source, "weight_bf16", cols, 2)
    blocks = -(-rows // block_size) * -(-cols // block_size)
    coded = output_bytes(codes, "codes", rows * cols)
    scales = output_bytes(scale_inv, "scale_inv", 4 * blocks)
    arguments = (source, rows, cols, coded, scales, powers_only, block_size)
    return run("lattice", "recover", *arguments)
