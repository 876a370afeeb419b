"""Rows in memory and in a file behave alike; a full disk is an error that names the file."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise import spill as module
from dstools_converters.layerwise.spill import Spill

KINDS = pytest.mark.parametrize("kind", ["memory", "file"])


def made(kind: str, folder: Path, rows: int, width: int) -> Spill:
    return Spill(rows, width, folder / "spill-0" if kind == "file" else None)


def values(rows: int, width: int) -> torch.Tensor:
    """Numbers that are all different."""
    return torch.arange(rows * width, dtype=torch.float32).view(rows, width) + 0.5


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@KINDS
def test_rows_are_zeros_until_they_are_written(kind: str, tmp_path: Path) -> None:
    spill = made(kind, tmp_path, 5, 3)
    spill.write(1, values(2, 3))
    wanted = torch.zeros(5, 3)
    wanted[1:3] = values(2, 3)
    assert torch.equal(spill.read(0, 5), wanted)
    assert torch.equal(spill.read(2, 4), wanted[2:4])
    assert spill.read(3, 3).shape == (0, 3)
    spill.close()


@KINDS
def test_rows_go_to_their_numbers_and_come_from_them(kind: str, tmp_path: Path) -> None:
    spill = made(kind, tmp_path, 9, 4)
    order = torch.tensor([8, 0, 3, 5])
    spill.scatter(order, values(4, 4))
    assert torch.equal(spill.gather(order), values(4, 4))
    twice = torch.stack([values(4, 4)[2], values(4, 4)[2], torch.zeros(4)])
    assert torch.equal(spill.gather(torch.tensor([3, 3, 1])), twice)
    assert spill.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 4)
    spill.scatter(torch.tensor([], dtype=torch.int64), torch.zeros(0, 4))
    assert torch.equal(spill.read(8, 9), values(4, 4)[:1])
    spill.close()


@KINDS
def test_a_tensor_that_is_not_contiguous_is_written_as_it_reads(kind: str, tmp_path: Path) -> None:
    spill = made(kind, tmp_path, 3, 4)
    spill.write(0, values(4, 3).T)
    assert torch.equal(spill.read(0, 3), values(4, 3).T)
    spill.close()


@pytest.mark.parametrize("piece", [module.PIECE, 24])
@pytest.mark.parametrize(("first", "second"), [("memory", "file"), ("file", "memory")])
def test_what_is_saved_is_loaded(
    first: str, second: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    spill, other = made(first, tmp_path, 7, 3), Spill(7, 3, None)
    if second == "file":
        other = Spill(7, 3, tmp_path / "spill-1")
    spill.write(0, values(7, 3))
    spill.save(tmp_path / "hidden-1")
    assert sorted(path.name for path in tmp_path.iterdir() if "spill" not in path.name) == [
        "hidden-1"
    ]
    assert other.load(tmp_path / "hidden-1")
    assert torch.equal(other.read(0, 7), values(7, 3))
    spill.close()
    other.close()


def test_a_file_that_is_missing_or_of_another_size_is_not_loaded(tmp_path: Path) -> None:
    spill = Spill(7, 3, None)
    assert not spill.load(tmp_path / "hidden-1")
    for size in (0, 7 * 3 * 4 - 1, 7 * 3 * 4 + 1):
        (tmp_path / "hidden-1").write_bytes(b"\1" * size)
        assert not spill.load(tmp_path / "hidden-1")
    assert torch.equal(spill.read(0, 7), torch.zeros(7, 3))
    spill.close()


@KINDS
def test_closed_it_leaves_nothing(kind: str, tmp_path: Path) -> None:
    before = descriptors()
    made(kind, tmp_path, 5, 3).close()
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before


@KINDS
def test_a_spill_may_have_no_rows(kind: str, tmp_path: Path) -> None:
    spill = made(kind, tmp_path, 0, 3)
    assert spill.read(0, 0).shape == (0, 3)
    spill.write(0, torch.zeros(0, 3))
    spill.close()


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """As `ulimit -f`; Python ignores the signal, so the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_over_the_limit_is_named_and_removed(tmp_path: Path) -> None:
    before = descriptors()
    with largest_file(1000), pytest.raises(DstoolsError, match="spill-0: File too large") as caught:
        made("file", tmp_path, 100, 100)
    assert "the same command resumes" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before


def test_a_full_disk_is_reported_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DstoolsError, match="spill-0: No space left on device"):
        made("file", tmp_path, 5, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_to_save_on_is_an_error_and_the_old_file_stays(tmp_path: Path) -> None:
    spill = made("memory", tmp_path, 100, 10)
    spill.save(tmp_path / "hidden-1")
    spill.write(0, values(100, 10))
    with largest_file(1000), pytest.raises(DstoolsError, match=r"hidden-1: File too large"):
        spill.save(tmp_path / "hidden-1")
    other = Spill(100, 10, None)
    assert other.load(tmp_path / "hidden-1")
    assert torch.equal(other.read(0, 100), torch.zeros(100, 10))
    spill.close()
    other.close()
