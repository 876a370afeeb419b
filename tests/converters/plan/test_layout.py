"""Every part gets an offset of its own, aligned, in the shard of its source."""

import json
import struct
from typing import Any

from dstools_converters.checkpoint.header import DATA_ALIGNMENT, TensorInfo
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.checkpoint.storage import fp8_block, plain
from dstools_converters.plan.layout import ShardPlan, TensorPlan, lay_out

SCHEME = QuantScheme("native", "float32", (128, 128))


def info(name: str, dtype: str, *shape: int, shard: str = "one") -> TensorInfo:
    return TensorInfo(name, dtype, shape, shard, 0, 0)


def copy(source: TensorInfo) -> TensorPlan:
    return TensorPlan("copy", source, plain(source, source.dtype), "r")


BF16 = info("w.weight", "BF16", 3, 5)
WEIGHT = TensorPlan("quantize", BF16, fp8_block(BF16, SCHEME), "r")
ODD, NORM = copy(info("odd", "U8", 3)), copy(info("n", "BF16", 4))


def header(shard: ShardPlan) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", shard.header[:8])
    assert length == len(shard.header) - 8
    entries: dict[str, Any] = json.loads(shard.header[8:])
    return entries


def test_wider_items_come_first_and_the_data_begins_on_a_page() -> None:
    (shard,) = lay_out([ODD, NORM, WEIGHT], ["one"])
    assert header(shard) == {
        "__metadata__": {"format": "pt"},
        "w.weight_scale_inv": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        "n": {"dtype": "BF16", "shape": [4], "data_offsets": [4, 12]},
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [12, 15]},
        "w.weight": {"dtype": "F8_E4M3", "shape": [3, 5], "data_offsets": [15, 30]},
    }
    assert len(shard.header) == DATA_ALIGNMENT
    assert shard.nbytes == DATA_ALIGNMENT + 30


def test_tensors_keep_their_order_and_parts_get_their_offsets_in_the_file() -> None:
    (shard,) = lay_out([ODD, NORM, WEIGHT], ["one"])
    assert [tensor.source.name for tensor in shard.tensors] == ["odd", "n", "w.weight"]
    offsets = [[part.offset for part in tensor.target.parts] for tensor in shard.tensors]
    assert offsets == [[4096 + 12], [4096 + 4], [4096 + 15, 4096]]
    for placed, draft in zip(shard.tensors, (ODD, NORM, WEIGHT), strict=True):
        assert (placed.action, placed.source, placed.rule) == (draft.action, draft.source, "r")
        assert placed.target.format == draft.target.format
        unplaced = [part._replace(offset=0) for part in placed.target.parts]
        assert unplaced == list(draft.target.parts)


def test_shards_keep_names_and_order_and_an_empty_one_is_left_out() -> None:
    shards = lay_out([NORM, copy(info("x", "F32", 1, shard="a"))], ["one", "empty", "a"])
    assert [shard.name for shard in shards] == ["one", "a"]
