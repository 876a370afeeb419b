"""The constants and types of FP8 weights: E4M3 codes, and the scales that belong to them.

E4M3 has 4 exponent bits of bias 7 and 3 mantissa bits, no infinity and one NaN of each sign.
Source: OCP 8-bit Floating Point Specification (OFP8), 1.0.
"""

from typing import Literal

# dtypes as safetensors spells them
Dtype = Literal["BF16", "F16", "F32"]  # what is quantized
WidenDtype = Literal["BF16", "F16", "F32", "F8_E8M0"]  # what is widened to float32
# what is searched for NaN and infinity
FiniteDtype = Literal["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"]
ScaleFormat = Literal["float32", "ue8m0"]  # ue8m0: powers of two

E4M3_MAX = 448.0
# Rows and columns of a weight that share a scale, and columns of an activation; of DeepSeek's
# checkpoints, and of all kernels for GPUs.
BLOCK = 128
# Smallest amax that a scale is made of, so that a block of zeros does not divide zero by zero.
# For ue8m0 it is the floor of engines that quantize again at load time (DeepGEMM,
# per_block_cast_to_fp8): with the same floor they change nothing.
AMAX_FLOOR: dict[ScaleFormat, float] = {"float32": 1e-12, "ue8m0": 1e-4}

# Factors that a search of scales tries on the scale that amax gives; the first of equals wins.
SEARCHED: dict[ScaleFormat, tuple[float, ...]] = {
    "float32": (1.0, *(n / 20 for n in range(14, 27) if n != 20)),
    "ue8m0": (1.0, 0.5, 2.0),
}

ITEMSIZE: dict[str, int] = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
# An element in which all of these bits are set is infinity or NaN.
NON_FINITE_BITS: dict[FiniteDtype, int] = {
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F32": 0x7F800000,
    "F64": 0x7FF0000000000000,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
}
