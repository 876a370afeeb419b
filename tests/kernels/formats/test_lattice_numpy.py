"""The steps of lattice recovery by themselves: its intervals of scales are exact."""

import numpy as np

from dstools_kernels.formats import lattice_numpy
from dstools_kernels.formats.block_fp8_numpy import bf16_bits

VALUES = lattice_numpy.VALUES


def test_an_interval_ends_where_the_next_scale_gives_another_value() -> None:
    one = np.arange(0x3F80, 0x4000, dtype=np.uint16)  # every mantissa
    values = np.concatenate([one, one - 0x2000, one + 0x3F80]).astype(np.uint16)  # up to the last
    for code in range(0x77, 0x7F):
        scaled = np.full(values.shape, VALUES[code])
        low, high = lattice_numpy.scales_of(scaled, values)
        for bits, is_inside in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
            with np.errstate(over="ignore"):  # above the largest number is infinity
                back = bf16_bits(bits.view(np.float32) * scaled)
            assert ((back == values) == is_inside).all()


def test_the_codes_to_try_are_those_of_the_last_binade() -> None:
    assert [float(VALUES[code]) for code in lattice_numpy.TOP_CODES] == [
        448, 416, 384, 352, 320, 288, 256, 240,
    ]  # fmt: skip


def test_the_number_of_the_first_block_without_a_lattice_is_returned() -> None:
    """Blocks of 1 x 2: the second one holds 1 and 1 + 2^-7, of which no scale makes E4M3 codes."""
    weight = np.array([[0x3F80, 0x4000, 0x3F80, 0x3F81]], np.uint16)
    codes, scales = bytearray(4), bytearray(8)
    views = (memoryview(weight.tobytes()), memoryview(codes), memoryview(scales))
    assert lattice_numpy.recover(views[0], 1, 4, views[1], views[2], False, 2) == 1
    factors = np.frombuffer(scales, np.float32)[0] * VALUES[np.frombuffer(codes, np.uint8)[:2]]
    assert bf16_bits(factors).tolist() == [0x3F80, 0x4000]
