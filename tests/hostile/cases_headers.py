"""Headers of shards: lengths, JSON, offsets, shapes, dtypes, names, and other files instead."""

import json
import os
import struct
from collections.abc import Callable
from typing import Any

from model import DENSE, EXPERT, NORM, ONE, TWO, Model, case, with_header

Header = dict[str, Any]


def body(raw: bytes) -> bytes:
    return raw[8 + struct.unpack("<Q", raw[:8])[0] :]


def text(raw: bytes) -> bytes:
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]


def length(number: int) -> Callable[[bytes], bytes]:
    return lambda raw: struct.pack("<Q", number) + raw[8:]


def entry(name: str, **changes: Any) -> Callable[[Header], None]:
    return lambda header: header[name].update(changes)


# ------------------------------------------------------------------------------- length and JSON


@case("header", names=ONE)
def a_header_of_no_bytes(model: Model) -> None:
    model.edit(ONE, length(0))


@case("header", names=ONE)
def a_header_past_the_end_of_the_file(model: Model) -> None:
    model.edit(ONE, lambda raw: length(len(raw))(raw))


@case("header", names=ONE)
def a_header_of_half_a_gigabyte(model: Model) -> None:
    model.edit(ONE, length(500_000_000))


@case("header", names=ONE)
def a_header_whose_length_overflows(model: Model) -> None:
    model.edit(ONE, length((1 << 64) - 1))


@case("header", names=ONE)
def a_header_of_millions_of_lists(model: Model) -> None:
    lists = b'{"__metadata__": {}, "a": [' + b"[]," * 6_000_000 + b"1]}"
    model.edit(ONE, lambda raw: struct.pack("<Q", len(lists)) + lists + raw)


@case("header", names=ONE)
def a_header_of_99_megabytes_that_are_not_there(model: Model) -> None:
    model.edit(ONE, length(99_000_000))
    model.after(lambda folder: os.truncate(folder / ONE, 100_000_000))


@case("header", names=TWO)
def an_empty_shard(model: Model) -> None:
    model.edit(TWO, lambda raw: b"")


@case("header", names=TWO)
def a_shard_of_five_bytes(model: Model) -> None:
    model.edit(TWO, lambda raw: raw[:5])


@case("header", names=ONE)
def a_header_that_is_not_utf8(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(b"\xff" + text(raw)[1:], body(raw)))


@case("header", names=ONE)
def a_header_that_is_utf16(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(text(raw).decode().encode("utf-16"), body(raw)))


@case("header", names=ONE)
def a_header_that_is_a_list(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(b"[" + text(raw) + b"]", body(raw)))


@case("header", names=ONE)
def a_header_that_is_cut(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(text(raw)[:-20], body(raw)))


@case("header", names=ONE)
def a_header_with_bytes_after_its_json(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(text(raw) + b"{}", body(raw)))


@case("header", names=ONE)
def a_header_nested_too_deep(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(b'{"a":' * 50_000 + b"}" * 50_000, body(raw)))


@case("header", names=ONE)
def a_header_with_a_million_digits(model: Model) -> None:
    model.edit(ONE, lambda raw: with_header(b'{"a":' + b"9" * 1_000_000 + b"}", b""))


@case("header", names=ONE)
def a_header_with_a_name_twice(model: Model) -> None:
    twice = f'"{NORM}": {{"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}, '.encode()
    model.edit(ONE, lambda raw: with_header(b"{" + twice + text(raw)[1:], body(raw)))


@case("header", names=ONE)
def metadata_that_hold_a_number(model: Model) -> None:
    model.header(ONE, lambda header: header.update(__metadata__={"format": 1}))


@case("header", names=ONE)
def metadata_that_are_a_list(model: Model) -> None:
    model.header(ONE, lambda header: header.update(__metadata__=["pt"]))


# --------------------------------------------------------------------- offsets, shapes and dtypes


@case("header", names=ONE)
def a_shard_cut_by_a_byte(model: Model) -> None:
    model.edit(ONE, lambda raw: raw[:-1])


@case("header", names=ONE)
def a_shard_with_a_byte_more(model: Model) -> None:
    model.edit(ONE, lambda raw: raw + b"\0")


