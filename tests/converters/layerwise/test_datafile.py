"""Files of text are read plain, as gzip and as Parquet; others are refused by their kind."""

import builtins
import gzip
import json
import os
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise.datafile import FOREIGN, open_data

LINES = b'{"text": "a"}\n{"text": "b"}\n'


def content(path: Path) -> bytes:
    with open_data(path) as data:
        return data.file.read()


def failure(path: Path) -> DstoolsError:
    with pytest.raises(DstoolsError) as caught, open_data(path):
        pass
    assert caught.value.hint
    return caught.value


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("name", "is_jsonl"),
    [
        ("data.jsonl", True),
        ("data.JSONL", True),
        ("data.json", True),
        ("data.ndjson", True),
        ("data.txt", False),
        ("data", False),
        ("data.jsonl.txt", False),
    ],
)
def test_the_name_says_what_a_document_is_compressed_or_not(
    name: str, is_jsonl: bool, tmp_path: Path
) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(LINES)
    packed.write_bytes(gzip.compress(LINES))
    for path in (plain, packed):
        with open_data(path) as data:
            assert (data.file.read(), data.is_jsonl, data.unit) == (LINES, is_jsonl, "line")
            data.file.seek(0)
            assert data.file.read(5) == LINES[:5]
    with open_data(packed) as data:  # the file that the user has
        assert data.sha256 == sha256(packed.read_bytes()).hexdigest()


def test_gzip_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(gzip.compress(LINES))
    assert content(path) == LINES


def test_gzip_may_have_several_members_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(LINES) + gzip.compress(b"") + gzip.compress(LINES) + b"\0" * 9)
    assert content(path) == LINES * 2


def test_an_empty_file_is_empty_and_an_empty_gzip_file_too(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"")
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(b""))
    assert content(tmp_path / "data.jsonl") == content(tmp_path / "data.jsonl.gz") == b""


PACKED = gzip.compress(LINES * 99, mtime=0)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (PACKED[:-20], "damaged gzip file: Compressed file ended before"),
        (PACKED[:12] + b"\xff" * 9 + PACKED[21:], "damaged gzip file"),
        (PACKED[:-8] + b"\0" * 8, "damaged gzip file: CRC check failed"),
        (PACKED[:5], "damaged gzip file"),
        (LINES, "is not compressed by gzip"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_gzip_file_is_named(broken: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(broken)
    assert str(failure(path)).startswith(f"{path}: ")
    assert error in str(failure(path))


def test_rows_of_parquet_are_lines_and_nulls_are_left_out(tmp_path: Path) -> None:
    message = {"role": "user", "content": "a", "when": date(2026, 1, 2)}
    path = table(
        tmp_path / "data.parquet",
        messages=[[message, message | {"content": None}], None, None],
        text=["", "b", " "],
        id=[1, 2, 3],
        raw=["c", None, None],
    )
    with open_data(path) as data:
        assert (data.is_jsonl, data.unit) == (True, "row")
        assert data.sha256 == sha256(path.read_bytes()).hexdigest()
        first, second, third = data.file.read().split(b"\n")[:3]
    assert json.loads(second) == {"text": "b"}
    assert json.loads(first)["messages"][1] == {
        "role": "user",
        "content": None,
        "when": "2026-01-02",
    }
    assert json.loads(first).keys() == {"messages", "raw"}
    assert third == b""  # a blank line, so that the numbers of rows stay


def test_lists_of_structs_keep_their_keys(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "n": None}]
    messages = pa.array(
        [turns] * 200,
        pa.list_(pa.struct({"role": pa.string(), "content": pa.large_string(), "n": pa.int64()})),
    )
    path = table(tmp_path / "data.parquet", messages=messages)
    lines = content(path).splitlines()
    assert len(lines) == 200
    assert json.loads(lines[-1])["messages"][1] == {"role": "assistant", "content": "b", "n": None}


def test_bytes_are_not_a_text(tmp_path: Path) -> None:
    assert json.loads(content(table(tmp_path / "data.parquet", text=[b"a"]))) == {"text": None}


def test_parquet_without_a_column_of_text_names_those_it_has(tmp_path: Path) -> None:
    columns = {f"c{n}": [n] for n in range(9)}
    error = failure(table(tmp_path / "data.parquet", **columns))
    assert "neither of the columns text and messages, but c0, c1, c2, c3, c4, c5, c6, c7, ..." in (
        str(error)
    )


@pytest.mark.parametrize("cut", [slice(None, -30), slice(None, 100), slice(40, None)])
def test_damaged_parquet_is_named(cut: slice, tmp_path: Path) -> None:
    path = table(tmp_path / "data.parquet", text=["abc" * 100] * 50)
    path.write_bytes(path.read_bytes()[cut])
    assert "Parquet" in str(failure(path))


def test_a_damaged_page_of_parquet_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "data.parquet", text=[f"{n}" * 50 for n in range(500)])
    broken = bytearray(path.read_bytes())
    broken[200:900] = b"\xff" * 700
    path.write_bytes(broken)
    assert "cannot be read as Parquet" in str(failure(path))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "data.parquet", text=["a"])
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert failure(path).hint.startswith("pip install pyarrow")


@pytest.mark.parametrize("start", FOREIGN, ids=[kind for kind, _ in FOREIGN.values()])
def test_a_file_of_another_kind_is_named_by_it(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(start + b"/spec/v1\noid sha256:00\n")
    assert str(failure(path)) == f"{path}: is {FOREIGN[start][0]}"


def test_parquet_inside_gzip_is_named(tmp_path: Path) -> None:
    plain = table(tmp_path / "data.parquet", text=["a"]).read_bytes()
    (tmp_path / "data.parquet.gz").write_bytes(gzip.compress(plain))
    assert "is a Parquet file inside gzip" in str(failure(tmp_path / "data.parquet.gz"))


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    assert str(failure(tmp_path / "none")).endswith("none: no such file")
    assert str(failure(tmp_path)).endswith(": is a folder")
    os.mkfifo(tmp_path / "fifo")
    assert str(failure(tmp_path / "fifo")).endswith("is not a regular file")
