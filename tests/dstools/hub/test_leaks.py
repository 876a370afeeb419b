"""Local paths and secrets in files that would be published are told by file and line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools.hub.leaks import leaks
from dstools_converters.sidefiles.carried import README


@pytest.fixture
def leaked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """leaked(name, content): where something is given away; home /home/jane, in /srv/work."""
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    monkeypatch.setattr(Path, "cwd", lambda: Path("/srv/work"))

    def look(name: str, content: bytes, card: bytes = b"") -> list[str]:
        (tmp_path / name).write_bytes(content)
        found = leaks({name: tmp_path / name}, card, tmp_path, "hf_MARKED")
        return [f"{finding.code} {finding.where}" for finding in found]

    return look


@pytest.mark.parametrize(
    "value",
    [
        *("/data/ckpt", "./out", "../out", "~/models/x", "C:\\\\models", "D:/models", "\\/data"),
        *("file:///x", "outputs/run-3/ckpt", "\\\\\\\\host\\\\share"),
    ],
)
@pytest.mark.parametrize("key", ["_name_or_path", "base_model", "tokenizer_file"])
def test_a_local_path_as_the_name_of_a_model_is_told_by_line(
    key: str, value: str, leaked: Callable[..., list[str]]
) -> None:
    content = f'{{\n "a": 1,\n "{key}" : "{value}"}}'.encode()
    assert leaked("config.json", content) == ["local-path config.json, line 3"]


@pytest.mark.parametrize(
    "text",
    [
        '{"_name_or_path": "org/name"}',
        '{"_name_or_path": ""}',
        '{"vocab": {"/home": 1, "/home/janet": 2, "/srv/workers": 3, "./": 4, "~/": 5}}',
        '{"chat_template": "/think and /no_think"}',
        "see https://host/home/jane_doe",
    ],
)
def test_names_and_vocabularies_are_not_paths(text: str, leaked: Callable[..., list[str]]) -> None:
    assert leaked("tokenizer.json", text.encode()) == []


@pytest.mark.parametrize(
    "text", ["made in /home/jane", "a /home/jane/x b", "\n/srv/work\n", '"/srv/work/a.jsonl"']
)
@pytest.mark.parametrize("name", ["LICENSE", "report.html", "calibration.json", "train.sh"])
def test_the_home_and_the_working_folder_are_told(
    name: str, text: str, leaked: Callable[..., list[str]]
) -> None:
    line = text.split("/")[0].count("\n") + 1
    assert leaked(name, text.encode()) == [f"local-path {name}, line {line}"]


def test_a_home_of_one_name_counts_with_what_follows(
    leaked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/jane"))
    assert leaked("tokenizer.json", b'{"/jane": 1, "/jane/": 2}') == []
    assert leaked("tokenizer.json", b'"/jane/x"') == ["local-path tokenizer.json, line 1"]


def test_the_root_as_working_folder_is_in_every_text_and_does_not_count(
    leaked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/"))
    assert leaked("a.md", b"/a/b /") == []


@pytest.mark.parametrize(
    "secret",
    [b"hf_MARKED", b"hf_" + b"a" * 34, b"-----BEGIN OPENSSH PRIVATE KEY-----", b"AKIA" + b"A" * 16],
)
def test_tokens_and_keys_in_texts_are_told_and_not_shown(
    secret: bytes, leaked: Callable[..., list[str]]
) -> None:
    for name in ("NOTICE", "train.sh", "n.ipynb", "rows.jsonl", "a.cfg", "tokenizer.model"):
        assert leaked(name, b"\n\nx " + secret + b"\n") == [f"secret {name}, line 3"]


def test_the_header_of_weights_is_a_text_and_their_data_are_not(
    leaked: Callable[..., list[str]],
) -> None:
    header = b'{"__metadata__":{"from":"/home/jane/x"}}'
    content = len(header).to_bytes(8, "little") + header
    assert leaked("a.safetensors", content) == ["local-path a.safetensors, line 1"]
    header = b"{}"
    content = len(header).to_bytes(8, "little") + header + b"/home/jane/x"
    assert leaked("a.safetensors", content) == []


def test_the_card_that_is_published_is_looked_at_and_not_that_of_the_folder(
    leaked: Callable[..., list[str]],
) -> None:
    assert leaked(README, b"/home/jane/x", card=b"fine") == []
    assert leaked("LICENSE", b"fine", card=b"\n/home/jane/x") == ["local-path README.md, line 2"]


@pytest.mark.parametrize("value", ["/data/x", "'/data/x'", '"~/x"', "../x", "C:/x", "file:/x"])
@pytest.mark.parametrize("line", ["base_model: {}", "- base_model: {}", "model_name_or_path = {}"])
def test_a_path_in_a_recipe_is_told(
    line: str, value: str, leaked: Callable[..., list[str]]
) -> None:
    content = f"a: 1\n{line.format(value)}\n".encode()
    assert leaked("recipe.yaml", content) == ["local-path recipe.yaml, line 2"]


def test_a_name_of_the_hub_in_a_recipe_is_not_told(leaked: Callable[..., list[str]]) -> None:
    assert leaked("recipe.yaml", b"base_model: org/name\nmodel: /think\n") == []


def test_weights_of_other_kinds_and_empty_files_are_not_looked_at(
    leaked: Callable[..., list[str]],
) -> None:
    assert leaked("a.bin", b"/home/jane/x") == []
    assert leaked("a.txt", b"") == []


def test_a_file_of_any_size_is_looked_at(leaked: Callable[..., list[str]]) -> None:
    assert leaked("rows.jsonl", bytes(70 << 20) + b" hf_MARKED") == ["secret rows.jsonl, line 1"]


def test_a_safetensors_header_that_claims_too_much_is_read_up_to_its_limit(
    leaked: Callable[..., list[str]],
) -> None:
    assert leaked("a.safetensors", b"\xff" * 8 + b"/home/jane/x ") == [
        "local-path a.safetensors, line 1"
    ]
