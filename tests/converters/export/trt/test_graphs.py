import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from dstools_converters.errors import ShortfallError
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import EXPORT, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.trt.graphs import is_shape, require_graphs

SHORT = Options(context=128)


@pytest.fixture
def folder(exported: Callable[..., Path], tiny_fp8: Path, tmp_path: Path) -> Path:
    """A copy of an exported folder, to be damaged."""
    return Path(shutil.copytree(exported(tiny_fp8, SHORT), tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(ShortfallError) as caught:
        require_graphs(folder, require_export(folder))
    return str(caught.value)


def test_a_whole_folder_passes_and_so_do_ranks(
    folder: Path, exported: Callable[..., Path], tiny_fp8: Path
) -> None:
    require_graphs(folder, require_export(folder))
    ranks = exported(tiny_fp8, Options(context=128, mtp=False, ranks=Ranks(ep=2)))
    require_graphs(ranks, require_export(ranks))


def test_weights_that_are_cut_short_are_named(folder: Path) -> None:
    length = (folder / "model.data").stat().st_size
    os.truncate(folder / "model.data", length - 1)
    said = refusal(folder)
    assert f"model.data: has {length - 1} bytes, and " in said
    assert said.endswith(f" ends at {length}")


def test_a_graph_that_is_missing_or_is_none_is_named(folder: Path) -> None:
    (folder / "mtp.onnx").write_bytes(b"no graph")
    assert refusal(folder).endswith("mtp.onnx: is not an ONNX file")
    (folder / "mtp.onnx").unlink()
    assert refusal(folder).endswith("mtp.onnx: is missing")


def test_an_input_that_export_json_does_not_name_so_is_named(folder: Path) -> None:
    record = json.loads((folder / EXPORT).read_text())
    record["graphs"][0]["inputs"][0]["dtype"] = "INT32"
    (folder / EXPORT).write_text(json.dumps(record))
    assert "input input_ids is INT64 [num_tokens]; export.json says INT32 [num_tokens]" in refusal(
        folder
    )
    record["graphs"][0]["inputs"].pop(0)
    (folder / EXPORT).write_text(json.dumps(record))
    assert "its inputs are input_ids, " in refusal(folder)


def test_a_weight_that_is_elsewhere_is_named(folder: Path) -> None:
    export = require_export(folder)
    weight, *rest = export.weights["model.data"]
    moved = replace(export, weights={"model.data": (replace(weight, offset=4096), *rest)})
    with pytest.raises(ShortfallError, match=f"{weight.name} is .* bytes at 0; export.json says"):
        require_graphs(folder, moved)
    less = replace(export, weights={"model.data": tuple(rest)})
    with pytest.raises(ShortfallError, match=f"export.json lists no weight {weight.name}"):
        require_graphs(folder, less)


def test_a_graph_of_other_bytes_is_named(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].name = "renamed"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert refusal(folder).endswith("model.onnx: its sha256 is not that of export.json")


def test_a_size_that_varies_stands_for_no_number() -> None:
    assert is_shape(("-1", "3"), ("num_tokens", "3"))
    assert not is_shape(("-1", "-1"), ("num_tokens", "3"))
    assert not is_shape(("4", "3"), ("num_tokens", "3"))
    assert not is_shape(("-1",), ("num_tokens", "3"))
