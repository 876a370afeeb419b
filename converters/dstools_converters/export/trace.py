"""Graphs of a model, traced by torch's exporter, without a weight in memory."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnxscript import opset21 as op
from onnxscript.optimizer import fold_constants_ir, remove_unused_nodes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export

from dstools_converters.export.folder import ROWS, pairs_of
from dstools_converters.export.graph import Draft, Form, Main, decoder_of, default_dtype
from dstools_converters.families import shapes as family
from dstools_converters.model.architecture import Architecture

OPSET = 21
SIZES = {  # of inputs, the names of those that vary
    "input_ids": ("num_tokens",),
    "block_table": ("batch_size", "max_num_blocks"),
    "cumulative_sequence_lengths": ("batch_size_plus_1",),
    "past_key_values": ("num_blocks",),
    ROWS: ("num_logits",),
}


def trace(architecture: Architecture, form: Form, *, mtp: bool) -> ir.Model:
    """Return the graph of a model, or of its first MTP layer; initializers have no values.

    About 0.4 CPU-seconds a layer. Raises DstoolsError for a model without latents.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # on the CPU: meta tensors do not trace
    with _quiet(), fake, torch.no_grad(), default_dtype(form.dtype):
        decoder = decoder_of(architecture, form)
        module = Draft(decoder, form) if mtp else Main(decoder, form)
        ports = _ports(architecture.model, form, mtp)
        arguments = {port.argument: port.value for port in ports}
        sizes = {port.argument: port.sizes for port in ports}
        program = export(module.eval(), (), arguments, dynamic_shapes=sizes, strict=False)
        # a second tracing, which would find but few ops to decompose: those below
        program.run_decompositions = lambda table: program
        traced = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.aten.to.dtype: _to,
                torch.ops.aten.mT.default: _transposed,  # else an Einsum
            },
            optimize=False,
            verbose=False,
        )
    assert traced is not None
    _fold(traced.model)
    hidden = "hidden_states_out" if mtp else "hidden_states"
    names = [name for port in ports for name in port.names]
    written = [name.replace("past_key_values", "present") for name in names if "past_k" in name]
    _name(traced.model, names, ["logits", hidden, *written])
    return traced.model


def _to(
    x: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: None = None
) -> Any:
    """Return the nodes of `Tensor.to`; a Cast to the same dtype is folded."""
    return op.Cast(x, to=dtype)


def _transposed(x: Any) -> Any:
    """Return the node of `Tensor.mT`."""
    *others, rows, columns = range(len(x.shape))
    return op.Transpose(x, perm=[*others, columns, rows])


def _fold(model: ir.Model) -> None:
    """Compute what depends on no weight: TensorRT takes axes, starts and sizes as constants only.

    Results become nodes, as the tracer's own constants are: an initializer is a weight.
    """
    initializers = model.graph.initializers
    weights = set(initializers)
    for value in initializers.values():
        value.const_value = None  # of the tracer: no values
    fold_constants_ir(model)
    remove_unused_nodes(model)
    for name in [name for name in initializers if name not in weights]:
        value = initializers.pop(name)
        node = ir.node("Constant", [], {"value": value.const_value})
        model.graph.insert_before(model.graph[0], node)
        value.replace_all_uses_with(node.outputs[0])
        node.outputs[0].name = name


def _name(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs, outputs and sizes that vary their names; drop weights that nothing uses.

    An output that is an input gets an Identity in between: ONNX Runtime takes no time for it where
    both are bound to one buffer, and copies the cache for an addition of 0.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses():  # of layers of the other graph
            del graph.initializers[name]
    sizes: dict[str, str] = {}
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
        assert value.shape is not None
        for size, named in zip(value.shape, SIZES.get(name.partition(".")[0], ()), strict=False):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                sizes.setdefault(size.value, named)
    for place, (value, name) in enumerate(zip(graph.outputs, outputs, strict=True)):
        if value.is_graph_input():
            node = ir.node("Identity", [value])
            graph.append(node)
            graph.outputs[place] = copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
        graph.outputs[place].name = name
    values = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.inputs, *values):
        if value.shape is not None:
            known = (s.value if isinstance(s, ir.SymbolicDim) else s for s in value.shape)
            value.shape = ir.Shape([sizes.get(s) if isinstance(s, str) else s for s in known])


class _Port(NamedTuple):
    """An argument of a module, and the inputs that it becomes."""

    argument: str
    value: Any  # an example
    names: list[str]
    sizes: Any  # those that vary, by dimension


def _ports(model: family.Model, form: Form, mtp: bool) -> list[_Port]:
    """Return the arguments of a graph's module in its order."""
    attention = model.attention
    assert isinstance(attention, family.MLA)
    tokens, rows, batch = Dim("num_tokens"), Dim("num_logits"), Dim("batch_size")
    pages, columns = Dim("num_blocks"), Dim("max_num_blocks")
    ends = Dim("batch_size_plus_1", min=3)  # torch would take 2 for a constant
    ids, hidden = torch.zeros(5, dtype=torch.int64), torch.zeros(5, model.hidden_size)
    table, cumulative, past, metadata = (
        torch.zeros(*shape, dtype=torch.int32) for shape in ((2, 3), (3,), (2,), (3,))
    )
    count = pairs_of(1 if mtp else model.num_hidden_layers)
    names = [f"past_key_values.{i}.{part}" for i in range(count) for part in ("key", "value")]
    caches = tuple(torch.zeros(7, form.page, 1, attention.latent_width) for _ in names)
    ports = [
        _Port("ids", ids, ["input_ids"], {0: tokens}),
        _Port("table", table, ["block_table"], {0: batch, 1: columns}),
        _Port("cumulative", cumulative, ["cumulative_sequence_lengths"], {0: ends}),
        _Port("past", past, ["past_sequence_lengths"], {0: batch}),
        _Port("metadata", metadata, ["attention_metadata"], {}),
        _Port("caches", caches, names, tuple({0: pages} for _ in names)),
    ]
    if mtp:
        ports.insert(1, _Port("hidden", hidden, ["hidden_states"], {0: tokens}))
    if form.picks_rows:
        ports.append(_Port("rows", torch.zeros(4, dtype=torch.int32), [ROWS], {0: rows}))
    return ports


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of packages that no graph here needs, and of its own future."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)
