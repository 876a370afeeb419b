"""The hashes of the Hub's client, as huggingface_hub itself writes them."""

from pathlib import Path

import pytest
from huggingface_hub._local_folder import write_download_metadata

from dstools_converters.sidefiles.hub_sums import METADATA, hub_hashes

SHA256, GIT = "5" * 64, "a" * 40


def test_the_metadata_of_a_download_into_a_folder_are_read(tmp_path: Path) -> None:
    for name, etag in (("model.safetensors", SHA256), ("sub/config.json", GIT), ("x", "W-etag")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        write_download_metadata(tmp_path, name, "c" * 40, etag)
    assert hub_hashes(tmp_path) == {"model.safetensors": SHA256, "sub/config.json": GIT}


def test_a_file_that_is_gone_still_has_its_hash(tmp_path: Path) -> None:
    write_download_metadata(tmp_path, "original.pth", "c" * 40, SHA256)
    assert hub_hashes(tmp_path) == {"original.pth": SHA256}


def test_a_hash_in_quotes_or_capitals_is_read(tmp_path: Path) -> None:
    write_download_metadata(tmp_path, "a", "c" * 40, f'"{SHA256}"')
    write_download_metadata(tmp_path, "b", "c" * 40, GIT.upper())
    assert hub_hashes(tmp_path) == {"a": SHA256, "b": GIT}


@pytest.mark.parametrize("content", [b"", b"c\n", b"\xff\n\xff\n", b"c\n" + b"5" * 63 + b"\n"])
def test_damaged_metadata_give_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("")
    (tmp_path / METADATA).mkdir(parents=True)
    (tmp_path / METADATA / "config.json.metadata").write_bytes(content)
    assert hub_hashes(tmp_path) == {}


def test_the_names_of_blobs_in_a_hub_cache_are_hashes_and_links_to_themselves_have_none(
    tmp_path: Path,
) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "rev"
    (snapshot / "sub").mkdir(parents=True)
    (repo / "blobs").mkdir()
    for name, blob in (("a.json", GIT), ("sub/b.json", SHA256), ("c.json", "other")):
        (repo / "blobs" / blob).write_text("")
        (snapshot / name).symlink_to(repo / "blobs" / blob)
    (snapshot / "d.json").write_text("")
    (snapshot / "loop.json").symlink_to("loop.json")
    assert hub_hashes(snapshot) == {"a.json": GIT, "sub/b.json": SHA256}
