"""The outline of an .onnx file is that which the package onnx reads, and damage is an error."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dstools_converters.errors import DstoolsError
from dstools_converters.verify.exported.onnx_file import DTYPES, read_outline

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"


@pytest.mark.parametrize("name", ["model.onnx", "mtp.onnx"])
def test_the_outline_is_that_of_the_package(exported: Callable[..., Path], name: str) -> None:
    path = exported(SAMPLE) / name
    outline, graph = read_outline(path), onnx.load(path, load_external_data=False).graph
    assert outline.inputs == [value.name for value in graph.input]
    assert outline.outputs == [value.name for value in graph.output]
    assert outline.nodes.total() == len(graph.node)
    assert set(outline.nodes) == {(node.domain, node.op_type) for node in graph.node}
    assert len(outline.initializers) == len(graph.initializer)
    for tensor, theirs in zip(outline.initializers, graph.initializer, strict=True):
        entries = {entry.key: entry.value for entry in theirs.external_data}
        assert (tensor.name, tensor.shape) == (theirs.name, tuple(theirs.dims))
        assert tensor.location == entries["location"]
        assert tensor.offset == int(entries["offset"])
        assert tensor.nbytes == int(entries["length"])


def test_dtypes_have_the_numbers_of_the_package() -> None:
    names = {"F32": "FLOAT", "I32": "INT32", "I64": "INT64", "F16": "FLOAT16"}
    names |= {"BF16": "BFLOAT16", "F8_E4M3": "FLOAT8E4M3FN"}
    assert {number: TensorProto.DataType.Name(number) for number in DTYPES} == {
        number: names[dtype] for number, dtype in DTYPES.items()
    }


def test_values_in_the_graph_have_no_place(tmp_path: Path) -> None:
    inside = numpy_helper.from_array(np.ones((2, 3), np.int8), "inside")
    graph = helper.make_graph([], "g", [], [], [inside])
    path = tmp_path / "a.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (tensor,) = read_outline(path).initializers
    assert tensor == ("inside", "3", (2, 3), "", 0, None)


def test_a_place_counts_only_where_the_values_are_said_to_be_elsewhere(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.external_data.add(key="location", value="other.data")
    graph = helper.make_graph([], "g", [], [], [tensor])
    path = write(tmp_path, helper.make_model(graph).SerializeToString())
    assert [found.location for found in read_outline(path).initializers] == [""]
    graph.initializer[0].data_location = TensorProto.EXTERNAL
    path = write(tmp_path, helper.make_model(graph).SerializeToString())
    assert [found.location for found in read_outline(path).initializers] == ["other.data"]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"\x08", "it is cut short"),  # a tag without its value
        (b"\x3a\x05\x0a", "it is cut short"),  # a graph of five bytes, one there
        (b"\x08\x07", "has 0 graphs"),
        (b"\x3a\x00\x3a\x00", "has 2 graphs"),
        (b"\x38\x00", "a number is where a message should be"),
        (b"\x0b", "a field has the unknown type 3"),  # of protobuf's first version
        (b"\xff" * 12, "it is cut short"),  # a number that does not end
        (b"\x3a\x05\x2a\x03\x42\x01\xff", "invalid start byte"),  # a name that is no UTF-8
        (b"\x3a\x0d\x2a\x0b\x6a\x09\x0a\x06offset\x12\x00\x70\x01", ""),
    ],
)
def test_what_is_not_an_onnx_model_is_an_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DstoolsError, match=f"is not an ONNX model: .*{message}"):
        read_outline(write(tmp_path, content))


def test_no_damage_is_anything_but_an_error(exported: Callable[..., Path], tmp_path: Path) -> None:
    content = (exported(SAMPLE) / "mtp.onnx").read_bytes()
    dice = random.Random(17)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        del damaged[dice.randrange(len(damaged) // 2, len(damaged) + 1) :]
        with suppress(DstoolsError):
            read_outline(write(tmp_path, bytes(damaged)))
