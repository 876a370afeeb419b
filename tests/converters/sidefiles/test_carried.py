"""Files that are copied along: what is small and not a weight, and nothing from elsewhere."""

from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.carried import MAX_SIDE_BYTES, carried_files

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("name", "is_carried"),
    [
        ("tokenizer.json", True),
        ("generation_config.json", True),
        ("LICENSE", True),
        ("modeling_deepseek.py", True),
        ("inference/config_671B_v3.2.json", True),
        ("figures/benchmark.png", True),
        ("inference/config.json", True),  # another folder's, not ours
        ("config.json", False),
        ("manifest.json", False),
        ("SHA256SUMS", False),
        (INDEX, False),
        ("consolidated.safetensors.index.json", False),
        ("model-00001-of-00002.safetensors", False),
        ("original/consolidated.00.pth", False),
        ("pytorch_model.bin", False),
        ("model.gguf", False),
        ("onnx/model.onnx", False),
        ("data.pkl", False),
        (".gitattributes", False),
        (".env", False),
        (".cache/huggingface/download/x.lock", False),
        ("inference/.git/config", False),
    ],
)
def test_what_is_copied_along(tmp_path: Path, name: str, is_carried: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (tmp_path / "an empty folder").mkdir()
    assert carried_files(tmp_path) == ({name: path} if is_carried else {})


def test_linked_files_of_the_hub_cache_are_copied(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1a2b").write_bytes(b"x")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    link = snapshot / "tokenizer.json"
    link.symlink_to("../../blobs/1a2b")
    assert carried_files(snapshot) == {"tokenizer.json": link}


def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").symlink_to("../secret")
    with pytest.raises(DstoolsError, match=r"^notes\.txt: is a link out of the folder"):
        carried_files(tmp_path / "model")


def test_a_file_too_large_to_be_a_side_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights\x1b.npz"
    with path.open("wb") as file:
        file.truncate(MAX_SIDE_BYTES)
    assert list(carried_files(tmp_path)) == ["weights\x1b.npz"]
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DstoolsError, match=r"^weights\\x1b\.npz: 67108865 bytes, too large"):
        carried_files(tmp_path)
