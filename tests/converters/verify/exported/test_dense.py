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
from safetensors.torch import load_file

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Export
from dstools_converters.verify.folder import verify

NAME = "model.layers.0.weight"


def write(folder: Path, source: Path, weights: dict[str, np.ndarray]) -> Path:
    """Write a folder as the builder does, with a graph of these weights; return it."""
    folder.mkdir()
    raw = (source / "config.json").read_bytes()
    config = json.loads(raw)
    initializers, data = [], bytearray(64)
    for name, values in weights.items():
        weight = numpy_helper.from_array(values, name)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        place = {"location": "model.onnx.data", "offset": len(data), "length": values.nbytes}
        for key, value in place.items():
            weight.external_data.add(key=key, value=str(value))
        initializers.append(weight)
        data += values.tobytes()
    sizes = {"hidden_size": config["hidden_size"]}
    sizes["num_attention_heads"] = config["num_attention_heads"]
    decoder = {"filename": "model.onnx", **sizes}
    model = {"vocab_size": config["vocab_size"], "eos_token_id": [1], "decoder": decoder}
    graph = helper.make_graph([], "g", [], [], initializers)
    contents = {
        "config.json": raw,
        "genai_config.json": json.dumps({"model": model}).encode(),
        "model.onnx": helper.make_model(graph).SerializeToString(),
        "model.onnx.data": bytes(data),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {name: sha256(content).hexdigest() for name, content in contents.items()}
    export = Export("dstools test", "dense", config["model_type"], "float32", files=files)
    (folder / "export.json").write_bytes(export.to_bytes())
    return folder


@pytest.fixture
def copy(checkpoint: Callable[..., Path], damaged: Callable[[Path], Any], tmp_path: Path) -> Any:
    """A folder with a graph of one weight, to be damaged."""
    weights = {NAME: np.ones((4, 8), np.float32)}
    return damaged(write(tmp_path / "dense", checkpoint("tiny-qwen2"), weights))


def place(copy: Any, key: str, value: str) -> None:
    """Change where the graph looks for its weight."""
    model = onnx.load(copy.path / "model.onnx", load_external_data=False)
    (entry,) = [e for e in model.graph.initializer[0].external_data if e.key == key]
    entry.value = value
    copy.put("model.onnx", model.SerializeToString())


def test_an_intact_folder_is_clean(copy: Any) -> None:
    assert verify(copy.path).findings == []


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


# ------------------------------------------------------------------------------------------ source


def built(source: Path) -> dict[str, np.ndarray]:
    """Return what the builder makes of `tiny-qwen2`, whose embedding is tied."""
    given = {
        name: tensor.float().numpy()
        for shard in source.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }
    made = {"lm_head.MatMul.weight": given["model.embed_tokens.weight"].T}
    made["model.layers.3.final_norm_layernorm.weight"] = given["model.norm.weight"]
    made |= {name: np.zeros((8, 4), np.float32) for name in ("cos_cache", "sin_cache")}
    for layer in range(3):
        path = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made[f"{path}.{norm}.weight"] = given[f"{path}.{norm}.weight"]
        for part, node in (("weight", "MatMul"), ("bias", "Add")):
            sides = [given[f"{path}.self_attn.{side}_proj.{part}"] for side in "qkv"]
            made[f"{path}.attn.qkv_proj.{node}.{part}"] = np.concatenate(sides).T
        made[f"{path}.attn.o_proj.MatMul.weight"] = given[f"{path}.self_attn.o_proj.weight"].T
        for side in ("gate", "up", "down"):
            name = f"{path}.mlp.{side}_proj"
            made[f"{name}.MatMul.weight"] = given[f"{name}.weight"].T
    return {name: np.ascontiguousarray(values) for name, values in made.items()}


@pytest.fixture
def source(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("tiny-qwen2")


def found(folder: Path, source: Path, weights: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    report = verify(write(folder, source, weights), source=source)
    assert {finding.code for finding in report.findings} <= {"source-differs", "source-other"}
    return [(finding.where, finding.message) for finding in report.findings]


def test_weights_that_are_the_checkpoints_are_clean(source: Path, tmp_path: Path) -> None:
    report = verify(write(tmp_path / "dense", source, built(source)), source=source)
    assert report.findings == []
    assert "26 weights of the graph against the checkpoint's numbers" in report.checked
    assert "the builder's tables of angles against their definition" in report.not_checked
    assert "whether it runs: dstools generate" in report.not_checked


@pytest.mark.parametrize(
    ("name", "at", "place"),
    [
        # 256 rows of queries, then 128 of keys: a column of the graph is a row of the checkpoint
        ("layers.1.attn.qkv_proj.MatMul.weight", (7, 256 + 5), "k_proj.weight: {} row 5, column 7"),
        ("layers.1.attn.qkv_proj.Add.bias", (256 + 128 + 3,), "v_proj.bias: {} row 0, column 3"),
        ("layers.0.mlp.down_proj.MatMul.weight", (9, 2), "down_proj.weight: {} row 2, column 9"),
        ("layers.3.final_norm_layernorm.weight", (4,), "model.norm.weight: {} row 0, column 4"),
    ],
)
def test_a_number_that_is_not_the_checkpoints_is_named_with_its_place_there(
    name: str, at: tuple[int, ...], place: str, source: Path, tmp_path: Path
) -> None:
    weights = built(source)
    weights[f"model.{name}"][at] *= 1 + 2**-20
    ((where, message),) = found(tmp_path / "dense", source, weights)
    assert where == f"model.onnx: model.{name}"
    assert message.startswith("is not what is converted from model")
    assert message.endswith(place.format("they differ at"))


def test_weights_that_are_missing_surplus_or_of_another_shape_are_named(
    source: Path, tmp_path: Path
) -> None:
    weights = built(source)
    gate = "model.layers.2.mlp.gate_proj.MatMul.weight"
    weights["other"] = weights.pop("model.layers.2.input_layernorm.weight")
    weights[gate] = np.ascontiguousarray(weights[gate].T)
    assert dict(found(tmp_path / "dense", source, weights)) == {
        "model.onnx: other": "is not made of anything in this checkpoint",
        "model.onnx: model.layers.2.input_layernorm.weight": "is missing, and this checkpoint "
        "makes it",
        f"model.onnx: {gate}": "is F32 [640, 256]; this checkpoint makes it F32 [256, 640]",
    }


def test_a_checkpoint_of_another_model_is_refused(
    copy: Any, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(DstoolsError, match="is of model_type 'llama'"):
        verify(copy.path, source=checkpoint("tiny-llama"))


def test_a_graph_whose_weights_cannot_be_read_is_not_compared(copy: Any, source: Path) -> None:
    place(copy, "offset", "68")
    assert [code for code, _ in copy.faults(source=source)] == ["graph-place"]
