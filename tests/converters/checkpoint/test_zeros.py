"""Weights that are all zeros are found from a few bytes, exactly, in every dtype."""

import struct
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.zeros import all_zero, is_all_zero

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
