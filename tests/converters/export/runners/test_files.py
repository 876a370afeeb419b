"""A file that is not the one that was exported is one error, which says what to do."""

from hashlib import sha256
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Export
from dstools_converters.export.runners.files import (
    require_beside,
    require_file,
    require_same,
    require_size,
)

CONTENT = b"graph"
FILES = {"model.onnx": sha256(CONTENT).hexdigest()}
EXPORT = Export("dstools test", "onnx", "deepseek_v3", "float32", files=FILES)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    return tmp_path / "model.onnx"


def test_the_files_that_were_exported_are_accepted(graph: Path) -> None:
    require_same(graph.parent, EXPORT, "model.onnx")
    require_size(graph, len(CONTENT))


def test_another_file_and_one_that_export_json_does_not_list_are_refused(graph: Path) -> None:
    (graph.parent / "other.onnx").write_bytes(CONTENT)
    graph.write_bytes(b"grapH")
    for name in ("model.onnx", "other.onnx"):
        with pytest.raises(DstoolsError, match="is not the file that was exported") as caught:
            require_same(graph.parent, EXPORT, name)
        assert f"dstools verify {graph.parent}" in caught.value.hint


@pytest.mark.parametrize("nbytes", [-1, 1])
def test_another_size_is_refused_with_both(nbytes: int, graph: Path) -> None:
    with pytest.raises(DstoolsError, match=rf"has 5 bytes; {5 + nbytes} were exported"):
        require_size(graph, 5 + nbytes)


def test_a_file_that_is_not_there_is_named_with_the_end_of_its_link(graph: Path) -> None:
    graph.unlink()
    with pytest.raises(DstoolsError, match=r"model\.onnx: there is no such file$"):
        require_file(graph)
    graph.symlink_to("/nowhere/else")
    with pytest.raises(DstoolsError, match="file, nor /nowhere/else, where the link leads"):
        require_file(graph)


def test_a_pointer_of_git_lfs_is_named(graph: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n"
    graph.write_text(pointer)
    with pytest.raises(DstoolsError, match=r"is a Git LFS pointer, not the file") as caught:
        require_file(graph)
    assert "git lfs pull" in caught.value.hint


def test_links_are_followed_as_onnx_runtime_follows_them(graph: Path, tmp_path: Path) -> None:
    """Out of the folder of the graph, but into the one that the graph is linked from."""
    blobs, data = tmp_path / "blobs", tmp_path / "model.data"
    blobs.mkdir()
    (blobs / "a").write_bytes(b"weights")
    data.symlink_to(blobs / "a")
    require_beside(data, graph)
    inner = tmp_path / "snapshot"
    inner.mkdir()
    (inner / "model.data").symlink_to(blobs / "a")
    graph.rename(inner / "model.onnx")
    with pytest.raises(DstoolsError, match=r"model\.data: is a link to .*blobs/a, where ONNX"):
        require_beside(inner / "model.data", inner / "model.onnx")
    (inner / "model.onnx").rename(blobs / "b")
    (inner / "model.onnx").symlink_to(blobs / "b")
    require_beside(inner / "model.data", inner / "model.onnx")