@case("header", names=TWO)
def a_shard_cut_in_half(model: Model) -> None:
    model.edit(TWO, lambda raw: raw[: len(raw) // 2])


@case("header", names=ONE)
def a_hole_between_tensors(model: Model) -> None:
    def change(raw: bytes) -> bytes:
        header = json.loads(text(raw))
        for name, item in header.items():
            if name != "__metadata__" and item["data_offsets"][0]:
                item["data_offsets"] = [offset + 8 for offset in item["data_offsets"]]
        first = header[next(name for name in header if name != "__metadata__")]["data_offsets"][1]
        data = body(raw)
        return with_header(json.dumps(header).encode(), data[:first] + bytes(8) + data[first:])

    model.edit(ONE, change)


@case("header", names=ONE)
def a_tensor_over_its_neighbour(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[0, 256]))


@case("header", names=NORM)
def offsets_that_run_backwards(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[512, 256]))


@case("header", names=NORM)
def offsets_below_zero(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[-256, 0]))


@case("header", names=NORM)
def offsets_that_overflow(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[(1 << 64) - 256, 1 << 64]))


@case("header", names=NORM)
def offsets_that_are_not_whole(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[0.5, 256.5]))


@case("header", names=NORM)
def three_offsets(model: Model) -> None:
    model.header(ONE, entry(NORM, data_offsets=[0, 256, 512]))


@case("header", names=NORM)
def an_entry_without_a_dtype(model: Model) -> None:
    model.header(ONE, lambda header: header[NORM].pop("dtype"))


@case("header", names=NORM)
def an_entry_that_is_a_string(model: Model) -> None:
    model.header(ONE, lambda header: header.update({NORM: "BF16"}))


@case("header", names=NORM)
def an_unknown_dtype(model: Model) -> None:
    model.header(ONE, entry(NORM, dtype="BF17"))


@case("header", names=NORM)
def a_dtype_that_steers_a_terminal(model: Model) -> None:
    model.header(ONE, entry(NORM, dtype="\x1b]0;owned\x07"))


@case("header", names=NORM)
def a_dtype_of_another_size(model: Model) -> None:
    model.header(ONE, entry(NORM, dtype="F32"))


@case("header", names=DENSE)
def a_shape_of_other_numbers(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[128, 191]))


@case("header", names=DENSE)
def a_shape_with_a_negative_size(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[-128, -192]))


@case("header", names=DENSE)
def a_shape_whose_product_overflows(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[1 << 33, 1 << 33, 0]))


@case("header", names=DENSE)
def a_shape_of_a_million_sizes(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[1] * 1_000_000))


@case("header", names=DENSE)
def a_shape_that_is_a_number(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=128 * 192))


@case("header", names=DENSE)
def a_shape_with_true_in_it(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[True, 128, 192]))


@case("header", names=DENSE, inspect="warned")
def a_transposed_shape(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[192, 128]))


@case("header", names=DENSE, inspect="warned")
def a_matrix_that_is_flat(model: Model) -> None:
    model.header(ONE, entry(DENSE, shape=[192 * 128]))


@case("header", names=EXPERT, inspect="warned")
def a_weight_of_integers(model: Model) -> None:
    model.header(TWO, entry(EXPERT, dtype="I16"))


@case("header", names="\\x1b[2J\\x1b]0;owned\\x07", inspect="ok", verify="ok", convert="ok")
def a_name_that_steers_a_terminal(model: Model) -> None:
    model.put("\x1b[2J\x1b]0;owned\x07", "BF16", [2], b"\x80?\x80?")


@case("header", names="x\\nerror: forged", inspect="ok", verify="ok", convert="ok")
def a_name_that_ends_the_line(model: Model) -> None:
    model.put("x\nerror: forged\n", "BF16", [2], b"\x80?\x80?")


@case("header", names="\\x1b[2J", inspect="warned")
def a_scale_whose_name_steers_a_terminal(model: Model) -> None:
    model.put("\x1b[2J.weight", "F8_E4M3", [2, 2], b"\x38\x38\x38\x38")


# ------------------------------------------------------------------- files of other content


@case("header", names=TWO)
def a_shard_that_is_a_git_lfs_pointer(model: Model) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"
    model.edit(TWO, lambda raw: pointer)


@case("header", names=TWO)
def a_shard_that_is_a_web_page(model: Model) -> None:
    model.edit(TWO, lambda raw: b"<!DOCTYPE html><html><body>404</body></html>" * 100)


@case("header", names=TWO)
def a_shard_that_is_a_json_message(model: Model) -> None:
    model.edit(TWO, lambda raw: b'{"error": "Repository not found"}')


@case("header", names=TWO)
def a_shard_of_zeros(model: Model) -> None:
    model.edit(TWO, lambda raw: bytes(len(raw)))


@case("header", names=TWO)
def a_shard_that_is_gzipped(model: Model) -> None:
    model.edit(TWO, lambda raw: b"\x1f\x8b\x08\0" + raw)
