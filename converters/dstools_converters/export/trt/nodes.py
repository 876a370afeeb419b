"""Holds each node of our ops to what its plugin takes, in words that name node and input.

TensorRT says little: a node without plugin_namespace is silently replaced by its function, a
wrong dtype ends as "failed to find any supported format", and the builder asks the plugin nothing
about shapes. So the graph is checked before it is built.

Letters: T tokens, B rows, H heads, C elements of a latent and its rotated key, L of the latent, P
pages of S tokens, N pages of a row, D hidden size, I width of an expert, X experts of this file and
E of the model, K experts of a token or inputs of a product with M outputs. A letter after "/" is
divided by 128 and rounded up: a grid of scales.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx

from dstools_converters.errors import ShortfallError
from dstools_converters.export.folder import GraphNote, Pool
from dstools_converters.export.functions import ALL_REDUCE, DOMAIN, PLUGIN, VERSION
from dstools_converters.runtime.pages import PAGE

REPORT = "export the model again; if it stays so, report it"
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


class Operand(NamedTuple):
    """An input or output of an op."""

    name: str
    dtype: str  # of ONNX; "" is that of the first input
    shape: str


class Op(NamedTuple):
    """The inputs, outputs and attributes of a plugin."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    attributes: frozenset[str] = frozenset()


def _operands(*described: str) -> tuple[Operand, ...]:
    """Return operands written as "name shape dtype"."""
    words = (text.split() for text in described)
    return tuple(Operand(name, dtype[0] if dtype else "", shape) for name, shape, *dtype in words)


_ROUTED = ("x TD", "ids TK INT32", "weights TK FLOAT", "expert_map E INT32")
_CODE, _SCALE = "FLOAT8E4M3FN", "FLOAT"
OPS = {
    "DsMlaAttention": Op(
        _operands(
            "q THC",
            "latent TC",
            "cache PS1C",
            "cumulative Z INT32",
            "past B INT32",
            "table BN INT32",
        ),
        _operands("o THL", "cache PS1C"),
        frozenset({"scale", "rank", "dtype"}),
    ),
    "DsMoE": Op(_operands(*_ROUTED, "w1 XID", "w3 XID", "w2 XDI"), _operands("y TD")),
    "DsFp8BlockLinear": Op(
        _operands("x TK", f"w MK {_CODE}", f"scale_inv /M/K {_SCALE}"), _operands("y TM")
    ),
    "DsFp8BlockMoE": Op(
        _operands(
            *_ROUTED,
            f"w1 XID {_CODE}",
            f"s1 X/I/D {_SCALE}",
            f"w3 XID {_CODE}",
            f"s3 X/I/D {_SCALE}",
            f"w2 XDI {_CODE}",
            f"s2 X/D/I {_SCALE}",
        ),
        _operands("y TD"),
    ),
}


class Type(NamedTuple):
    """The dtype of a value by its name in ONNX, and its sizes; those that vary have names."""

    dtype: str
    shape: tuple[int | str, ...]


def types_of(graph: onnx.GraphProto) -> dict[str, Type]:
    """Return the types of all values that a graph tells."""
    types = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        sizes = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
        types[value.name] = Type(onnx.TensorProto.DataType.Name(tensor.elem_type), sizes)
    for tensor in graph.initializer:
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type)
        types[tensor.name] = Type(dtype, tuple(tensor.dims))
    return types


def require_nodes(file: str, model: onnx.ModelProto, note: GraphNote, pool: Pool) -> None:
    """Raise ShortfallError, naming the file and a node, where a plugin would not take it.

    note, pool: what export.json says of the graph and of its caches.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    types, counts = types_of(model.graph), Counter[str]()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        counts[node.op_type] += 1
        where = f"{file}: node {node.name} ({node.op_type})"
        if (node.domain, node.op_type) not in functions:
            raise ShortfallError(f"{where}: the file has no function of that name", REPORT)
        if node.op_type == "DistCollective":
            _require_attributes(where, node, ALL_REDUCE, frozenset())
        elif node.op_type not in OPS:
            known = ", ".join(OPS)
            raise ShortfallError(f"{where}: no plugin of that name; there are {known}", REPORT)
        else:
            op = OPS[node.op_type]
            _require_attributes(where, node, PLUGIN, op.attributes)
            sizes = _require_operands(where, node, op, types)
            if node.op_type == "DsMlaAttention":
                _require_attention(where, node, model.graph, sizes, pool)
    collectives = counts.pop("DistCollective", 0)
    if counts != note.plugins or collectives != note.collectives:
        raise ShortfallError(
            f"{file}: has {_listed(counts)} and {collectives} collectives; export.json says "
            f"{_listed(note.plugins)} and {note.collectives}",
            REPORT,
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "no plugin"


def _require_attributes(
    where: str, node: onnx.NodeProto, fixed: Mapping[str, str | int], free: frozenset[str]
) -> None:
    """Raise ShortfallError where attributes are missing, unknown, or of another value."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name in (*fixed, *sorted(free)):
        if name not in given:
            silently = "; TensorRT would inline the function silently" if name in PLUGIN else ""
            raise ShortfallError(f"{where}: has no attribute {name}{silently}", REPORT)
    for name, value in given.items():
        if name not in fixed and name not in free:
            raise ShortfallError(f"{where}: {name} is not an attribute of this op", REPORT)
        value = value.decode() if isinstance(value, bytes) else value
        if name == "plugin_version" and value != str(VERSION):
            raise ShortfallError(
                f"{where}: is of version {value}, the plugins are of version {VERSION}",
                "export the model again with this dstools",
            )
        if name in fixed and value != fixed[name]:
            raise ShortfallError(f"{where}: {name} is {value!r}, not {fixed[name]!r}", REPORT)


