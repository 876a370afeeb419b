"""SHA256SUMS: what sha256sum(1) writes and reads, and nothing outside the folder."""

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.sums import SUMS, format_sums, read_sums, sha256_of, sums_of

NOT_UTF8 = b"\xff".decode(errors="surrogateescape")
ODD = ("plain", "two words", "back\\slash", "line\nbreak", "\\n", "return\r", "sub/ü", NOT_UTF8)
A, B = "a" * 64, "b" * 64


def test_the_file_is_what_sha256sum_writes_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    digests = {}
    for name in ODD:
        (tmp_path / name).write_text(name, errors="surrogateescape")
        digests[name] = sha256_of(tmp_path / name)
    theirs = subprocess.run(["sha256sum", *sorted(ODD)], cwd=tmp_path, capture_output=True)
    assert format_sums(digests) == theirs.stdout
    (tmp_path / SUMS).write_bytes(theirs.stdout)
    assert read_sums(tmp_path) == digests
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True)


def test_a_hash_is_of_the_whole_file_in_pieces_of_any_number(tmp_path: Path) -> None:
    paths = [tmp_path / str(size) for size in (0, 1, 1 << 20, (2 << 20) + 3)]
    for path in paths:
        path.write_bytes(bytes(int(path.name)))
    assert sums_of(paths, 2) == {path: sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"gone: cannot be read \(No such file"):
        sha256_of(tmp_path / "gone")


def test_a_folder_without_the_file_has_no_sums(tmp_path: Path) -> None:
    assert read_sums(tmp_path) is None


def test_the_binary_mark_capitals_and_a_leading_dot_are_read(tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(f"{A.upper()} *one\n\n{B}  ./two\n")
    assert read_sums(tmp_path) == {"one": A, "two": B}


def test_what_sha256sum_checks_is_read(tmp_path: Path) -> None:
    for name in ("back\\slash", "plain", "two) = words"):
        (tmp_path / name).write_text(name)
    tagged = subprocess.run(
        ["sha256sum", "--tag", "back\\slash", "plain", "two) = words"],
        cwd=tmp_path, capture_output=True, check=True,
    ).stdout  # fmt: skip
    (tmp_path / SUMS).write_bytes(b"# of BSD\n\n" + tagged)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True)
    names = ["back\\slash", "plain", "two) = words"]
    assert read_sums(tmp_path) == {name: sha256_of(tmp_path / name) for name in names}


def test_what_the_list_says_of_itself_and_of_the_signature_is_left_out(tmp_path: Path) -> None:
    lines = [f"{A}  ././sub//one", f"{A}  {SUMS}", f"{B}  ./{SUMS}", f"{A}  model.sig"]
    (tmp_path / SUMS).write_text("\n".join(lines))
    assert read_sums(tmp_path) == {"sub/one": A}


def test_lines_that_windows_ended_are_read(tmp_path: Path) -> None:
    (tmp_path / SUMS).write_bytes(f"{A}  one\r\n{B} *two\r\n\r\n".encode())
    assert read_sums(tmp_path) == {"one": A, "two": B}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{A}  ../up", "names a file outside the folder"),
        (f"{A}  /etc/passwd", "names a file outside the folder"),
        (f"{A}  a\0b", "names a file outside the folder"),
        (f"{A[1:]}  short", "is not a sha256 and a file name"),
        (f"{A} one-space", "is not a sha256 and a file name"),
        ("SHA256 (bsd) = 00", "is not a sha256 and a file name"),
        (f"{B}  first", "names a file a second time"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / SUMS).write_text(f"{A}  first\n{line}\n")
    with pytest.raises(DstoolsError, match=f"SHA256SUMS: line 2 {message}"):
        read_sums(tmp_path)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / SUMS).open("wb") as file:
        file.truncate((8 << 20) + 1)
    with pytest.raises(DstoolsError, match="SHA256SUMS: has over 8 MiB"):
        read_sums(tmp_path)
