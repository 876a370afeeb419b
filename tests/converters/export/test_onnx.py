import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import require_export
from dstools_converters.export.onnx import make_inputs, tensors_of


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> onnx.ModelProto:
    return onnx.load(exported() / "model.onnx", load_external_data=False)


def test_every_weight_is_where_export_json_says(
    exported: Callable[..., Path], model: onnx.ModelProto
) -> None:
    draft = onnx.load(exported() / "mtp.onnx", load_external_data=False)
    places = {}
    for tensor in (*model.graph.initializer, *draft.graph.initializer):
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert external["location"] == "model.data"
        place = (int(external["offset"]), int(external["length"]), tuple(tensor.dims))
        assert places.setdefault(tensor.name, place) == place  # both graphs share it
    listed = require_export(exported()).weights["model.data"]
    assert places == {w.name: (w.offset, w.nbytes, w.shape) for w in listed}


def test_a_function_stands_beside_every_op_of_ours(model: onnx.ModelProto) -> None:
    used = {node.op_type for node in model.graph.node if node.domain == "dstools"}
    assert used == {"DsMlaAttention", "DsMoE"}
    assert used <= {function.name for function in model.functions}
    for node in model.graph.node:
        if node.domain == "dstools":
            named = {attribute.name: attribute.s for attribute in node.attribute}
            assert named["plugin_namespace"] == b"dstools"
            assert named["plugin_version"] == b"1"


def test_nothing_in_the_file_is_about_how_it_was_made(exported: Callable[..., Path]) -> None:
    for name in ("model.onnx", "mtp.onnx"):
        raw = (exported() / name).read_bytes()
        for word in (b".py", b"/home", b"/tmp", b"pkg.torch", b"stack_trace", b"nn_module"):
            assert word not in raw, word


def test_the_checker_finds_nothing(exported: Callable[..., Path], tmp_path: Path) -> None:
    copy = shutil.copytree(exported(), tmp_path / "copy")  # it refuses files with other links
    for name in ("model.onnx", "mtp.onnx"):
        onnx.checker.check_model(str(copy / name))


def test_the_same_checkpoint_gives_the_same_file(
    exported: Callable[..., Path], model: onnx.ModelProto
) -> None:
    again = exported(options=Options(context=512, max_batch=5))
    assert (again / "model.onnx").read_bytes() == (exported() / "model.onnx").read_bytes()


def test_a_weight_can_become_an_input() -> None:
    weight = ir.Value(name="w", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([], [], nodes=[], initializers=[weight], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    assert tensors_of(model) == {"w": ((2, 3), "F32")}
    make_inputs(model, ["w", "of another graph"])
    assert list(graph.inputs) == [weight]
    assert not graph.initializers
