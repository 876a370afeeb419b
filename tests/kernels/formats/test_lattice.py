"""Lattice recovery on every level that runs here: exact where a block was FP8, else refused."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8, lattice
from dstools_kernels.formats.block_fp8_numpy import bf16_bits, e4m3_codes, e4m3_values
from dstools_kernels.fp8 import ScaleFormat

Codes = NDArray[np.uint8]
Scales = NDArray[np.float32]
Bf16 = NDArray[np.uint16]

LEVELS = native.levels()
SHAPES = [(1, 1), (1, 128), (128, 1), (129, 129), (300, 500), (576, 1000)]
VALUES = e4m3_values()


@pytest.fixture(params=[*native.LEVELS, native.NUMPY])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name not in LEVELS:
        pytest.skip(f"needs a library and a CPU with {name}")
    monkeypatch.setattr(native, "_chosen", None)  # put back at the end
    native.use(name)
    return name


def dequantize(codes: Codes, scale: Scales, block: int = 128) -> Bf16:
    weight = np.empty(codes.shape, np.uint16)
    block_fp8.dequantize(codes, codes.shape[1], scale, weight, (block, block))
    return weight


def quantize(weight: Scales, scale_format: ScaleFormat) -> tuple[Codes, Scales]:
    rows, cols = weight.shape
    codes, scale = np.empty((rows, cols), np.uint8), empty_scales(rows, cols, 128)
    block_fp8.quantize(weight, "F32", cols, codes, scale, scale_format)
    return codes, scale


def empty_scales(rows: int, cols: int, block: int) -> Scales:
    return np.empty((-(-rows // block), -(-cols // block)), np.float32)


def recover(
    weight: Bf16, block: int = 128, *, powers_only: bool = False
) -> tuple[Codes, Scales] | int:
    """The function under test, at an odd address and with canaries behind both outputs."""
    rows, cols = weight.shape
    source = b"\0" + weight.tobytes()
    blocks = -(-rows // block) * -(-cols // block)
    codes, scale = bytearray(b"\xaa" * (rows * cols + 9)), bytearray(b"\xaa" * (4 * blocks + 9))
    bad = lattice.recover(
        memoryview(source)[1:],
        cols,
        memoryview(codes)[1:],
        memoryview(scale)[1:],
        block,
        powers_only=powers_only,
    )
    for buffer in (codes, scale):
        assert bytes(buffer[:1] + buffer[-8:]) == b"\xaa" * 9
    if bad >= 0:
        return bad
    found = np.frombuffer(bytes(codes[1:-8]), np.uint8).reshape(rows, cols)
    scales = np.frombuffer(bytes(scale[1:-8]), np.float32).reshape(-1, -(-cols // block))
    np.testing.assert_array_equal(dequantize(found, scales, block), weight)
    return found, scales


def recover_or_fail(
    weight: Bf16, block: int = 128, *, powers_only: bool = False
) -> tuple[Codes, Scales]:
    found = recover(weight, block, powers_only=powers_only)
    assert not isinstance(found, int), f"block {found} was not recovered"
    return found


def floats(weight: Bf16) -> Scales:
    return (weight.astype(np.uint32) << 16).view(np.float32)


def normal(shape: tuple[int, int], seed: int = 0) -> Scales:
    rng = np.random.default_rng((seed, *shape))
    spread = np.exp(0.5 * rng.normal(size=(shape[0], 1)))
    return (rng.normal(scale=0.02, size=shape) * spread).astype(np.float32)


def bf16(number: float | NDArray[np.float64]) -> Bf16:
    return bf16_bits(np.atleast_2d(np.asarray(number, np.float32)))


# ---- What it finds -------------------------------------------------------------------------------


def test_a_block_worked_by_hand(level: str) -> None:
    # made with scale 1.1, which BF16 rounds away: 448 x 1.1 = 492.8 -> 492 (steps of 2),
    # 1 x 1.1 -> 1.1015625 and 1.5 x 1.1 = 1.65 -> 1.6484375 (steps of 2^-7)
    weight = bf16(np.array([[492.0, -1.1015625, 1.6484375, -0.0]]))
    codes, scale = recover_or_fail(weight)
    assert codes.tolist() == [[0x7E, 0xB8, 0x3C, 0x80]]
    # 492: s in [491, 493] / 448 = [1.09598, 1.10045]; 1.1015625: [1.09766, 1.10547];
    # 1.6484375 / 1.5: [1.09635, 1.10156]. amax / 448 = 1.09821 lies in all three.
    assert scale[0, 0] == np.float32(492) / np.float32(448)
    # 1.109375 asks for [1.10547, 1.11328], which leaves nothing with 492
    assert recover(bf16(np.array([[492.0, -1.109375, 1.6484375, -0.0]]))) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e-20, 0.0, 1e30])
def test_float32_scales_of_an_amax_come_back(
    level: str, shape: tuple[int, int], factor: float
) -> None:
    # as DeepSeek-V3 was made: scales from a float32 master, which BF16 cannot tell
    codes, scale = quantize(normal(shape) * np.float32(factor), "float32")
    weight = dequantize(codes, scale)
    found, found_scale = recover_or_fail(weight)
    np.testing.assert_array_equal(found, codes)
    # all scales that give the same 448 x scale in BF16 lie within 2^-7 of each other
    np.testing.assert_allclose(found_scale, scale, rtol=2**-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e-8, 0.0, 1e30])
def test_powers_of_two_come_back(level: str, shape: tuple[int, int], factor: float) -> None:
    # as DeepSeek-V3.1 was made
    codes, scale = quantize(normal(shape) * np.float32(factor), "ue8m0")
    weight = dequantize(codes, scale)
    found, found_scale = recover_or_fail(weight, powers_only=True)
    # where the largest code is 224, half the scale with each code doubled is the rule's answer
    high, wide = (np.arange(size) // 128 for size in shape)
    ratio = (scale / found_scale)[high][:, wide]
    assert set(ratio.ravel().tolist()) <= {1.0, 2.0}
    np.testing.assert_array_equal(found[ratio == 1], codes[ratio == 1])
    np.testing.assert_array_equal(VALUES[found], VALUES[codes] * ratio)
    anyhow = recover_or_fail(weight)[1]  # and without being told
    if factor == 1 and min(shape) >= 300:  # blocks of few values may find another scale first
        assert (np.frexp(anyhow)[0] == 0.5).all()


@pytest.mark.parametrize("shape", [(300, 500), (576, 1000)], ids=str)
def test_scales_made_of_a_bf16_maximum_come_back_to_the_bit(
    level: str, shape: tuple[int, int]
) -> None:
    codes, scale = quantize(floats(bf16_bits(normal(shape))), "float32")
    found, found_scale = recover_or_fail(dequantize(codes, scale))
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(found_scale, scale)


@pytest.mark.parametrize("rule", ["searched", "clipped", "bf16", "floor 1e-4"])
def test_other_scale_rules_come_back(level: str, rule: str) -> None:
    weight = normal((256, 512)).astype(np.float64)
    if rule == "floor 1e-4":  # DeepGEMM's, under which a tiny block has no large code
        weight *= 1e-5
    blocks = np.abs(weight).reshape(2, 128, 4, 128).max((1, 3))
    factor = np.random.default_rng(1).uniform(1, 1.3, blocks.shape)
    scale = {
        "searched": blocks / 448 * factor,
        "clipped": blocks / 448 * 0.85,
        "bf16": floats(bf16_bits((blocks / 448).astype(np.float32))),
        "floor 1e-4": np.maximum(blocks, 1e-4) / 448,
    }[rule].astype(np.float32)
    spread = scale.repeat(128, 0).repeat(128, 1)
    quotient = (weight / spread).clip(-448, 448).astype(np.float32)
    codes = e4m3_codes(quotient)
    recover_or_fail(dequantize(codes, scale))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_codes_under_any_scale_come_back(data: st.DataObject) -> None:
    # few and odd codes, where many scales would do and wrong candidates come close
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    block = data.draw(st.integers(1, 3))
    code = st.integers(0, 0x7E).flatmap(lambda size: st.sampled_from([size, size | 0x80]))
    codes = np.array(
        data.draw(st.lists(code, min_size=rows * cols, max_size=rows * cols)), np.uint8
    ).reshape(rows, cols)
    # the largest finite BF16 is below 2^128, the least product to be normal is 2^-9 x scale
    exponent, mantissa = st.integers(-81, 118), st.integers(0, (1 << 23) - 1)
    powers_only = data.draw(st.booleans())
    scale = empty_scales(rows, cols, block)
    for at in np.ndindex(scale.shape):
        bits = 0 if powers_only else data.draw(mantissa)
        scale[at] = math.ldexp(1 + bits / 2**23, data.draw(exponent))
    weight = dequantize(codes, scale, block)
    before = native.instruction_set()
    found = set()
    for name in LEVELS:
        native.use(name)
        again = recover_or_fail(weight, block, powers_only=powers_only)
        found.add((again[0].tobytes(), again[1].tobytes()))
    native.use(before)
    assert len(found) == 1
    if powers_only:
        assert (np.frexp(again[1])[0] == 0.5).all()


def test_every_largest_code_comes_back(level: str) -> None:
    rng = np.random.default_rng(0)
    for top in range(1, 0x7F):
        codes = rng.integers(0, top + 1, (16, 16)).astype(np.uint8)
        codes |= (rng.integers(0, 2, codes.shape) << 7).astype(np.uint8)
        codes[7, 9] = top
        for mantissa in (1.0, 1.1, 1.9999999, *rng.uniform(1, 2, 5)):
            scale = np.array([[mantissa * 2.0**-12]], np.float32)
            recover_or_fail(dequantize(codes, scale))


def test_zeros_keep_their_sign_and_get_the_scale_of_the_floor(level: str) -> None:
    weight = bf16(np.array([[0.0, -0.0, 0.0]]))
    codes, scale = recover_or_fail(weight)
    assert codes.tolist() == [[0x00, 0x80, 0x00]]
    assert scale[0, 0] == np.float32(1e-12) / np.float32(448)
    assert recover_or_fail(weight, powers_only=True)[1].tolist() == [[2.0**-22]]


def test_one_element_is_any_code(level: str) -> None:
    for number in (1.0, -3.171875, 2.0**-89, -255 * 2.0**120):
        codes, scale = recover_or_fail(bf16(number))
        assert codes[0, 0] & 0x7F == 0x7E
        assert scale[0, 0] == np.float32(abs(number)) / np.float32(448)
    assert recover(bf16(1.171875), powers_only=True) == 0  # 1.171875 has five bits
    assert recover(bf16(2.0**-91)) == 0  # said to be refused


# ---- What it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy-tailed", "sparse", "float16"])
@pytest.mark.parametrize("powers_only", [False, True])
def test_ten_thousand_ordinary_blocks_are_refused(level: str, kind: str, powers_only: bool) -> None:
    # 64 elements are far fewer than a block has; 9 mantissas of 128 are among them all the same
    count, rng = 10_000 if level != native.NUMPY else 500, np.random.default_rng(0)
    shape = (count, 8, 8)
    numbers = {
        "normal": lambda: rng.normal(scale=0.02, size=shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "heavy-tailed": lambda: rng.standard_t(2, shape),
        "sparse": lambda: rng.normal(size=shape) * (rng.uniform(size=shape) < 0.5),
        "float16": lambda: rng.normal(scale=1e-3, size=shape).astype(np.float16),
    }[kind]()
    codes, scale = bytearray(64), bytearray(4)
    for block in bf16_bits(numbers.astype(np.float32)):
        assert lattice.recover(block, 8, codes, scale) == 0


def test_one_bit_in_a_block_is_noticed(level: str) -> None:
    codes, scale = quantize(normal((256, 384)), "float32")
    weight = dequantize(codes, scale)
    rng = np.random.default_rng(0)
    for bit, _ in itertools.product(range(15), range(4)):
        row, col = (int(at) for at in rng.integers((256, 384)))
        if weight[row, col] & 0x7FFF == 0:
            continue
        changed = weight.copy()
        changed[row, col] ^= 1 << bit
        block = row // 128 * 3 + col // 128
        found = recover(changed)
        # an exponent's bit can lead to another product of the same lattice
        assert found == block if bit < 4 else isinstance(found, tuple) or found == block


def test_the_first_block_without_a_lattice_is_named(level: str) -> None:
    codes, scale = quantize(normal((300, 500)), "float32")
    weight = dequantize(codes, scale)
    weight[299, 130] ^= 1
    assert recover(weight) == 9
    weight[130, 499] ^= 1
    assert recover(weight) == 7


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_infinity_and_nan_are_refused(level: str, bits: int) -> None:
    weight = bf16(np.array([[1.0, 2.0, 0.0]]))
    weight[0, 1] = bits
    assert recover(weight, block=1) == 1
    assert recover(weight, powers_only=True) == 0


def test_powers_only_refuses_what_needs_another_scale(level: str) -> None:
    codes, scale = quantize(normal((128, 256)), "float32")
    scale[0, 0] = 0.25
    assert recover(dequantize(codes, scale), powers_only=True) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lattice.recover(bytes(23), 4, bytearray(12), bytearray(4)),
            "weight_bf16 must be a whole",
        ),
        (
            lambda: lattice.recover(bytes(24), 0, bytearray(12), bytearray(4)),
            "cols must be at least 1",
        ),
        (
            lambda: lattice.recover(bytes(24), 4, bytearray(11), bytearray(4)),
            "codes must hold at least 12",
        ),
        (
            lambda: lattice.recover(bytes(24), 4, bytearray(12), bytearray(3)),
            "scale_inv must hold at least 4",
        ),
        (lambda: lattice.recover(bytes(24), 4, bytes(12), bytearray(4)), "codes must be writable"),
        (lambda: lattice.recover(bytes(24), 4, bytearray(12), bytearray(4), 0), "block_size"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(level: str, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_no_rows_are_no_work(level: str) -> None:
    assert lattice.recover(b"", 7, bytearray(), bytearray()) == -1
