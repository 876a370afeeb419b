"""Folders of the Hub's cache, as huggingface_hub names them."""

from pathlib import Path

import pytest
from huggingface_hub.file_download import repo_folder_name

from dstools_converters.sidefiles.hub_cache import blob_of, snapshot_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(hub: Path, repository: str = "deep-org/Tiny-V3.1_x", commit: str = COMMIT) -> Path:
    folder = hub / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def test_a_snapshot_has_the_name_of_its_repository_and_its_commit(tmp_path: Path) -> None:
    assert snapshot_of(snapshot(tmp_path)) == ("deep-org/Tiny-V3.1_x", COMMIT)


def test_a_link_to_a_snapshot_is_that_snapshot(tmp_path: Path) -> None:
    link = tmp_path / "model"
    link.symlink_to(snapshot(tmp_path), target_is_directory=True)
    assert snapshot_of(link) == ("deep-org/Tiny-V3.1_x", COMMIT)


def test_a_file_leads_to_the_blob_that_is_named_by_its_hash(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "1a2b").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/1a2b")
    assert blob_of(folder / "config.json", folder) == blobs / "1a2b"
    link = tmp_path / "model"
    link.symlink_to(folder, target_is_directory=True)
    assert blob_of(link / "config.json", link) == blobs / "1a2b"


def test_a_blob_may_be_a_link_into_the_store_that_repositories_share(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    blob = folder.parent.parent / "blobs" / ("5" * 64)
    entry = tmp_path / "blobs" / "ab" / f"ab{'0' * 62}"
    for made in (blob, entry):
        made.parent.mkdir(parents=True)
    entry.write_text("{}")
    blob.symlink_to(f"../../blobs/ab/{entry.name}")
    (folder / "tokenizer.json").symlink_to(f"../../blobs/{blob.name}")
    assert blob_of(folder / "tokenizer.json", folder) == blob
    for elsewhere in ("../../blobs/key", "../../../key", f"../../blobs/cd/{entry.name}"):
        blob.unlink()
        blob.symlink_to(elsewhere)
        assert blob_of(folder / "tokenizer.json", folder) is None


def test_files_and_links_to_anywhere_else_lead_to_no_blob(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    (folder / "file").write_text("")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to("loop")
    assert [blob_of(folder / name, folder) for name in ("file", "out", "loop")] == [None] * 3


@pytest.mark.parametrize(
    "inside",
    [
        "models--org--name/snapshots/main",  # is not a commit
        f"models--org--name/snapshots/{COMMIT.upper()}",
        f"models--org--name/other/{COMMIT}",
        f"models--gpt2/snapshots/{COMMIT}",  # of the time before organisations
        f"datasets--org--name/snapshots/{COMMIT}",
        f"models--org--na me/snapshots/{COMMIT}",
        "model",
        ".",
    ],
)
def test_any_other_folder_is_not_a_snapshot(inside: str, tmp_path: Path) -> None:
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    assert snapshot_of(tmp_path / inside) is None


def test_the_root_of_the_disk_is_not_a_snapshot() -> None:
    assert snapshot_of(Path("/")) is None
