"""Storage of weights: the formats, the parts that a weight consists of, and its blocks.

Everything that depends on the format of a weight asks for its `Storage`. A new format needs a name
in StorageFormat, a function like `fp8_block` for its parts, a case in `read_storage` that
recognizes it, one in `rows.restore` that makes numbers of it, and a job in `write/jobs.py` that
makes it; type checking fails at each `match` that lacks a format.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_kernels.fp8 import Dtype

# plain      one tensor, as its dtype says
# fp8-block  E4M3 codes, and a scale for each block of them
StorageFormat = Literal["plain", "fp8-block"]
FLOATS: tuple[Dtype, ...] = get_args(Dtype)  # of weights that are not quantized
CODE_DTYPES = ("F8_E4M3",)
NEVER_CODES = (*FLOATS, "F64", "I64", "BOOL")  # dtypes in which no quantization stores weights
SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")
NO_BLOCKS = (1, 1)


class Storage(NamedTuple):
    """How one weight is stored, in a checkpoint or in a planned output."""

    format: StorageFormat
    parts: tuple[TensorInfo, ...]  # values or codes, then their scales
    block: tuple[int, int]  # rows and columns of a block; NO_BLOCKS of a plain tensor

    @property
    def is_quantized(self) -> bool:
        """Return whether the first part holds codes, which mean nothing without their scales."""
        return self.format != "plain"

    @property
    def is_float(self) -> bool:
        """Return whether `rows.restore` can make float32 of it."""
        return self.is_quantized or self.parts[0].dtype in FLOATS

    @property
    def nbytes(self) -> int:
        """Return the bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def scale(self) -> TensorInfo:
        """Return the part that holds the scales of a quantized weight."""
        return self.parts[1]


def read_storage(
    tensors: Mapping[str, TensorInfo], scheme: QuantScheme | None
) -> dict[str, Storage]:
    """Return the storage of every tensor that is not the scale of another, in their order."""
    quantized = {}
    if scheme is not None:
        for info in tensors.values():
            if info.dtype in CODE_DTYPES and info.name.endswith(".weight"):
                scale = tensors.get(scale_name(info.name, scheme))
                if scale is not None:
                    quantized[info.name] = Storage("fp8-block", (info, scale), scheme.block_size)
    scales = {storage.scale.name for storage in quantized.values()}
    return {
        name: quantized.get(name) or Storage("plain", (info,), NO_BLOCKS)
        for name, info in tensors.items()
        if name not in scales
    }


def scale_name(weight: str, scheme: QuantScheme) -> str:
    """Return the name of the scale of `weight`: its sibling under the same module."""
    return f"{weight.removesuffix('weight')}{scheme.scale_part}"


def plain(source: TensorInfo, dtype: str) -> Storage:
    """Return the storage of an output that is `source` in `dtype`; it has no offset yet."""
    return Storage("plain", (_unplaced(source, source.name, dtype, source.shape),), NO_BLOCKS)


def fp8_block(source: TensorInfo, scheme: QuantScheme) -> Storage:
    """Return the storage of an output that is `source` in block FP8; it has no offsets yet."""
    codes = _unplaced(source, source.name, "F8_E4M3", source.shape)
    grid = scheme.grid(source.shape)
    scale_inv = _unplaced(source, scale_name(source.name, scheme), "F32", grid)
    return Storage("fp8-block", (codes, scale_inv), scheme.block_size)


def _unplaced(source: TensorInfo, name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """Return a tensor of the output shard that has the name of the source's shard."""
    nbytes = math.prod(shape) * ITEM_BITS[dtype] // 8
    return TensorInfo(name, dtype, shape, source.shard, 0, nbytes)