def _require_operands(
    where: str, node: onnx.NodeProto, op: Op, types: Mapping[str, Type]
) -> dict[str, int | str]:
    """Return the size that each letter has; raise ShortfallError where dtypes or shapes differ."""
    if (len(node.input), len(node.output)) != (len(op.inputs), len(op.outputs)):
        raise ShortfallError(
            f"{where}: has {len(node.input)} inputs and {len(node.output)} outputs, "
            f"not {len(op.inputs)} and {len(op.outputs)}",
            REPORT,
        )
    sizes: dict[str, int | str] = {}
    first = ""
    pairs = zip((*op.inputs, *op.outputs), (*node.input, *node.output), strict=True)
    for operand, name in pairs:
        if name not in types:
            raise ShortfallError(f"{where}: the file tells no type of {name}", REPORT)
        dtype, shape = types[name]
        wanted = operand.dtype or first or " or ".join(FLOATS)
        if dtype not in wanted.split(" or "):
            raise ShortfallError(f"{where}: {operand.name} is {dtype}, not {wanted}", REPORT)
        first = first or dtype
        _require_shape(f"{where}: {operand.name}", operand.shape, shape, sizes)
    return sizes


def _require_shape(
    where: str, letters: str, shape: tuple[int | str, ...], sizes: dict[str, int | str]
) -> None:
    """Note the size of each new letter; raise ShortfallError where one has another."""
    wanted = list(_dimensions(letters))
    if len(wanted) != len(shape):
        raise ShortfallError(f"{where} has {len(shape)} dimensions, not {len(wanted)}", REPORT)
    for letter, size in zip(wanted, shape, strict=True):
        if letter == "1":
            known: int | str = 1
        elif letter.startswith("/"):
            whole = sizes[letter[1]]
            known = -(-whole // 128) if isinstance(whole, int) else size
        else:
            known = sizes.setdefault(letter, size)
        if size != known:
            raise ShortfallError(f"{where} is {list(shape)}: {size} should be {known}", REPORT)


def _dimensions(letters: str) -> Iterator[str]:
    """Yield "X", "/I", "/D" of "X/I/D"."""
    place = 0
    while place < len(letters):
        length = 2 if letters[place] == "/" else 1
        yield letters[place : place + length]
        place += length


def _require_attention(
    where: str,
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    sizes: Mapping[str, int | str],
    pool: Pool,
) -> None:
    """Raise ShortfallError where attributes, pages or the aliased cache do not fit."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    rank, width, page = given["rank"], sizes["C"], sizes["S"]
    if rank != sizes["L"] or not 0 < rank < int(width):
        raise ShortfallError(
            f"{where}: rank is {rank}, o has {sizes['L']} and latents {width} elements", REPORT
        )
    if not given["scale"] > 0:
        raise ShortfallError(f"{where}: scale is {given['scale']}, not positive", REPORT)
    if page != PAGE or page != pool.page_size:
        raise ShortfallError(
            f"{where}: pages have {page} tokens; the kernels read {PAGE}, export.json says "
            f"{pool.page_size}",
            f"export with --page-size {PAGE}",
        )
    cache, written = node.input[2], node.output[1]
    wanted = cache.replace("past_key_values", "present")
    if cache not in {value.name for value in graph.input}:
        raise ShortfallError(f"{where}: {cache} is not an input of the graph", REPORT)
    if written != wanted or written not in {value.name for value in graph.output}:
        raise ShortfallError(
            f"{where}: {written} is not the output {wanted}, so the cache would be copied", REPORT
        )
