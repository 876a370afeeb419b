"""Local paths in JSON: left out by key and value, at any depth, and nothing else with them."""

import json
from pathlib import Path

import pytest

from dstools_converters.checkpoint.local_paths import without_local_paths

PATHS = [
    "/home/jane/ckpt-9000", "/", "~/models/v3", "~", "./out", "../out", ".", "..", "out/", "a/b/c",
    "C:\\Users\\jane\\model", "C:/Users/jane/model", "\\\\server\\share\\model", "out\\run-3",
    "D:model", "file:///home/jane/model", "s3://bucket/model", "my model", " ", "org/name\n",
]  # fmt: skip
NAMES = ["deepseek-ai/DeepSeek-V3", "gpt2", "org/name_1.5-x", "_org/name"]


@pytest.mark.parametrize("key", ["_name_or_path", "name_or_path", "base_model_name_or_path"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_left_out(key: str, path: str) -> None:
    raw = json.dumps({"a": 1, key: path, "b": 2})
    assert without_local_paths(raw) == ({"a": 1, "b": 2}, [key])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_hub_is_kept(name: str) -> None:
    table = {"_name_or_path": name}
    assert without_local_paths(json.dumps(table)) == (table, [])


def test_a_name_that_is_a_folder_here_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs" / "run-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    raw = '{"_name_or_path": "outputs/run-3"}'
    assert without_local_paths(raw) == ({}, ["_name_or_path"])


@pytest.mark.parametrize("value", ["", None, 5, True, ["/home/jane"], {"path": "/home/jane"}])
def test_what_is_not_a_text_is_kept(value: object) -> None:
    table = {"_name_or_path": value}
    assert without_local_paths(json.dumps(table)) == (table, [])


def test_other_keys_are_kept_whatever_they_hold() -> None:
    table = {"vocab_file": "/home/jane/vocab.json", "chat_template": "/think", "path": "/usr"}
    assert without_local_paths(json.dumps(table)) == (table, [])


def test_what_transformers_takes_for_private_in_a_tokenizer_is_left_out() -> None:
    table = {
        "tokenizer_file": "/home/jane/.cache/huggingface/x/tokenizer.json",
        "special_tokens_map_file": "/home/jane/x/special_tokens_map.json",
        "name_or_path": "/home/jane/x",
        "model_max_length": 1000000000000000019884624838656,
    }
    kept, left_out = without_local_paths(json.dumps(table))
    assert kept == {"model_max_length": 1000000000000000019884624838656}
    assert left_out == list(table)[:3]


def test_paths_are_found_at_any_depth_and_the_order_of_keys_stays() -> None:
    path = {"_name_or_path": "/home/jane"}
    raw = json.dumps({"z": 1, "text_config": path | {"y": [path | {"x": 2}]}, **path, "a": 3})
    kept, left_out = without_local_paths(raw)
    assert json.dumps(kept) == json.dumps({"z": 1, "text_config": {"y": [{"x": 2}]}, "a": 3})
    assert left_out == ["_name_or_path"]
