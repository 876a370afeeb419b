"""Headers are read as safetensors reads them, and refused with their fault."""

import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from dstools_converters.checkpoint.header import (
    DATA_ALIGNMENT,
    ITEM_BITS,
    TensorInfo,
    format_header,
    read_header,
)
from dstools_converters.errors import DstoolsError

NAME = "model.safetensors"
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


def we_read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    file = path.read_bytes()
    return {
        info.name: (info.dtype, list(info.shape), file[info.offset : info.offset + info.nbytes])
        for info in read_header(path.parent, path.name)[1]
    }


def written(folder: Path, file: bytes) -> Path:
    path = folder / NAME
    path.write_bytes(file)
    return path


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
    path = written(tmp_path, packed(text, data))
    wanted = safetensors_reads(path)
    assert wanted is not None
    found = we_read(path)
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
def test_what_safetensors_refuses_we_refuse(tmp_path: Path, file: bytes) -> None:
    assume(b"-0" not in file)  # not an integer to safetensors; to us it is 0, and harmless
    path = written(tmp_path, file)
    wanted = safetensors_reads(path)
    try:
        found = we_read(path)
    except DstoolsError as error:
        message = str(error)
    else:
        assert found == wanted
        return
    assert message.isprintable()
    assert len(message) < 1000


A, B = entry("U8", [2], 0), entry("F32", [1], 2)


def changed(**changes: Any) -> Header:
    """Tensors `a` [2] U8 and `b` [1] F32, and what is changed in `b`."""
    return {"a": A, "b": B | changes}


SIX = b"\0" * 6


