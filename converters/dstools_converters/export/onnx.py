"""A traced graph as the bytes of an .onnx file, its weights elsewhere."""

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from dstools_converters.export.data import Entry
from dstools_converters.export.folder import LOCAL_EXPERTS, GraphNote, Port
from dstools_converters.export.functions import DOMAIN, VERSION, functions_of
from dstools_converters.export.graph import MAP

IR_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "I32": ir.DataType.INT32,
}
DTYPES = {value: key for key, value in IR_DTYPES.items()}


def tensors_of(model: ir.Model) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each weight of a graph; constants of the maths are not among them.

    The tracer writes those as nodes.
    """
    found = {}
    for name, value in model.graph.initializers.items():
        assert value.shape is not None
        assert value.dtype is not None
        sizes = tuple(int(size) for size in value.shape if isinstance(size, int))
        found[name] = (sizes, DTYPES.get(value.dtype, str(value.dtype)))
    return found


def make_inputs(model: ir.Model, names: Iterable[str]) -> None:
    """Make inputs of the initializers with these names, experts and their maps.

    Any number of experts fits: a rank may hold copies of others'.
    """
    for name in names:
        value = model.graph.initializers.pop(name, None)
        if value is None:
            continue
        model.graph.inputs.append(value)
        if not name.endswith(f".{MAP}"):
            assert value.shape is not None
            value.shape = ir.Shape([LOCAL_EXPERTS, *value.shape[1:]])


def serialize(model: ir.Model, entries: list[Entry], data: str) -> bytes:
    """Return the file of a graph whose weights are at `entries` of the file `data` beside it.

    What the tracer notes of the modules and files that it came through is left out.
    """
    for entry in entries:
        value = model.graph.initializers[entry.name]
        value.const_value = ir.ExternalTensor(
            data,
            entry.offset,
            entry.nbytes,
            IR_DTYPES[entry.source.dtype],
            shape=ir.Shape(entry.source.shape),
            name=entry.name,
        )
    _forget(model)
    proto = ir.serde.serialize_model(model)
    if all(imported.domain != DOMAIN for imported in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=VERSION)
    proto.functions.extend(functions_of({node.op_type for node in proto.graph.node}))
    proto.producer_name = "dstools"
    proto.ClearField("producer_version")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def note_of(model: ir.Model, file: str) -> GraphNote:
    """Return what export.json says of a graph."""
    ops = Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    collectives = ops.pop("DistCollective", 0)
    inputs, outputs = (
        tuple(map(_port, values)) for values in (model.graph.inputs, model.graph.outputs)
    )
    return GraphNote(file, dict(sorted(ops.items())), collectives, inputs, outputs)


def _port(value: ir.Value) -> Port:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    return Port(value.name, value.dtype.name, tuple(str(size) for size in value.shape))


def _forget(model: ir.Model) -> None:
    """Remove what the tracer has written about Python files, modules and shapes."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
