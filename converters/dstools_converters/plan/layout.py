"""Layout of the output: the offset of every tensor in its shard, before a weight is read.

Within a shard, tensors of wider items come first, so that each begins at a multiple of its item
size (as in safetensors' own writer), and the data begins on a page.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo, format_header
from dstools_converters.checkpoint.storage import Storage

# copy        bytes unchanged; the scale of an FP8 weight is copied as F32
# quantize    BF16, F16 or F32 -> codes and scale
# requantize  codes and scale -> codes and scale of another scale format
# restore     BF16 -> the base's codes and scale where they dequantize to it, else quantize
# recover     BF16 -> the codes and scale it was dequantized from if there are any, else quantize
# dequantize  codes and scale -> BF16
# calibrate   as quantize or requantize, by `calibrate`, from the inputs of the weight
Action = Literal["copy", "quantize", "requantize", "restore", "recover", "dequantize", "calibrate"]


class TensorPlan(NamedTuple):
    """What becomes of one tensor: the source, how it is stored in the output, and why."""

    action: Action
    source: TensorInfo
    target: Storage
    rule: str


@dataclass(frozen=True)
class ShardPlan:
    """One output file: its header, and the tensors that fill it, in the order of the source."""

    name: str
    header: bytes
    tensors: tuple[TensorPlan, ...]
    nbytes: int


def lay_out(tensors: Iterable[TensorPlan], shards: Iterable[str]) -> tuple[ShardPlan, ...]:
    """Return shards of the source's names and order, with the offset of every part."""
    by_shard: dict[str, list[TensorPlan]] = {name: [] for name in shards}
    for tensor in tensors:
        by_shard[tensor.source.shard].append(tensor)
    # a shard of scales alone is left empty: scales go to the shard of their weights
    return tuple(_lay_out_shard(name, its) for name, its in by_shard.items() if its)


def _lay_out_shard(name: str, tensors: list[TensorPlan]) -> ShardPlan:
    parts = [part for tensor in tensors for part in tensor.target.parts]
    parts.sort(key=lambda part: -ITEM_BITS[part.dtype])
    header = format_header(parts)
    starts: dict[str, int] = {}
    end = 0
    for part in parts:
        starts[part.name] = end
        end += part.nbytes
    base = len(header)
    placed = []
    for action, source, target, rule in tensors:  # `_replace` would take twice the time
        parts = [
            TensorInfo(p.name, p.dtype, p.shape, p.shard, base + starts[p.name], p.nbytes)
            for p in target.parts
        ]
        storage = Storage(target.format, tuple(parts), target.block)
        placed.append(TensorPlan(action, source, storage, rule))
    return ShardPlan(name, header, tuple(placed), base + end)
