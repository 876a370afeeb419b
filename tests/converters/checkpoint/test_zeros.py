"""Weights that are all zeros are found from a few bytes, exactly, in every dtype."""

import re
import struct
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.zeros import all_zero, is_all_zero, is_hole, zero_tails

ITEM = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
NAME = "model.layers.0.mlp.up_proj.weight"


def opened(folder: Path, dtype: str, data: bytes) -> Checkpoint:
    header = (
        f'{{"{NAME}": {{"dtype": "{dtype}", "shape": [{len(data) // ITEM[dtype]}, 1],'
        f' "data_offsets": [0, {len(data)}]}}}}'
    ).encode()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ITEM)
@pytest.mark.parametrize("elements", [1, 16, 5000, (2 << 20) + 3])
def test_zeros_of_either_sign_are_zeros_and_one_bit_is_not(
    tmp_path: Path, dtype: str, elements: int
) -> None:
    size = ITEM[dtype]
    data = bytearray(elements * size)
    data[size - 1 :: 2 * size] = b"\x80" * len(data[size - 1 :: 2 * size])  # -0.0
    checkpoint = opened(tmp_path, dtype, bytes(data))
    assert is_all_zero(checkpoint, checkpoint.tensors[NAME])
    last = (elements - 1) * size
    data[last] |= 1  # the smallest number there is
    checkpoint = opened(tmp_path, dtype, bytes(data))
    assert not is_all_zero(checkpoint, checkpoint.tensors[NAME])


@pytest.mark.parametrize(
    ("dtype", "element"),
    [("BF16", b"\x80\x00"), ("BF16", b"\x80\x80"), ("F32", b"\x00\x80\x00\x00")],
)
def test_a_byte_of_the_sign_bit_elsewhere_is_no_zero(
    tmp_path: Path, dtype: str, element: bytes
) -> None:
    checkpoint = opened(tmp_path, dtype, element * 100)
    assert not is_all_zero(checkpoint, checkpoint.tensors[NAME])


def test_no_element_is_not_all_zeros(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "BF16", b"")
    assert not is_all_zero(checkpoint, checkpoint.tensors[NAME])


def test_eight_are_named_and_the_others_counted() -> None:
    names = [f"w{number}" for number in range(11)]
    findings = list(all_zero(names))
    assert [f.where for f in findings[:8]] == names[:8]
    assert findings[8].where == "3 more weights"
    assert len(findings) == 9
    assert {f.level for f in findings} == {"warning"}
    assert len(list(all_zero(names[:8]))) == 8
    assert list(all_zero([])) == []


def tail_of(folder: Path, *tensors: bytes) -> int | None:
    """From which byte of the data a shard of these BF16 tensors is reported to be zeros."""
    entries, end = [], 0
    for number, data in enumerate(tensors):
        span = f'"data_offsets": [{end}, {end + len(data)}]'
        entries.append(f'"t{number}": {{"dtype": "BF16", "shape": [{len(data) // 2}], {span}}}')
        end += len(data)
    header = ("{" + ", ".join(entries) + "}").encode()
    start = 8 + len(header)
    (folder / "config.json").write_text("{}")
    shard = folder / "model.safetensors"
    shard.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(tensors))
    with open_checkpoint(folder) as checkpoint:
        findings = list(zero_tails(checkpoint))
    if not findings:
        return None
    (finding,) = findings
    assert (finding.level, finding.where) == ("warning", shard.name)
    found = re.fullmatch(
        rf"holds only zeros from byte (\d+) to its end at {start + end}, .*", finding.message
    )
    assert found
    return int(found[1]) - start


FULL = b"\x3f" * 10000


def test_zeros_from_within_a_tensor_to_the_end_are_a_tail(tmp_path: Path) -> None:
    assert tail_of(tmp_path, FULL + bytes(4096)) == 10000
    assert tail_of(tmp_path, FULL, b"", FULL + bytes(4096)) == 20000
    assert tail_of(tmp_path, FULL + bytes(4096), bytes(2)) == 10000  # the last tensor is short
    assert tail_of(tmp_path, FULL + bytes(3 << 20), bytes(64)) == 10000
    assert tail_of(tmp_path, FULL, bytes(5000), bytes(5000)) == 10000  # two whole tensors
    assert tail_of(tmp_path, bytes(9000), bytes(9000)) == 0


def test_a_few_zeros_and_a_last_tensor_of_zeros_are_no_tail(tmp_path: Path) -> None:
    assert tail_of(tmp_path, FULL + bytes(4094)) is None
    assert tail_of(tmp_path, FULL + b"\0\0", bytes(9000)) is None
    assert tail_of(tmp_path, bytes(9000) + FULL) is None
    assert tail_of(tmp_path, b"") is None


def test_the_holes_of_a_sparse_file_are_zeros_that_are_not_read(tmp_path: Path) -> None:
    """Of a terabyte; reading it would take minutes."""
    nbytes = 1 << 40
    entry = f'{{"dtype": "BF16", "shape": [{nbytes // 2}, 1], "data_offsets": [0, {nbytes}]}}'
    header = f'{{"{NAME}": {entry}}}'.encode()
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + nbytes)
        file.seek(1 << 39)
        file.write(b"\1")
    checkpoint = open_checkpoint(tmp_path)
    assert not is_hole(checkpoint, checkpoint.tensors[NAME])
    (finding,) = zero_tails(checkpoint)
    assert f"from byte {(1 << 39) + 1} to its end" in finding.message
    info = checkpoint.tensors[NAME]
    assert is_hole(checkpoint, info._replace(offset=info.offset + (1 << 20), nbytes=1 << 30))
