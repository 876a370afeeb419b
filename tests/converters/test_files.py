"""Files: ambiguous JSON is refused, a file is replaced whole, a torn log loses only its tail."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from dstools_converters.files import (
    append_record,
    json_object,
    not_utf8,
    real,
    recover_log,
    replace_file,
    replacing,
    strict_json,
)

RECORDS = [{"plan": "a"}, {"job": [0, 1]}, {"note": "ä"}]


def log(path: Path) -> list[dict[str, object]]:
    with path.open("r+b") as file:
        return [record for _, record in recover_log(file)]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"\\ud800": 1}',
        '{"a": 1}'.encode("utf-16"),
        b"\xff",
        b"{",
    ],
)
def test_json_that_readers_take_differently_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        strict_json(raw)


def test_a_key_that_comes_twice_is_named() -> None:
    with pytest.raises(ValueError, match="has the key model twice"):
        strict_json(b'{"model": 1, "model": 1}')


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text("old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write([b"half", None])  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "report.html"
    target.write_text("keep")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert target.read_text() == "keep"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_text("of an earlier run")
    replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / ".a.partial").exists()


def test_a_log_torn_at_any_byte_keeps_its_complete_records_and_takes_more(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = [json.dumps(record).encode() + b"\n" for record in RECORDS]
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(len(b"".join(lines[: n + 1])) <= size for n in range(len(lines)))
        assert log(path) == RECORDS[:kept]
        assert path.read_bytes() == b"".join(lines[:kept])
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        append_record(descriptor, {"more": 1})
        os.close(descriptor)
        assert log(path) == [*RECORDS[:kept], {"more": 1}]


@pytest.mark.parametrize("damage", [b"\0\0\0\0\n", b"[1]\n", b"{]\n", b"7\n"])
def test_everything_after_the_first_damaged_line_is_removed(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"a": 1}\n' + damage + b'{"b": 2}\n')
    assert log(path) == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n'


def test_offsets_lead_to_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS))
    with path.open("r+b") as file:
        for offset, record in list(recover_log(file)):
            file.seek(offset)
            assert json.loads(file.readline()) == record


def test_a_record_that_the_disk_takes_half_of_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) // 2)
    with (tmp_path / "journal").open("ab") as file, pytest.raises(OSError, match="No space left"):
        append_record(file.fileno(), {"a": 1})


@pytest.mark.parametrize(
    ("start", "kind", "hint"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab",
            "Git LFS pointer",
            "git lfs",
        ),
        (gzip.compress(b"{}"), "compressed with gzip", "gunzip < FILE > NEW"),
        (bz2.compress(b"{}"), "compressed with bzip2", "bunzip2 < FILE > NEW"),
        (lzma.compress(b"{}"), "compressed with xz", "unxz < FILE > NEW"),
        (b"\x28\xb5\x2f\xfd\x24", "compressed with zstd", "unzstd < FILE > NEW"),
        (b"PK\x03\x04\x14", "a ZIP archive", "unzip"),
        (b"PAR1\x15\x04", "a Parquet file", "name it .parquet"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "an HTML page", "download the file itself"),
        (b"<HTML lang=en>", "an HTML page", "download the file itself"),
        ("{}".encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
        ("{}".encode("utf-16-be"), "UTF-16", "iconv -f UTF-16"),
        ("{}".encode("utf-16-le"), "UTF-16", "iconv -f UTF-16"),
    ],
)
def test_a_file_that_is_not_text_is_told_by_its_first_bytes(
    start: bytes, kind: str, hint: str
) -> None:
    what, advice = not_utf8(start) or ("", "")
    assert kind in what
    assert hint in advice


@pytest.mark.parametrize("start", [b"", b"{", b'{"a": 1}', b"\xef\xbb\xbf{}", b"<p>", b"caf\xe9"])
def test_first_bytes_of_text_say_nothing(start: bytes) -> None:
    assert not_utf8(start) is None


def test_more_values_than_a_table_may_have_are_refused_before_they_take_memory() -> None:
    assert strict_json(b'{"a": [1, 2, {"b": 3}]}', max_values=5) == {"a": [1, 2, {"b": 3}]}
    with pytest.raises(ValueError, match="holds more than 4 values"):
        strict_json(b'{"a": [1, 2, {"b": 3}]}', max_values=4)


def test_links_are_followed_and_one_to_itself_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert real(tmp_path / "link") == tmp_path.resolve() / "file"
    assert real(tmp_path / "loop" / "x") == tmp_path.resolve() / "loop" / "x"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [(b'{"a": 1}', {"a": 1}), (b"", "is empty"), (b"[1]", "is not a JSON object")],
)
def test_an_object_is_returned_or_why_there_is_none(
    raw: bytes, answer: object, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    assert json_object(path) == answer
    path.write_bytes(b"[" * 200_000)
    assert str(json_object(path)).startswith("is not valid JSON: ")
