"""Headers are read as safetensors reads them; a folder that is not what it says is refused by name."""

import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from dstools_converters.checkpoint.folder import (
    INDEX,
    SINGLE,
    Checkpoint,
    open_checkpoint,
    scan,
)
from dstools_converters.checkpoint.header import ITEM_BITS
from dstools_converters.errors import DstoolsError

BYTES = {name: bits // 8 for name, bits in ITEM_BITS.items() if bits % 8 == 0}
Header = dict[str, Any]
in_a_shared_folder = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200
)


def entry(dtype: str, shape: list[int], begin: int) -> Header:
    end = begin + math.prod(shape) * ITEM_BITS[dtype] // 8
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header: bytes | object, data: bytes = b"") -> bytes:
    """A file: the header as it is or as JSON, and the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def folder_of(folder: Path, shards: dict[str, bytes], weight_map: object = None) -> Path:
    """A folder of these files; with an index where `weight_map` is given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if weight_map is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {"k": 1}, "weight_map": weight_map}))
    return folder


def safetensors_reads(path: Path) -> dict[str, tuple[str, list[int], bytes]] | None:
    """{name: dtype, shape, bytes} as the safetensors library has them; None where it refuses."""
    from safetensors import deserialize

    try:
        with safe_open(path, "np"):
            pass
        return {
            name: (found["dtype"], found["shape"], bytes(found["data"]))
            for name, found in deserialize(path.read_bytes())
        }
    except SafetensorError:
        return None


