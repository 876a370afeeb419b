"""A dense export: onnxruntime-genai's own files, listed whole."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dstools_converters.export.folder import Export
from dstools_converters.verify.folder import verify

NAME = "model.layers.0.weight"


@pytest.fixture
def copy(checkpoint: Callable[..., Path], damaged: Callable[[Path], Any], tmp_path: Path) -> Any:
    """A folder as the builder writes it, with a graph of one weight, to be damaged."""
    folder = tmp_path / "dense"
    folder.mkdir()
    raw = (checkpoint("tiny-qwen2") / "config.json").read_bytes()
    config = json.loads(raw)
    weight = numpy_helper.from_array(np.ones((4, 8), np.float32), NAME)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx.data"), ("offset", "64"), ("length", "128")):
        weight.external_data.add(key=key, value=value)
    sizes = {"hidden_size": config["hidden_size"]}
    sizes["num_attention_heads"] = config["num_attention_heads"]
    decoder = {"filename": "model.onnx", **sizes}
    model = {"vocab_size": config["vocab_size"], "eos_token_id": [1], "decoder": decoder}
    contents = {
        "config.json": raw,
        "genai_config.json": json.dumps({"model": model}).encode(),
        "model.onnx": helper.make_model(
            helper.make_graph([], "g", [], [], [weight])
        ).SerializeToString(),
        "model.onnx.data": bytes(64 + 128),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {name: sha256(content).hexdigest() for name, content in contents.items()}
    export = Export("dstools test", "dense", "qwen2", "float32", files=files)
    (folder / "export.json").write_bytes(export.to_bytes())
    return damaged(folder)


def place(copy: Any, key: str, value: str) -> None:
    """Change where the graph looks for its weight."""
    model = onnx.load(copy.path / "model.onnx", load_external_data=False)
    (entry,) = [e for e in model.graph.initializer[0].external_data if e.key == key]
    entry.value = value
    copy.put("model.onnx", model.SerializeToString())


def test_an_intact_folder_is_clean(copy: Any) -> None:
    assert verify(copy.path).findings == []


def test_a_comparison_that_is_not_made_is_not_passed(
    copy: Any, checkpoint: Callable[..., Path]
) -> None:
    report = verify(copy.path, source=checkpoint("tiny-qwen2"))
    assert [finding.code for finding in report.findings] == ["source-not-compared"]
    assert "4 files by their sha256" in report.checked
    assert "tensors against their source: not for folders of the kind dense" in report.not_checked
    assert "whether it runs: dstools generate" in report.not_checked


def test_a_flipped_byte_of_its_weights_is_named_by_file(copy: Any) -> None:
    copy.flip("model.onnx.data", 100)
    assert copy.faults() == [("file-differs", "model.onnx.data")]


def test_a_weight_beyond_the_end_of_its_file_is_named(copy: Any) -> None:
    place(copy, "offset", "68")
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("graph-place", f"model.onnx: {NAME}")
    assert finding.message == "ends at 196, and model.onnx.data at 192"


def test_a_weight_in_a_file_that_is_not_listed_is_named(copy: Any) -> None:
    place(copy, "location", "other.data")
    assert copy.faults() == [("graph-file", f"model.onnx: {NAME}")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.vocab_size", 1),
        ("model.decoder.hidden_size", 1),
        ("model.decoder.filename", "other.onnx"),
    ],
)
def test_a_genai_config_of_another_model_is_named(copy: Any, key: str, value: object) -> None:
    copy.edit("genai_config.json", key, value)
    (finding,) = copy.findings()
    assert finding.code == "genai-config"
    assert finding.message.startswith(f"{key} is {value!r}")


def test_a_folder_without_genai_config_is_named(copy: Any) -> None:
    (copy.path / "genai_config.json").unlink()
    del copy.table["files"]["genai_config.json"]
    assert copy.faults() == [("genai-config", "genai_config.json")]
