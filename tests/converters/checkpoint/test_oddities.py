"""Odd values: the last number of a dtype, and scales of weights that no training makes."""

import struct
import tracemalloc

import pytest

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.oddities import absurd_scales, large_weight, odd_magnitude

SCALE = TensorInfo("w_scale_inv", "F32", (2, 2), "s.safetensors", 0, 16)


def scales(*values: float) -> memoryview:
    return memoryview(struct.pack(f"<{len(values)}f", *values))


@pytest.mark.parametrize(
    ("dtype", "last", "below"),
    [
        ("BF16", (2 - 2**-7) * 2.0**127, (2 - 2**-6) * 2.0**127),
        ("F16", 65504.0, 65472.0),
        ("F32", (2 - 2**-23) * 2.0**127, (2 - 2**-22) * 2.0**127),
    ],
)
def test_only_the_last_number_of_a_dtype_is_clamped(dtype: str, last: float, below: float) -> None:
    info = SCALE._replace(dtype=dtype)
    (finding,) = odd_magnitude(info, last, is_weight=True)
    assert (finding.level, finding.code, finding.where) == ("warning", "clamped", info.where)
    assert "clamped" not in [f.code for f in odd_magnitude(info, below, is_weight=False)]
    assert list(odd_magnitude(info, 0.0, is_weight=True)) == []


def test_a_large_number_is_odd_in_a_weight_and_a_larger_one_in_any_tensor() -> None:
    info = SCALE._replace(dtype="BF16")
    (finding,) = odd_magnitude(info, 1e30, is_weight=True)
    assert (finding.level, finding.code) == ("warning", "large-weight")
    assert finding.message.startswith("holds a weight of up to about 1e+30, far above")
    (finding,) = odd_magnitude(info, 1e30, is_weight=False)
    assert (finding.level, finding.code, finding.where) == ("warning", "large-value", info.where)
    assert finding.message.startswith("holds a number of magnitude 1e+30, far above")
    assert list(odd_magnitude(info, 1e10, is_weight=False)) == []
    assert list(odd_magnitude(info, 1e4, is_weight=True)) == []


def test_codes_reach_their_last_number_in_every_block() -> None:
    assert list(odd_magnitude(SCALE._replace(dtype="F8_E4M3"), 448.0, is_weight=True)) == []


def test_scales_are_named_at_both_ends_with_their_position() -> None:
    high, low = absurd_scales(SCALE, scales(1e-4, 1e-30, 1e30, 1e-3), 6)
    assert high.message == "holds 1e+30 at [7, 0], a weight of up to about 4.48e+32"
    assert low.message == "holds 1e-30 at [6, 1], a weight of up to about 4.48e-28"
    assert {high.level, low.level} == {"warning"}


@pytest.mark.parametrize("scale", [1e4 / 449, 1e-12 / 448, 2.0**-22])
def test_scales_of_trained_weights_and_of_blocks_of_zeros_are_sane(scale: float) -> None:
    assert list(absurd_scales(SCALE, scales(scale, scale))) == []
    assert list(large_weight(SCALE, scales(scale))) == []


def test_many_scales_are_looked_at_without_a_list_of_them() -> None:
    many = scales(*[1e-3] * 99_999, 1e30)
    tracemalloc.start()
    (finding,) = absurd_scales(SCALE._replace(shape=(50_000, 2)), many)
    assert tracemalloc.get_traced_memory()[1] < len(many) / 2  # a list takes 6 times as much
    tracemalloc.stop()
    assert "at [49999, 1]" in finding.message


def test_no_scale_is_not_absurd() -> None:
    assert list(absurd_scales(SCALE._replace(shape=(0, 2)), scales())) == []


def test_a_weight_is_large_by_the_largest_of_its_scales() -> None:
    (finding,) = large_weight(SCALE._replace(name="w"), scales(1e-4, 100.0, 1e-3))
    assert finding.where == "s.safetensors: w"
    assert finding.message.startswith("holds a weight of up to about 44800,")
