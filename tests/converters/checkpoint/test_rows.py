"""Rows are the file's bytes; restored rows are torch's code times scale, to the bit."""

import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dstools_converters.checkpoint import rows
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import DstoolsError

WEIGHT = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"  # ragged


def opened(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        found |= load_file(shard)
    return found


def restored_by_torch(folder: Path) -> Tensor:
    stored = tensors(folder)
    codes, scale = stored[WEIGHT].float(), stored[f"{WEIGHT}_scale_inv"]
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes * spread[: codes.shape[0], : codes.shape[1]]


@pytest.fixture
def edited(tiny_fp8: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_fp8, tmp_path / "edited")
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def overwrite(folder: Path, name: str, at: int, data: bytes) -> None:
    """Replace bytes of a tensor, `at` counted from its first."""
    info = open_checkpoint(folder).tensors[name]
    with (folder / info.shard).open("r+b") as file:
        file.seek(info.offset + at)
        file.write(data)


def test_rows_are_the_bytes_of_the_file(tiny_fp8: Path) -> None:
    inventory = opened(tiny_fp8)
    codes = tensors(tiny_fp8)[WEIGHT].view(torch.uint8)
    data = rows.read_rows(inventory, inventory.tensors[WEIGHT], 3, 70)
    assert bytes(data) == codes[3:70].numpy().tobytes()


def test_fp8_is_restored_as_code_times_scale(tiny_fp8: Path) -> None:
    inventory, wanted = opened(tiny_fp8), restored_by_torch(tiny_fp8)
    info = inventory.tensors[WEIGHT]
    assert info.shape[0] % 128  # the last block is short
    for first, last in rows.slabs(0, info.shape[0], rows.block_rows(inventory, info), 1 << 19):
        data = rows.restore(inventory, info, first, last)
        assert bytes(data) == wanted[first:last].numpy().tobytes()


def test_a_plain_tensor_is_widened(tiny_fp8: Path) -> None:
    inventory, name = opened(tiny_fp8), "model.norm.weight"
    data = rows.restore(inventory, inventory.tensors[name], 0, 1)
    assert bytes(data) == tensors(tiny_fp8)[name].float().numpy().tobytes()


def test_fp8_is_dequantized_with_one_more_rounding(tiny_fp8: Path) -> None:
    inventory = opened(tiny_fp8)
    info = inventory.tensors[WEIGHT]
    values = memoryview(bytearray(2 * info.numel))
    rows.dequantize_rows(inventory, info, 0, info.shape[0], values)
    wanted = restored_by_torch(tiny_fp8).bfloat16().view(torch.int16)
    assert bytes(values) == wanted.numpy().tobytes()


def test_scales_of_another_dtype_are_widened(checkpoint: Callable[..., Path]) -> None:
    inventory = opened(checkpoint("tiny", fp8="ue8m0"))
    info = inventory.tensors[WEIGHT]
    scales = rows.read_scales(inventory, info, 0, info.shape[0]).cast("f").tolist()
    assert len(scales) == math.prod(inventory.storage[WEIGHT].scale.shape)
    assert all(math.frexp(scale)[0] == 0.5 for scale in scales)


def test_the_scales_of_a_span_are_those_of_its_blocks(tiny_fp8: Path) -> None:
    inventory = opened(tiny_fp8)
    info = inventory.tensors[WEIGHT]
    scale = tensors(tiny_fp8)[f"{WEIGHT}_scale_inv"]
    data = rows.read_scales(inventory, info, 128, info.shape[0])
    assert bytes(data) == scale[1:].numpy().tobytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"NaN or infinity at \[0, 1\]"),
        (math.inf, r"NaN or infinity at \[0, 1\]"),
        (0.0, r"holds 0 at \[0, 1\]; scales are positive"),
        (-1.0, r"holds -1 at \[0, 1\]; scales are positive"),
    ],
)
def test_a_scale_that_cannot_be_one_is_refused_with_its_position(
    value: float, message: str, edited: Path
) -> None:
    overwrite(edited, f"{WEIGHT}_scale_inv", 4, struct.pack("<f", value))
    inventory = opened(edited)
    with pytest.raises(DstoolsError, match=f"{WEIGHT}_scale_inv: {message}"):
        rows.read_scales(inventory, inventory.tensors[WEIGHT], 0, 1)


def test_a_nan_code_is_refused_with_its_position(edited: Path) -> None:
    info = open_checkpoint(edited).tensors[WEIGHT]
    overwrite(edited, WEIGHT, 5 * info.shape[1] + 7, b"\x7f")
    inventory = opened(edited)
    with pytest.raises(DstoolsError, match=rf"{WEIGHT}: NaN or infinity at \[5, 7\]"):
        rows.dequantize_rows(inventory, info, 0, 128, memoryview(bytearray(256 * info.shape[1])))


def test_the_first_span_that_is_not_dequantized_is_found(
    edited: Path, tiny_fp8: Path, dequantized: Callable[[Path], Path]
) -> None:
    bf16 = opened(dequantized(tiny_fp8))
    values, fp8 = bf16.tensors[WEIGHT], opened(tiny_fp8)
    info = fp8.tensors[WEIGHT]
    assert rows.unlike_dequantized(fp8, info, bf16, values) is None
    codes = bytes(fp8.checkpoint.read(info, 0, 1))
    overwrite(edited, WEIGHT, 0, bytes([codes[0] ^ 0x80 or 1]))
    assert rows.unlike_dequantized(opened(edited), info, bf16, values) == (0, info.shape[0])


def test_what_was_dequantized_is_recovered_and_other_weights_are_not(
    tiny: Path, tiny_fp8: Path, dequantized: Callable[[Path], Path]
) -> None:
    fp8 = opened(tiny_fp8)
    info = fp8.tensors[WEIGHT]
    spans = [(0, 128), (128, info.shape[0])]
    taken: dict[int, bytes] = {}

    def take(first: int, codes: memoryview, scales: memoryview) -> None:
        taken[first] = bytes(codes)

    bf16 = opened(dequantized(tiny_fp8))
    source = bf16.tensors[WEIGHT]
    assert rows.recover_tensor(bf16, source, spans, 128, take, powers_only=False)
    # codes may be doubled with half the scale: the values are what comes back
    assert sorted(taken) == [0, 128]
    assert sum(map(len, taken.values())) == info.numel
    plain = opened(tiny)
    assert not rows.recover_tensor(
        plain, plain.tensors[WEIGHT], spans, 128, take, powers_only=False
    )


def test_slabs_are_whole_blocks_and_cover_every_row_once() -> None:
    assert list(rows.slabs(0, 5, 2, 1 << 30)) == [(0, 2), (2, 4), (4, 5)]
    assert list(rows.slabs(4, 10, 1, rows.SLAB_BYTES // 4)) == [(4, 8), (8, 10)]
    assert list(rows.slabs(0, 0, 128, 1)) == []


def test_a_worker_s_memory_is_reused_by_purpose() -> None:
    first = rows.memory.view("a", 8)
    first[:] = b"12345678"
    assert rows.memory.view("a", 4) == b"1234"
    rows.memory.view("b", 8)[:] = bytes(8)
    assert first == b"12345678"
    assert rows.memory.view("a", 1 << 20).nbytes == 1 << 20


def test_a_position_is_counted_along_every_dimension() -> None:
    info = TensorInfo("x", "F32", (2, 3, 4), "s", 0, 96)
    assert str(rows.not_finite(info, 23)) == "s: x: NaN or infinity at [1, 2, 3]"
    assert rows.columns(info) == 4
    assert rows.columns(info._replace(shape=())) == 1
