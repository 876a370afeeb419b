import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest

from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Port, require_export
from dstools_converters.export.trt import rtx_worker
from dstools_converters.export.trt.rtx import Request, build, profiles

SHORT = Options(context=128)


@pytest.fixture
def request_of(exported: Callable[..., Path], tiny_fp8: Path, library: Path) -> Request:
    folder = exported(tiny_fp8, SHORT)
    export = require_export(folder)
    note = export.graphs[1]
    file = str(folder / note.file)
    return Request(file, file, str(library), profiles(note, export)[:1], ("SM89",))


def test_inputs_and_outputs_are_told_by_the_names_of_onnx(request_of: Request) -> None:
    built = build(request_of)
    assert built.inputs[0] == Port("input_ids", "INT64", ("-1",))
    assert built.inputs[1].name == "hidden_states"
    assert {port.dtype for port in built.outputs} == {"FLOAT"}
    layer = next(layer for layer in built.layers if len(layer.outputs) == 2)
    assert layer.outputs[1].name == "present.0.key"
    assert list(built.engines) == ["SM89"]


def test_plugins_that_write_into_inputs_need_leave_to(request_of: Request) -> None:
    built = build(replace(request_of, is_aliasing=False))
    assert built.engines == {"SM89": 0}
    assert "liased I/O used by plugin" in built.errors[0]


def test_what_does_not_parse_is_told_with_its_node(request_of: Request, tmp_path: Path) -> None:
    model = onnx.load(request_of.graph, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "MatMagic"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.SerializeToString())
    built = build(replace(request_of, graph=str(broken)))
    assert built.layer_count == 0
    assert node.name in built.errors[0] or "MatMagic" in built.errors[0]


def test_a_message_is_put_on_one_line() -> None:
    assert rtx_worker._said(" In node 3:\n  [8] Assertion\tfailed\n") == (
        "In node 3: [8] Assertion failed"
    )


def test_requests_survive_json(request_of: Request, tmp_path: Path) -> None:
    from dstools_converters.tables import Reader

    table = json.loads(json.dumps(asdict(request_of)))
    assert Reader("request", "json").read(Request, table) == request_of
