"""Folders of the Hub's cache, as huggingface_hub names them."""

from pathlib import Path

import pytest
from huggingface_hub.file_download import repo_folder_name

from dstools_converters.sidefiles.hub_cache import blobs_of, snapshot_of

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
    assert blobs_of(link) == tmp_path / "models--deep-org--Tiny-V3.1_x" / "blobs"


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
