import json
from dataclasses import replace
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import (
    EXPORT,
    Export,
    GraphNote,
    Pool,
    Port,
    Weight,
    native_code,
    pairs_of,
    read_export,
    require_export,
)

WRITTEN = Export(
    "dstools 1",
    "onnx",
    "deepseek_v3",
    "float32",
    pool=Pool(512, 4, 64, 64, 4608),
    graphs=(
        GraphNote(
            "model.onnx", {"DsMoE": 3}, 0, (Port("input_ids", "INT64", ("num_tokens",)),), ()
        ),
    ),
    weights={"model.data": (Weight("a", "F32", (2, 2), 0, 16, "copy", "00"),)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / EXPORT).write_bytes(WRITTEN.to_bytes())
    assert read_export(tmp_path) == WRITTEN
    assert require_export(tmp_path) == WRITTEN


def test_a_folder_without_the_file_is_not_an_export(tmp_path: Path) -> None:
    assert read_export(tmp_path) is None
    with pytest.raises(DstoolsError, match=r"has no export\.json"):
        require_export(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool": "optimum 1"}, "was not written by dstools"),
        ({"kind": "gguf"}, "kind: 'gguf' is none of"),
        ({"tp": 0}, "tp: 0 is out of range"),
        (
            {"weights": {"model.data": [{"name": "a"}]}},
            r"weights.model.data\[0\].dtype: is missing",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_key(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    table = json.loads(WRITTEN.to_bytes()) | change
    (tmp_path / EXPORT).write_text(json.dumps(table))
    with pytest.raises(DstoolsError, match=words):
        read_export(tmp_path)


def test_equal_exports_have_equal_bytes() -> None:
    assert WRITTEN.to_bytes() == replace(WRITTEN).to_bytes()


def test_an_odd_number_of_layers_has_a_pair_more() -> None:
    assert [pairs_of(layers) for layers in (1, 2, 3, 61)] == [1, 1, 2, 31]


def test_engines_and_whatever_is_named_like_a_library_are_native_code() -> None:
    files = dict.fromkeys(("libdstools_trt.so", "a.so.1", "b.DLL", "model.onnx", "so.json"), "0")
    export = replace(WRITTEN, files=files, engines={"model.plan": "1"})
    assert sorted(native_code(export)) == ["a.so.1", "b.DLL", "libdstools_trt.so", "model.plan"]
