"""Graphs and export.json: where weights are, what nodes there are, and the names of ports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
HEAD = "lm_head.weight"


@pytest.fixture
def copy(exported: Callable[..., Path], damaged: Callable[[Path], Any]) -> Any:
    """The sample model with MTP in float32, exported, to be damaged."""
    return damaged(exported(SAMPLE))


def change(copy: Any, edit: Callable[[onnx.ModelProto], object], name: str = "model.onnx") -> None:
    """Change a graph, and list it as it is then."""
    model = onnx.load(copy.path / name, load_external_data=False)
    edit(model)
    copy.put(name, model.SerializeToString())


def place(model: onnx.ModelProto, key: str, value: str, tensor: str = HEAD) -> None:
    """Set an entry of an initializer's place."""
    (found,) = [t for t in model.graph.initializer if t.name == tensor]
    (entry,) = [e for e in found.external_data if e.key == key]
    entry.value = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("offset", "0", "begins at 0, at "), ("length", "8", "takes 8 bytes, 327680 in export.json")],
)
def test_a_place_that_is_not_the_listed_one_is_named(
    copy: Any, key: str, value: str, message: str
) -> None:
    change(copy, lambda model: place(model, key, value))
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("graph-place", f"model.onnx: {HEAD}")
    assert message in finding.message


@pytest.mark.parametrize("location", ["../model.data", "/tmp/model.data", "a/../../model.data"])
def test_a_place_outside_of_the_folder_is_named(copy: Any, location: str) -> None:
    change(copy, lambda model: place(model, "location", location))
    assert ("graph-outside", f"model.onnx: {HEAD}") in copy.faults()


def test_a_place_in_a_file_that_is_not_listed_is_named(copy: Any) -> None:
    change(copy, lambda model: place(model, "location", "other.data"))
    assert ("graph-file", f"model.onnx: {HEAD}") in copy.faults()


def test_two_tensors_that_changed_places_are_named(copy: Any) -> None:
    first, second = (copy.weight(f"model.layers.0.self_attn.{half}") for half in ("w_k", "w_v"))
    for key in ("offset", "sha256"):
        first[key], second[key] = second[key], first[key]
    assert set(copy.faults()) == {
        ("graph-place", "model.onnx: model.layers.0.self_attn.w_k"),
        ("graph-place", "model.onnx: model.layers.0.self_attn.w_v"),
    }


def test_a_tensor_that_the_list_lacks_is_named(copy: Any) -> None:
    copy.table["weights"]["model.data"].remove(copy.weight("model.norm.weight"))
    faults = copy.faults()
    assert ("graph-place", "model.onnx: model.norm.weight") in faults
    assert ("weight-missing", "model.data: model.norm.weight") in faults


def test_a_tensor_that_no_graph_reads_is_named(copy: Any) -> None:
    def remove(model: onnx.ModelProto) -> None:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != HEAD]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    change(copy, remove)
    change(copy, remove, "mtp.onnx")
    assert copy.faults() == [("weight-unused", f"model.data: {HEAD}")]


def test_a_shape_and_a_dtype_that_are_not_the_listed_ones_are_named(copy: Any) -> None:
    def turn(model: onnx.ModelProto) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        tensors[HEAD].dims[:] = [256, 320]
        tensors["model.norm.weight"].data_type = onnx.TensorProto.FLOAT16

    change(copy, turn)
    found = {finding.where: finding.message for finding in copy.findings()}
    assert found == {
        f"model.onnx: {HEAD}": "is [256, 320], [320, 256] in export.json",
        "model.onnx: model.norm.weight": "is F16, F32 in export.json",
    }


def test_nodes_of_a_plugin_are_counted(copy: Any) -> None:
    copy.table["graphs"][0]["plugins"]["DsMoE"] = 4
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("graph-ops", "model.onnx")
    assert finding.message == (
        "has the plugin nodes DsMlaAttention 4, DsMoE 3, DsMlaAttention 4, DsMoE 4 in export.json"
    )


def test_collectives_are_counted(copy: Any) -> None:
    copy.table["graphs"][1]["collectives"] = 2
    assert copy.faults() == [("graph-ops", "mtp.onnx")]


@pytest.mark.parametrize(("ports", "index"), [("inputs", 0), ("outputs", 1)])
def test_names_of_ports_are_compared(copy: Any, ports: str, index: int) -> None:
    name = copy.table["graphs"][0][ports][index]["name"]
    copy.table["graphs"][0][ports][index]["name"] = "other"
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("graph-ports", "model.onnx")
    assert name in finding.message


def test_a_graph_without_a_note_is_named(copy: Any) -> None:
    del copy.table["graphs"][1]
    assert ("graph-note", "mtp.onnx") in copy.faults()


def test_a_note_without_a_graph_is_named(copy: Any) -> None:
    copy.table["graphs"][1]["file"] = "other.onnx"
    assert ("graph-missing", "other.onnx") in copy.faults()


def test_a_file_that_is_no_graph_is_named(copy: Any) -> None:
    copy.put("mtp.onnx", (copy.path / "mtp.onnx").read_bytes()[:-100])
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("graph-unreadable", "mtp.onnx")
    assert finding.message == "is not an ONNX model: it is cut short"
