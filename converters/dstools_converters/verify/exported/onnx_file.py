"""A reader of the outline of an .onnx file that does not need the package onnx.

So an exported folder can be checked where only dstools is installed. The outline is the names of
inputs and outputs, the number of nodes of each kind, and the offsets of the values of each
initializer. All of it is untrusted.
Source: onnx, onnx/onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto); protobuf.dev,
"Encoding".
"""

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dstools_converters.errors import DstoolsError

DTYPES = {1: "F32", 6: "I32", 7: "I64", 10: "F16", 16: "BF16", 17: "F8_E4M3"}  # TensorProto
EXTERNAL = 1  # TensorProto.data_location
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
WIDTHS = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BITS = 64
HINT = "copy or download the file again"
Message = bytes | mmap.mmap


class Initializer(NamedTuple):
    """A weight of a graph."""

    name: str
    dtype: str  # of safetensors, or the number of an ONNX type that it lacks
    shape: tuple[int, ...]
    location: str  # the file with its values, as written; "" where the graph has them itself
    offset: int = 0
    nbytes: int | None = None  # None: not said


@dataclass
class Outline:
    """A graph without its maths."""

    initializers: list[Initializer] = field(default_factory=list)
    nodes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (domain, op) -> how many
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read_outline(path: Path) -> Outline:
    """Return the outline of an .onnx file; raises DstoolsError where it is not one."""
    outline = Outline()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [span for number, span in _fields(data, (0, len(data))) if number == 7]
            if len(graphs) != 1:
                raise ValueError(f"has {len(graphs)} graphs")
            _read_graph(data, _span(graphs[0]), outline)
    except (ValueError, OverflowError) as error:  # mmap's, too, of an empty file
        raise DstoolsError(f"{path}: is not an ONNX model: {error}", HINT) from error
    return outline


def _read_graph(data: Message, span: tuple[int, int], outline: Outline) -> None:
    for number, value in _fields(data, span):
        if number == 1:
            node = dict(_fields(data, _span(value)))
            outline.nodes[_text(data, node.get(7, (0, 0))), _text(data, node.get(4, (0, 0)))] += 1
        elif number == 5:
            outline.initializers.append(_initializer(data, _span(value)))
        elif number in (11, 12):
            info = dict(_fields(data, _span(value)))
            names = outline.inputs if number == 11 else outline.outputs
            names.append(_text(data, info.get(1, (0, 0))))


def _initializer(data: Message, span: tuple[int, int]) -> Initializer:
    name, dtype, is_external, shape = "", "0", False, list[int]()
    place: dict[str, str] = {}
    for number, value in _fields(data, span):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 1:
            at, end = _span(value)
            while at < end:
                size, at = _varint(data, at, end)
                shape.append(size)
        elif number == 2:
            dtype = DTYPES.get(_int(value), str(value))
        elif number == 8:
            name = _text(data, value)
        elif number == 13:
            entry = dict(_fields(data, _span(value)))
            place[_text(data, entry.get(1, (0, 0)))] = _text(data, entry.get(2, (0, 0)))
        elif number == 14:
            is_external = value == EXTERNAL
    if not is_external:
        return Initializer(name, dtype, tuple(shape), "")
    length = place.get("length")
    return Initializer(
        name,
        dtype,
        tuple(shape),
        place.get("location", ""),
        _natural(place.get("offset", "0")),
        None if length is None else _natural(length),
    )


# ------------------------------------------------------------------------------------- protobuf


def _fields(data: Message, span: tuple[int, int]) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Yield number and value of each field: an int, or the span of its bytes."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at, end)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at, end)
        elif kind in WIDTHS:
            length = WIDTHS[kind]
        else:
            raise ValueError(f"a field has the unknown type {kind}")
        if length > end - at:
            raise ValueError("it is cut short")
        yield number, (at, at + length)
        at += length


def _varint(data: Message, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, MAX_VARINT_BITS + 6, 7):
        if at >= end:
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is cut short")


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("a number is where a message should be")
    return value


def _int(value: int | tuple[int, int]) -> int:
    if not isinstance(value, int):
        raise ValueError("a message is where a number should be")
    return value


def _text(data: Message, value: int | tuple[int, int]) -> str:
    begin, end = _span(value)
    return data[begin:end].decode()


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"an offset or length is {text[:40]!r}")
    return int(text)
