"""The numpy definition by itself: its casts are torch's, to the bit."""

import numpy as np
import pytest
import torch

from dstools_kernels.formats import block_fp8_numpy as definition
from dstools_kernels.fp8 import E4M3_MAX


def test_every_code_has_torchs_value() -> None:
    codes = torch.arange(256).to(torch.uint8)
    wanted = codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(definition.e4m3_values(), wanted, equal_nan=True)


def test_the_steps_are_the_distances_of_neighbouring_codes() -> None:
    values, ulps = definition.e4m3_values().astype(np.float64), definition.e4m3_ulps()
    assert (np.diff(values[:0x7F]) == ulps[:0x7E]).all()
    assert (ulps[:0x80] == ulps[0x80:]).all()


def test_codes_round_as_torchs_cast_does() -> None:
    values = definition.e4m3_values()[:0x7F]
    ties = (values[1:] + values[:-1]) / 2  # exact in float32
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([values, ties, *near]).astype(np.float32)
    x = np.concatenate([x, -x])
    wanted = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (definition.e4m3_codes(x) == wanted).all()


def test_codes_saturate() -> None:
    x = np.array([E4M3_MAX + 1, 1e30, -1e30], np.float32)
    assert definition.e4m3_codes(x).tolist() == [0x7E, 0x7E, 0xFE]


def test_bf16_rounds_as_torchs_cast_does_and_keeps_nan() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([halves | low for low in (0, 0x7FFF, 0x8000, 0x8001)])
    x = bits.view(np.float32)
    rounded = definition.bf16_bits(x)
    is_nan = np.isnan(x)
    wanted = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert (rounded[~is_nan] == wanted[~is_nan]).all()
    assert (rounded[is_nan] & 0x7FFF > 0x7F80).all()


@pytest.mark.parametrize(
    ("amax", "float32", "ue8m0"),
    [
        (448.0, 1.0, 1.0),
        (449.0, 449 / 448, 2.0),
        (1.75, 1.75 / 448, 2.0**-8),
        (0.0, 1e-12 / 448, 2.0**-22),  # the floors
    ],
)
def test_a_scale_by_hand(amax: float, float32: float, ue8m0: float) -> None:
    one = np.array([amax], np.float32)
    assert definition.scale_of(one, "float32")[0] == pytest.approx(float32, rel=2.0**-23)
    assert definition.scale_of(one, "ue8m0")[0] == ue8m0


def test_memory_is_some_rows_whatever_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 2 elements the results are the same, the last chunk being short."""
    data = np.array([1, 2, 3, 4, 5], np.float32)
    out, sums = bytearray(20), bytearray(32)
    monkeypatch.setattr(definition, "CHUNK", 2)
    definition.widen(memoryview(data.tobytes()), "F32", 5, memoryview(out))
    assert np.frombuffer(out, np.float32).tolist() == data.tolist()
    narrow = bytearray(10)
    definition.narrow(memoryview(data.tobytes()), 5, memoryview(narrow))
    assert np.frombuffer(narrow, np.uint16).tolist() == [0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0]
    shifted = memoryview((data + 1).tobytes())
    definition.difference(memoryview(data.tobytes()), shifted, 5, memoryview(sums))
    assert np.frombuffer(sums, np.float64).tolist() == [5, 55, 5, 1]
