"""Ranges of files arrive whole, copied by the kernel or not."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstools_converters.export import ranges
from dstools_converters.export.ranges import copy_columns, copy_range, read_at, write_at

Files = tuple[int, int, Path]
DATA = os.urandom(100_003)
copy_some = os.copy_file_range


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A source that holds DATA, an empty target and its path; pieces are of 1000 bytes."""
    monkeypatch.setattr(ranges, "PIECE_BYTES", 1000)
    (tmp_path / "source").write_bytes(DATA)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target, tmp_path / "target"
    os.close(source)
    os.close(target)


def fail(code: int) -> object:
    def copy(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return copy


@pytest.mark.parametrize(
    "copier",
    [
        copy_some,
        lambda s, t, n, b, a: copy_some(s, t, min(n, 7919), b, a),  # part of it
        lambda *_: 0,  # as of a file in /proc
        fail(errno.EXDEV),
        fail(errno.ENOSYS),
        fail(errno.EPERM),
    ],
    ids=["kernel", "in parts", "nothing", "across file systems", "no such call", "filtered"],
)
def test_a_range_is_copied_whatever_the_kernel_can(
    copier: object, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, path = files
    monkeypatch.setattr(os, "copy_file_range", copier)
    copy_range(source, 11, 50_000, target, 77)
    assert path.read_bytes() == bytes(77) + DATA[11:50_011]


def test_an_error_of_the_disk_is_not_taken_for_a_kernel_that_cannot_copy(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, _ = files
    monkeypatch.setattr(os, "copy_file_range", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        copy_range(source, 0, 10, target, 0)


@pytest.mark.parametrize("row_bytes", [7, 999, 1500])  # many rows a piece, one, less than one
def test_columns_are_those_of_every_row(row_bytes: int, files: Files) -> None:
    source, target, path = files
    rows = 60_000 // row_bytes
    copy_columns(source, 5, (rows, row_bytes), (2, 6), target, 3)
    wanted = [DATA[5 + row * row_bytes :][2:6] for row in range(rows)]
    assert path.read_bytes() == bytes(3) + b"".join(wanted)


def test_a_source_that_ends_before_is_an_error(files: Files) -> None:
    source, target, _ = files
    with pytest.raises(EOFError):
        copy_range(source, 100_000, 4, target, 0)
    with pytest.raises(EOFError):
        copy_columns(source, 99_000, (2, 600), (0, 1), target, 0)
    assert read_at(source, 100_000, 3) == DATA[100_000:]


def test_a_write_that_takes_a_part_goes_on(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    _, target, path = files
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:13], at))
    write_at(target, DATA[:100], 9)
    assert path.read_bytes() == bytes(9) + DATA[:100]
