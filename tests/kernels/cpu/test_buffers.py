"""Arguments of kernels: any contiguous buffer, and sizes that must match."""

import mmap
from typing import Any

import numpy as np
import pytest

from dstools_kernels.cpu.buffers import at_least_one, exactly, input_bytes, output_bytes, whole_rows


@pytest.mark.parametrize(
    "buffer",
    [
        b"\1\0\2\0",
        bytearray(b"\1\0\2\0"),
        memoryview(b"_\1\0\2\0")[1:],
        np.array([[1], [2]], "<u2"),
        np.array([1, 2], "<u2")[None, :, None],
    ],
)
def test_any_contiguous_buffer_is_its_bytes(buffer: Any) -> None:
    view = input_bytes(buffer, "weight")
    assert (view.format, view.tobytes()) == ("B", b"\1\0\2\0")


def test_an_empty_buffer_has_no_bytes() -> None:
    assert input_bytes(np.empty((0, 7), np.float32), "weight").nbytes == 0


def test_a_strided_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight must be contiguous, got strides \(2,\)$"):
        input_bytes(memoryview(bytes(8))[::2], "weight")


def test_an_output_is_the_first_part_of_its_buffer() -> None:
    buffer = bytearray(8)
    output_bytes(np.frombuffer(buffer, np.uint32), "codes", 5)[:] = b"abcde"
    assert buffer == b"abcde\0\0\0"


def test_an_output_must_be_writable_and_long_enough() -> None:
    with pytest.raises(ValueError, match=r"^codes must be writable, got a read-only buffer$"):
        output_bytes(bytes(8), "codes", 8)
    memory = mmap.mmap(-1, 4096)
    with pytest.raises(ValueError, match=r"^codes must hold at least 4097 bytes, got 4096$"):
        output_bytes(memory, "codes", 4097)


def test_rows_are_whole() -> None:
    assert whole_rows(memoryview(bytes(24)), "weight", 4, 2) == 3
    message = "^weight must be a whole number of rows of 10 bytes, got 24 bytes$"
    with pytest.raises(ValueError, match=message):
        whole_rows(memoryview(bytes(24)), "weight", 5, 2)


def test_another_size_is_refused() -> None:
    exactly(memoryview(bytes(4)), "scale_inv", 4)
    with pytest.raises(ValueError, match=r"^scale_inv must hold 8 bytes, got 4$"):
        exactly(memoryview(bytes(4)), "scale_inv", 8)


def test_a_size_is_at_least_one() -> None:
    at_least_one(rows=1, cols=1)
    with pytest.raises(ValueError, match=r"^cols must be at least 1, got 0$"):
        at_least_one(rows=1, cols=0)
