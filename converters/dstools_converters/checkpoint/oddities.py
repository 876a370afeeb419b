"""Values that a file may hold and a sound checkpoint does not: warned of by name.

`verify` looks at every byte for them, `quantize` and `dequantize` at what passes through them.
"""

from collections.abc import Iterator

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.rows import scale_position
from dstools_converters.errors import Finding
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import E4M3_MAX, FiniteDtype

# The largest weight of a block is between these: the upper is far above any trained weight, and
# the lower is under the floor that quantizers have for a block of zeros.
SANE_AMAX = (1e-13, 1e4)
SANE_MAX = 1e10  # of what is not a weight: norms, biases; masks of older models hold -1e9


def odd_magnitude(info: TensorInfo, largest: float, *, is_weight: bool) -> Iterator[Finding]:
    """Yield a warning where the largest magnitude of a tensor, of a FiniteDtype, is not sound.

    That is the last number of its dtype, and one that no training makes, of which weights have a
    lower bound than other tensors. Codes of FP8 reach their last number in every block.
    """
    if info.dtype.startswith("F8"):
        return
    dtype: FiniteDtype = info.dtype  # type: ignore[assignment]
    if largest == block_fp8.largest_finite(dtype):
        yield Finding.warning(
            "clamped",
            info.where,
            f"holds {largest:g}, the largest {info.dtype}: it overflowed and was clamped",
        )
    elif is_weight:
        yield from _large(info, largest)
    elif largest > SANE_MAX:
        message = f"holds a number of magnitude {largest:g}, far above those of a trained model"
        yield Finding.warning("large-value", info.where, message)


def large_weight(info: TensorInfo, scales: memoryview) -> Iterator[Finding]:
    """Yield a warning where the scales that a weight gets, float32, are of absurd numbers."""
    yield from _large(info, block_fp8.largest_magnitude(scales, "F32") * E4M3_MAX)


def _large(info: TensorInfo, amax: float) -> Iterator[Finding]:
    if amax > SANE_AMAX[1]:
        message = f"holds a weight of up to about {amax:g}, far above any trained weight"
        yield Finding.warning("large-weight", info.where, message)


def absurd_scales(info: TensorInfo, scales: memoryview, first_row: int = 0) -> Iterator[Finding]:
    """Yield a warning for the largest and for the least of `scales`, if it is out of range.

    `scales`: positive float32, whole rows of `info` from `first_row` on.
    """
    if not scales:
        return
    for scale in (block_fp8.largest_magnitude(scales, "F32"), block_fp8.smallest(scales)):
        amax = scale * E4M3_MAX
        if not SANE_AMAX[0] < amax < SANE_AMAX[1]:
            at = scale_position(info, scales, scale, first_row)
            yield Finding.warning(
                "scale-value",
                info.where,
                f"holds {scale:g} at {at}, a weight of up to about {amax:g}",
            )