@pytest.mark.parametrize(
    ("file", "message"),
    [
        # the container
        (b"", "is not a safetensors file: 0 bytes"),
        (b"\0" * 7, "is not a safetensors file: 7 bytes"),
        (b"\0" * 8, "is not a safetensors file: 8 bytes, of which the header would take 0"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header would take 9223372036854775808"),
        (struct.pack("<Q", (1 << 64) - 1) + b"{}", "header would take 18446744073709551615"),
        (
            struct.pack("<Q", 3) + b"{}",
            "is not a safetensors file: 10 bytes, of which the header would take 3",
        ),
        (packed(changed(), SIX[1:]), "bytes where its header describes"),
        (packed(changed(), SIX + b"x"), "bytes where its header describes"),
        (packed({}, b"x"), "bytes where its header describes"),
        # the JSON
        (packed(b"{]"), "header is not valid JSON"),
        (packed(b"[]"), "header is not a JSON object"),
        (packed(b"12"), "header is not a JSON object"),
        (packed(b"{}\0"), "header is not valid JSON"),
        (packed(b"\xef\xbb\xbf{}"), "header is not valid JSON"),
        (packed("{}".encode("utf-16-le")), "header is not valid JSON"),
        (packed(b'{"\xff":{}}'), "header is not valid JSON"),
        (packed(b'{"\\ud800":' + json.dumps(A).encode() + b"}", b"12"), "header is not valid JSON"),
        (packed(b'{"a":NaN}'), "header is not valid JSON: NaN"),
        (packed(b"[" * 100_000), "header is not valid JSON"),
        (packed(b'{"a":' * 100_000), "header is not valid JSON"),
        (packed(b'{"a":{},"b":{},"a":{}}'), "header is not valid JSON: has the key a twice"),
        (packed(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "dtype twice"),
        (
            packed({"a": A, "__metadata__": {"format": 1}}, b"12"),
            "__metadata__ is not an object of strings",
        ),
        (packed({"a": A, "__metadata__": 0}, b"12"), "__metadata__ is not an object of strings"),
        (packed({"a": A, "__metadata__": [1]}, b"12"), "__metadata__ is not an object of strings"),
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
        (packed(changed(shape=""), b"\0" * 3), "b has a shape that is not a list"),
        (packed(changed(shape={}), SIX), "b has a shape that is not a list"),
        (packed(changed(shape=None), SIX), "b has a shape that is not a list"),
        (packed(changed(shape=[1] * 65), SIX), "b has a shape that is not a list"),
        (packed(changed(shape=[(1 << 62) + 1] * 10**5), SIX), "b has a shape that is not a list"),
        (packed(changed(shape=[-1]), SIX), "b has the size -1, which is not a natural number"),
        (packed(changed(shape=[1.0]), SIX), "b has the size 1.0, which is not a natural number"),
        (packed(changed(shape=[True]), SIX), "b has the size True, which is not a natural number"),
        (packed(changed(shape=["1"]), SIX), "b has the size '1', which is not a natural number"),
        (packed(changed(shape=[1 << 63]), SIX), "b has the size 9223372036854775808"),
        (packed(changed(shape=[[1]]), SIX), "b has the size [1], which is not a natural number"),
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
        (packed(changed(data_offsets=[3, 7]), SIX + b"x"), "b leaves a gap or overlaps"),
        (packed(changed(data_offsets=[1, 5]), SIX[1:]), "b leaves a gap or overlaps"),
        (packed({"a": A, "b": A}, b"12"), "b leaves a gap or overlaps"),
        (packed({"b": B}, SIX), "b leaves a gap or overlaps"),
        (packed({"a": A, "z": entry("U8", [0], 1)}, b"12"), "z leaves a gap or overlaps"),
        # other kinds of files under the name
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
def test_a_file_is_refused_for_its_fault(tmp_path: Path, file: bytes, message: str) -> None:
    path = written(tmp_path, file)
    started = time.process_time()
    with pytest.raises(DstoolsError) as error:
        read_header(tmp_path, NAME)
    assert time.process_time() - started < 2  # hostile sizes cost nothing; all take milliseconds
    text = str(error.value)
    assert message in text
    assert text.isprintable()
    assert len(text) < 1000
    # safetensors takes the last of two equal names, and any number of dimensions
    is_ours_alone = "twice" in message or file == packed(changed(shape=[1] * 65), SIX)
    assert safetensors_reads(path) is None or is_ours_alone


def test_many_names_and_one_of_them_twice_are_refused_in_bounded_time(tmp_path: Path) -> None:
    names = ",".join(f'"{i}":{{}}' for i in range(200_000))
    written(tmp_path, packed(f'{{{names},"199999":{{}}}}'.encode()))
    started = time.process_time()
    with pytest.raises(DstoolsError, match="199999 twice"):
        read_header(tmp_path, NAME)
    assert time.process_time() - started < 5  # comparing each with each took minutes


def test_a_name_that_steers_a_terminal_is_printed_escaped(tmp_path: Path) -> None:
    name = "a\x1b]0;owned\x07\n\u202e"
    written(tmp_path, packed({name: A | {"shape": [9]}}, b"12"))
    with pytest.raises(DstoolsError) as error:
        read_header(tmp_path, NAME)
    assert "a\\x1b]0;owned\\x07\\n\\u202e is U8 [9]" in str(error.value)
    written(tmp_path, packed({name: A}, b"12"))
    (info,) = read_header(tmp_path, NAME)[1]
    assert info.where == f"{NAME}: a\\x1b]0;owned\\x07\\n\\u202e"


def test_a_header_of_ours_is_read_back_and_ends_on_a_page(tmp_path: Path) -> None:
    wanted = [
        TensorInfo("a", "F32", (2, 3), NAME, DATA_ALIGNMENT, 24),
        TensorInfo("b", "F8_E4M3", (5,), NAME, DATA_ALIGNMENT + 24, 5),
        TensorInfo("c", "BF16", (), NAME, DATA_ALIGNMENT + 29, 2),
    ]
    header = format_header(wanted)
    assert len(header) == DATA_ALIGNMENT
    path = written(tmp_path, header + bytes(31))
    assert read_header(path.parent, path.name)[1] == wanted
    assert safetensors_reads(path) == we_read(path)