def we_read(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    with open_checkpoint(folder) as found:
        return {
            name: (info.dtype, list(info.shape), bytes(found.read(info, 0, info.nbytes)))
            for name, info in found.tensors.items()
        }


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, bytes, bytes]:
    """A valid header, its padding, and data."""
    header: Header = {}
    end = 0
    names = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=5)
    )
    for name in names:
        if name == "__metadata__":
            continue
        dtype = draw(st.sampled_from(sorted(BYTES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        header[name] = entry(dtype, shape, end)
        end = header[name]["data_offsets"][1]
    order = draw(st.permutations(list(header)))  # the header's order need not be that of the bytes
    header = {name: header[name] for name in order}
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.sampled_from("abc"), st.just("x")))
    seed = draw(st.integers(0, 255))
    data = bytes((seed + 7 * i) % 256 for i in range(end))
    return header, draw(st.sampled_from([b"", b" ", b" " * 4000, b"\n\t"])), data


@in_a_shared_folder
@given(files(), st.booleans())
def test_a_valid_file_is_read_as_safetensors_reads_it(
    tmp_path: Path, file: tuple[Header, bytes, bytes], is_ascii: bool
) -> None:
    header, padding, data = file
    text = json.dumps(header, ensure_ascii=is_ascii).encode() + padding
    folder = folder_of(tmp_path, {SINGLE: packed(text, data)})
    wanted = safetensors_reads(folder / SINGLE)
    assert wanted is not None
    found = we_read(folder)
    if header:
        assert found == wanted
    ends = [header[name]["data_offsets"][1] for name in found]
    assert ends == sorted(ends)  # in the order of the bytes


def values() -> st.SearchStrategy[Any]:
    numbers = st.one_of(
        st.integers(-3, 9),
        st.sampled_from([1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200]),
        st.sampled_from([1.0, 0.5, -0.5, 1e300, True, False, None, "1", "", [], {}]),
    )
    return st.one_of(
        numbers,
        st.lists(numbers, max_size=4),
        st.sampled_from([*ITEM_BITS, "F8", "bf16", "F8_E4M3FN", "x" * 300]),
    )


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file that was valid before something was done to it."""
    header, padding, data = draw(files())
    for _ in range(draw(st.integers(0, 2))):
        if not header:
            break
        name = draw(st.sampled_from(sorted(header)))
        key = draw(
            st.sampled_from(["dtype", "shape", "data_offsets", "whole", "shift", "__metadata__"])
        )
        value = draw(values())
        if key == "whole" or not isinstance(header[name], dict) or name == "__metadata__":
            header[name] = value
        elif key == "shift":
            offsets = header[name].get("data_offsets")
            if isinstance(offsets, list) and all(type(o) is int for o in offsets):
                by = draw(st.sampled_from([-1, 1, 4]))
                header[name]["data_offsets"] = [offset + by for offset in offsets]
        elif key == "__metadata__":
            header["__metadata__"] = value
        elif value == "":
            header[name].pop(key, None)
        else:
            header[name][key] = value
    file = packed(json.dumps(header).encode() + padding, data)
    kind = draw(st.sampled_from(["whole", "cut", "more", "length", "byte"]))
    if kind == "cut":
        return file[: -draw(st.integers(1, len(file)))]
    if kind == "more":
        return file + b"\0"
    if kind == "length":
        length = draw(st.integers(0, len(file)) | st.integers(0, (1 << 64) - 1))
        return struct.pack("<Q", length) + file[8:]
    if kind == "byte":
        at = draw(st.integers(0, len(file) - 1))
        return file[:at] + bytes([draw(st.integers(0, 255))]) + file[at + 1 :]
    return file


@settings(in_a_shared_folder, max_examples=600)
@given(mutated())
def test_what_safetensors_refuses_we_refuse_naming_the_file(tmp_path: Path, file: bytes) -> None:
    assume(b"-0" not in file)  # no integer to safetensors; to us it is 0, and harmless
    folder = folder_of(tmp_path, {SINGLE: file})
    wanted = safetensors_reads(folder / SINGLE)
    try:
        found = we_read(folder)
    except DstoolsError as error:
        said = str(error)
    else:
        assert found == wanted
        return
    assert said.startswith(f"{SINGLE}: ")
    assert said.isprintable()
    assert len(said) < 1000


A, B = entry("U8", [2], 0), entry("F32", [1], 2)


def changed(**changes: Any) -> Header:
    """Tensors `a` [2] U8 and `b` [1] F32, and what is changed in `b`."""
    return {"a": A, "b": B | changes}


SIX = b"\0" * 6


@pytest.mark.parametrize(
    ("file", "message"),
    [
        # the container
        (b"", "is no safetensors file: 0 bytes"),
        (b"\0" * 7, "is no safetensors file: 7 bytes"),
        (b"\0" * 8, "is no safetensors file: 8 bytes, header said to take 0"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header said to take 9223372036854775808"),
        (struct.pack("<Q", (1 << 64) - 1) + b"{}", "header said to take 18446744073709551615"),
        (struct.pack("<Q", 3) + b"{}", "is no safetensors file: 10 bytes, header said to take 3"),
        (packed(changed(), SIX[1:]), "bytes where its header describes"),
        (packed(changed(), SIX + b"x"), "bytes where its header describes"),
        (packed({}, b"x"), "bytes where its header describes"),
        # the JSON
        (packed(b"{]"), "its header is no JSON"),
        (packed(b"[]"), "its header is no JSON object"),
        (packed(b"12"), "its header is no JSON object"),
        (packed(b"{}\0"), "its header is no JSON"),
        (packed(b"\xef\xbb\xbf{}"), "its header is no JSON"),
        (packed("{}".encode("utf-16-le")), "its header is no JSON"),
        (packed(b'{"\xff":{}}'), "its header is no JSON"),
        (packed(b'{"\\ud800":' + json.dumps(A).encode() + b"}", b"12"), "its header is no JSON"),
        (packed(b'{"a":NaN}'), "its header is no JSON: NaN"),
        (packed(b"[" * 100_000), "its header is no JSON"),
        (packed(b'{"a":' * 100_000), "its header is no JSON"),
        (packed(b'{"a":{},"b":{},"a":{}}'), "its header is no JSON: has the key a twice"),
        (packed(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "dtype twice"),
        (packed({"a": A, "__metadata__": {"format": 1}}, b"12"), "its __metadata__ is no table"),
        (packed({"a": A, "__metadata__": 0}, b"12"), "its __metadata__ is no table"),
        (packed({"a": A, "__metadata__": [1]}, b"12"), "its __metadata__ is no table"),
        # one tensor
        (packed({"a": 1}), "a has no dtype, shape and data_offsets"),
        (packed({"a": {}}), "a has no dtype, shape and data_offsets"),
        (packed({"a": {"dtype": "U8", "shape": [0]}}), "a has no dtype, shape and data_offsets"),
        (packed(changed(data_offsets=[2])), "b has no dtype, shape and data_offsets"),
        (packed(changed(data_offsets=[2, 6, 6]), SIX), "b has no dtype, shape and data_offsets"),
        (packed(changed(dtype="F31"), SIX), "b has the unknown dtype 'F31'"),
        (packed(changed(dtype="f32"), SIX), "b has the unknown dtype 'f32'"),
        (packed(changed(dtype=["F32"]), SIX), "b has the unknown dtype"),
        (packed(changed(dtype=None), SIX), "b has the unknown dtype 'None'"),
        (packed(changed(dtype="\x1b[2J"), SIX), "b has the unknown dtype"),
        (packed(changed(dtype="F" * 10**6), SIX), "b has the unknown dtype 'FFF"),
        (packed(changed(shape=""), b"\0" * 3), "b has a shape that is no list"),
        (packed(changed(shape={}), SIX), "b has a shape that is no list"),
        (packed(changed(shape=None), SIX), "b has a shape that is no list"),
        (packed(changed(shape=[1] * 65), SIX), "b has a shape that is no list"),
        (packed(changed(shape=[(1 << 62) + 1] * 10**5), SIX), "b has a shape that is no list"),
        (packed(changed(shape=[-1]), SIX), "b has the size -1, no natural number"),
        (packed(changed(shape=[1.0]), SIX), "b has the size 1.0, no natural number"),
        (packed(changed(shape=[True]), SIX), "b has the size True, no natural number"),
        (packed(changed(shape=["1"]), SIX), "b has the size '1', no natural number"),
        (packed(changed(shape=[1 << 63]), SIX), "b has the size 9223372036854775808"),
        (packed(changed(shape=[[1]]), SIX), "b has the size [1], no natural number"),
        (packed(changed(shape=[2]), SIX), "b is F32 [2] but takes 4 bytes"),
        (packed(changed(shape=[]), SIX[:3]), "bytes where its header describes"),
        (packed(changed(shape=[1 << 62, 1 << 62, 4]), SIX), "but takes 4 bytes"),
        # 2**62 * 2**62 * 0 elements: safetensors multiplies in 64 bits
        (packed({"b": entry("U8", [1 << 62, 1 << 62, 0], 0)}), "but takes 0 bytes"),
        (packed(changed(dtype="F64"), SIX), "b is F64 [1] but takes 4 bytes"),
        (
            packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"),
            "but takes 2",
        ),
        (packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"1"), "but takes 1"),
        (packed(changed(data_offsets=[6, 2]), SIX), "b is F32 [1] but takes -4 bytes"),
        (packed(changed(data_offsets=[2.0, 6]), SIX), "b has the size 2.0"),
        (packed(changed(data_offsets=[2, 1 << 64]), SIX), "b has the size 18446744073709551616"),
        # the neighbours
        (packed(changed(data_offsets=[3, 7]), SIX + b"x"), "b leaves a hole or overlaps"),
        (packed(changed(data_offsets=[1, 5]), SIX[1:]), "b leaves a hole or overlaps"),
        (packed({"a": A, "b": A}, b"12"), "b leaves a hole or overlaps"),
        (packed({"b": B}, SIX), "b leaves a hole or overlaps"),
        (packed({"a": A, "z": entry("U8", [0], 1)}, b"12"), "z leaves a hole or overlaps"),
        # what else is met under the name
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"<!doctype html><html></html>", "is a web page"),
        (b"<html></html>", "is a web page"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "is a zip or PyTorch pickle"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "is a Python pickle"),
        (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00", "is a Python pickle"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_is_refused_for_what_is_wrong_with_it(
    tmp_path: Path, file: bytes, message: str
) -> None:
    folder = folder_of(tmp_path, {SINGLE: file})
    started = time.process_time()
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert time.process_time() - started < 2  # hostile sizes cost nothing; all take milliseconds
    text = str(error.value)
    assert text.startswith(f"{SINGLE}: ")
    assert message in text
    assert text.isprintable()
    assert len(text) < 1000
    # safetensors takes the last of two equal names, and any number of dimensions
    is_ours_alone = "twice" in message or file == packed(changed(shape=[1] * 65), SIX)
    assert safetensors_reads(folder / SINGLE) is None or is_ours_alone


def test_many_names_and_one_of_them_twice_are_refused_in_bounded_time(tmp_path: Path) -> None:
    names = ",".join(f'"{i}":{{}}' for i in range(200_000))
    folder = folder_of(tmp_path, {SINGLE: packed(f'{{{names},"199999":{{}}}}'.encode())})
    started = time.process_time()
    with pytest.raises(DstoolsError, match="199999 twice"):
        open_checkpoint(folder)
    assert time.process_time() - started < 5  # comparing each with each took minutes


def test_a_name_that_steers_a_terminal_is_printed_escaped(tmp_path: Path) -> None:
    name = "a\x1b]0;owned\x07\n\u202e"
    folder = folder_of(tmp_path, {SINGLE: packed({name: A | {"shape": [9]}}, b"12")})
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert "a\\x1b]0;owned\\x07\\n\\u202e is U8 [9]" in str(error.value)
    good = folder_of(tmp_path / "good", {SINGLE: packed({name: A}, b"12")})
    info = open_checkpoint(good).tensors[name]
    assert info.where == f"{SINGLE}: a\\x1b]0;owned\\x07\\n\\u202e"


# ------------------------------------------------------------------------------ index and shards

ONE = packed({"a": A}, b"12")
TWO = packed({"b": A}, b"34")
TWO_SHARDS = {"one.safetensors": ONE, "two.safetensors": TWO}
GOOD_MAP = {"a": "one.safetensors", "b": "two.safetensors"}


def test_a_good_folder_is_read_in_the_order_of_shards(tmp_path: Path) -> None:
    found = open_checkpoint(
        folder_of(tmp_path, TWO_SHARDS, {"b": GOOD_MAP["b"], "a": GOOD_MAP["a"]})
    )
    assert list(found.tensors) == ["a", "b"]
    assert list(found.shards) == ["one.safetensors", "two.safetensors"]
    assert found.index_metadata == {"k": 1}
    assert found.config == {"model_type": "llama"}
    with found:
        assert found.read(found.tensors["b"], 0, 2) == b"34"
        assert found.read(found.tensors["b"], 1, 2) == b"4"
        assert found.read(found.tensors["b"], 0, 1) == b"3"


@pytest.mark.parametrize(
    "path",
    [
        "../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "./one.safetensors",
        "..\\one.safetensors", "sub\\one.safetensors", "C:\\one.safetensors", ".one.safetensors",
        "..", "", ".safetensors", "one.bin", "one.safetensors/", "one.safetensors\n",
        "one\0.safetensors", "\x1b[2Jone.safetensors", "one\u202e.safetensors", "one\ud800.safetensors",
    ],
)  # fmt: skip
def test_a_path_that_is_no_plain_name_is_refused_and_not_opened(tmp_path: Path, path: str) -> None:
    outside = tmp_path / "one.safetensors"
    outside.write_bytes(packed({"b": A}, b"34"))
    folder = folder_of(
        tmp_path / "in", {"one.safetensors": ONE}, {"a": "one.safetensors", "b": path}
    )
    (folder / "sub").mkdir()
    shutil.copy(outside, folder / "sub")
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    if "\ud800" not in path:  # half a character is no JSON to begin with
        assert f"{INDEX}: b: names " in str(error.value)
    assert str(error.value).isprintable()
    found, findings = scan(folder) if "\ud800" not in path else (None, [])
    if found is not None:
        assert list(found.tensors) == ["a"]
        assert [f.code for f in findings] == ["path-outside"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": []}', "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "a is in 1, which is no file name"),
        (b'{"weight_map": {"a": ["one.safetensors"]}}', "a is in ['one.safetensors'], which is no"),
        (b'{"weight_map": {"a": null}}', "a is in None, which is no file name"),
        (b'{"weight_map": {"\\u001b": 1}}', "\\x1b is in 1, which is no file name"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "a twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "weight_map twice"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"weight_map": {"a": ' + b"1" * 5000 + b"}}", "is no JSON"),
    ],
)
def test_a_malformed_index_is_refused_by_name(tmp_path: Path, index: bytes, message: str) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS)
    (folder / INDEX).write_bytes(index)
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert str(error.value).startswith(f"{INDEX}: ")
    assert message in str(error.value)


BOTH = packed({"a": A, "b": entry("U8", [2], 2)}, b"1234")


@pytest.mark.parametrize(
    ("shards", "weight_map", "findings"),
    [
        pytest.param(
            {"one.safetensors": ONE}, GOOD_MAP,
            [("shard-unreadable", "two.safetensors", "is missing")],
            id="a shard is missing",
        ),
        pytest.param(
            TWO_SHARDS, {"a": "two.safetensors", "b": "one.safetensors"},
            [("index-disagrees", f"{INDEX}: a", "is said to be in two.safetensors, but it lies in "
              "one.safetensors"),
             ("index-disagrees", f"{INDEX}: b", "is said to be in one.safetensors, but it lies in "
              "two.safetensors")],
            id="tensors lie in other shards",
        ),
        pytest.param(
            TWO_SHARDS, GOOD_MAP | {"c": "one.safetensors"},
            [("index-disagrees", f"{INDEX}: c", "is said to be in one.safetensors, but no shard "
              "holds it")],
            id="no shard holds it",
        ),
        pytest.param(
            {"one.safetensors": BOTH}, {"a": "one.safetensors"},
            [("index-disagrees", "one.safetensors: b", "is not in the index")],
            id="the index does not list it",
        ),
        pytest.param(
            {"one.safetensors": ONE, "two.safetensors": BOTH}, GOOD_MAP,
            [("tensor-twice", "two.safetensors: a", "also in one.safetensors"),
             ("index-disagrees", f"{INDEX}: a", "is said to be in one.safetensors, but it lies in "
              "two.safetensors")],
            id="two shards hold it",
        ),
        pytest.param(
            {"one.safetensors": ONE, "two.safetensors": TWO[:-1]}, GOOD_MAP,
            [("shard-unreadable", "two.safetensors",
              f"holds {len(TWO) - 1} bytes where its header describes {len(TWO)}")],
            id="a shard is cut by a byte",
        ),
    ],
)  # fmt: skip
def test_where_index_and_shards_disagree_both_are_named(
    tmp_path: Path,
    shards: dict[str, bytes],
    weight_map: dict[str, str],
    findings: list[tuple[str, str, str]],
) -> None:
    folder = folder_of(tmp_path, shards, weight_map)
    _, found = scan(folder)
    assert [(f.level, f.code, f.where, f.message) for f in found] == [
        ("error", *finding) for finding in findings
    ]
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    _, where, message = findings[0]
    more = f" (and {len(findings) - 1} more; `dstools verify` lists all)" if findings[1:] else ""
    assert str(error.value) == f"{where}: {message}{more}"


def test_a_shard_that_the_index_does_not_name_is_a_warning_and_left_alone(tmp_path: Path) -> None:
    stray = {"a\x1b.safetensors": b"no safetensors at all"}
    folder = folder_of(tmp_path, TWO_SHARDS | stray, GOOD_MAP)
    found, findings = scan(folder)
    assert [(f.level, f.code, f.where) for f in findings] == [
        ("warning", "shard-unlisted", "a\\x1b.safetensors")
    ]
    assert list(open_checkpoint(folder).tensors) == list(found.tensors) == ["a", "b"]


def not_a_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "link to itself", "link to nowhere"])
@pytest.mark.parametrize("name", ["one.safetensors", INDEX, "config.json", SINGLE])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    if name == SINGLE:
        (folder / INDEX).unlink()
    not_a_file(folder / name, kind)
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("config.json", "config.json: No such file or directory"),
        (INDEX, f": 2 .safetensors files, but neither {SINGLE} nor {INDEX}"),
    ],
)
def test_what_a_checkpoint_needs_is_named_where_it_is_missing(
    tmp_path: Path, without: str, message: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / without).unlink()
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    with pytest.raises(DstoolsError, match=r"nothing: no such folder$"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_a_malformed_config_is_refused_by_name(tmp_path: Path, config: bytes) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / "config.json").write_bytes(config)
    with pytest.raises(DstoolsError, match=r"^config\.json: "):
        open_checkpoint(folder)


def test_shards_linked_as_in_the_hub_cache_load(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    plain = folder_of(tmp_path / "plain", TWO_SHARDS, GOOD_MAP)
    for number, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    assert we_read(snapshot) == we_read(plain) == {"a": ("U8", [2], b"12"), "b": ("U8", [2], b"34")}


# ------------------------------------------------------------------------------ reading and after


def test_opening_reads_headers_alone_and_close_closes(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("v3-headers")  # 689 GB that are not there
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    started = time.process_time()
    found = open_checkpoint(folder)
    assert time.process_time() - started < 20
    assert len(found.shards) == 163
    assert sum(shard.nbytes for shard in found.shards.values()) > 688_574_839_360
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    info = found.tensors["model.norm.weight"]
    assert found.read(info, 0, 2 * 7168) == bytes(2 * 7168)
    assert found.read(info, 100, 106) == bytes(6)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(folder_of(tmp_path, TWO_SHARDS, GOOD_MAP))


def test_what_stays_as_it_is_passes(opened: Checkpoint) -> None:
    opened.check_unmoved()


def rewritten(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def longer(path: Path) -> None:
    status = path.stat()
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, longer, Path.unlink])
def test_input_that_changes_during_a_run_is_refused_by_name(
    opened: Checkpoint, change: Callable[[Path], None]
) -> None:
    change(opened.folder / "two.safetensors")
    with pytest.raises(DstoolsError, match=r"^two\.safetensors: changed or went away"):
        opened.check_unmoved()


def test_a_shard_that_became_shorter_is_refused_by_name(opened: Checkpoint) -> None:
    path = opened.folder / "two.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with (
        opened,
        pytest.raises(DstoolsError, match=r"^two\.safetensors: ends before its header says"),
    ):
        opened.read(opened.tensors["b"], 0, 2)


def test_the_digest_is_that_of_the_source_wherever_it_lies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", TWO_SHARDS, GOOD_MAP)
    copy = Path(shutil.copytree(folder, tmp_path / "b"))  # keeps the times
    digest = open_checkpoint(folder).digest
    assert open_checkpoint(copy).digest == digest
    rewritten(copy / "one.safetensors")
    other_time = open_checkpoint(copy).digest
    (copy / "config.json").write_text('{"model_type": "qwen2"}')
    assert len({digest, other_time, open_checkpoint(copy).digest}) == 3


def test_a_header_that_says_otherwise_has_another_digest(tmp_path: Path) -> None:
    digests = set()
    for dtype in ("U8", "I8"):
        file = packed({"a": A | {"dtype": dtype}}, b"12")
        folder = folder_of(tmp_path, {SINGLE: file})
        os.utime(folder / SINGLE, ns=(0, 0))
        digests.add(open_checkpoint(folder).digest)
    assert len(digests) == 2
