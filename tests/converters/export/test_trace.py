import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from dstools_converters.export.graph import Form
from dstools_converters.export.onnx import note_of
from dstools_converters.export.trace import trace
from dstools_converters.model.architecture import read_architecture

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"
PACKED = [
    ("input_ids", "INT64", ("num_tokens",)),
    ("block_table", "INT32", ("batch_size", "max_num_blocks")),
    ("cumulative_sequence_lengths", "INT32", ("batch_size_plus_1",)),
    ("past_sequence_lengths", "INT32", ("batch_size",)),
    ("attention_metadata", "INT32", ("3",)),
]
CACHE = ("num_blocks", "64", "1", "192")


@cache
def traced(layers: int = 2, *, mtp: bool = False) -> ir.Model:
    """Return a graph of sample-v3 with so many layers; tests share it and must not change it."""
    config = json.loads(SAMPLE.read_text()) | {"num_hidden_layers": layers}
    return trace(read_architecture(config), Form(torch.float32, 128, 64), mtp=mtp)


def ports(model: ir.Model) -> tuple[list[object], list[object], dict[str, int]]:
    note = note_of(model, "model.onnx")
    inputs, outputs = (
        [(port.name, port.dtype, port.shape) for port in each]
        for each in (note.inputs, note.outputs)
    )
    return inputs, outputs, note.plugins


@pytest.mark.parametrize("layers", [2, 3])
def test_inputs_and_outputs_are_those_that_genai_names(layers: int) -> None:
    inputs, outputs, plugins = ports(traced(layers))
    parts = [f"{pair}.{part}" for pair in range(-(-layers // 2)) for part in ("key", "value")]
    assert inputs == PACKED + [(f"past_key_values.{part}", "FLOAT", CACHE) for part in parts]
    assert outputs == [
        ("logits", "FLOAT", ("num_tokens", "320")),
        ("hidden_states", "FLOAT", ("num_tokens", "256")),
        *((f"present.{part}", "FLOAT", CACHE) for part in parts),
    ]
    assert plugins == {"DsMlaAttention": layers, "DsMoE": layers - 1}


def test_the_draft_takes_states_and_returns_them() -> None:
    inputs, outputs, plugins = ports(traced(mtp=True))
    assert inputs[1] == ("hidden_states", "FLOAT", ("num_tokens", "256"))
    assert outputs[1] == ("hidden_states_out", "FLOAT", ("num_tokens", "256"))
    assert plugins == {"DsMlaAttention": 1, "DsMoE": 1}
    assert [name for name, *_ in outputs[2:]] == ["present.0.key", "present.0.value"]  # type: ignore[misc]


def test_a_cache_without_a_layer_is_returned_by_identity() -> None:
    graph = traced(mtp=True).graph
    node = graph.outputs[3].producer()
    assert node is not None
    assert node.op_type == "Identity"
    assert node.inputs[0] is graph.inputs[7]
    assert node.inputs[0].name == "past_key_values.0.value"


def test_weights_of_the_other_graph_are_not_in_it() -> None:
    main, draft = (traced(mtp=mtp).graph.initializers for mtp in (False, True))
    shared = {"model.embed_tokens.weight", "lm_head.weight", "rotary.cos", "rotary.sin"}
    assert main.keys() & draft.keys() == shared


def test_casts_change_the_dtype_and_transposes_are_no_products() -> None:
    """Ops of torch that its exporter would decompose by tracing all again are translated here."""
    graph = traced(mtp=True).graph
    ops = {node.op_type for node in graph}
    assert "Einsum" not in ops
    casts = [node for node in graph if node.op_type == "Cast"]
    assert casts
    for node in casts:
        assert node.inputs[0] is not None
        assert node.inputs[0].dtype != node.outputs[0].dtype


def test_what_constants_alone_decide_is_a_constant(exported: Callable[..., Path]) -> None:
    """TensorRT computes no axes, starts or sizes, and has no sequences."""
    model = onnx.load(exported() / "model.onnx", load_external_data=False)
    constants = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert all(".weight" in w or w.startswith(("model.", "rotary.")) for w in weights)
    for node in model.graph.node:
        assert "Sequence" not in node.op_type
        if node.op_type in ("ReduceMean", "ReduceSum", "Unsqueeze"):
            assert node.input[1] in constants
        inputs = set(node.input) - {""}
        assert not inputs or not inputs <= constants  # else it could be folded
