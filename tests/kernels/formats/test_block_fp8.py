"""Block FP8 on every level that runs here, held to torch to the bit.

torch is the oracle: amax / 448, a float32 division, and its own cast to float8_e4m3fn.
"""

import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from mmap import mmap
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8
from dstools_kernels.formats.block_fp8 import NonFiniteError
from dstools_kernels.fp8 import NON_FINITE_BITS, Dtype, FiniteDtype, ScaleFormat

TORCH_DTYPE = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DTYPES: list[Dtype] = ["BF16", "F16", "F32"]
SCALE_FORMATS: list[ScaleFormat] = ["float32", "ue8m0"]
SHAPES = [(1, 1), (1, 128), (129, 127), (129, 129), (300, 500), (192, 576), (576, 7168), (2, 10944)]


@pytest.fixture(params=[*native.LEVELS, native.NUMPY])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name not in native.levels():
        pytest.skip(f"needs a library and a CPU with {name}")
    monkeypatch.setattr(native, "_chosen", None)  # put back at the end
    native.use(name)
    return name


# ---- Oracles -------------------------------------------------------------------------------------


def quantize_torch(
    weight: Tensor, scale_format: ScaleFormat = "float32", block: int = 128
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rows, cols = weight.shape
    high, wide = -(-rows // block), -(-cols // block)
    padded = torch.zeros(high * block, wide * block)
    padded[:rows, :cols] = weight.float()
    blocks = padded.view(high, block, wide, block)
    floor = {"float32": 1e-12, "ue8m0": 1e-4}[scale_format]
    scale = blocks.abs().amax((1, 3)).clamp(min=floor) / 448.0
    if scale_format == "ue8m0":
        scale = torch.tensor([[power_above(s) for s in row] for row in scale.tolist()])
    # the clamp is not left to the cast: torch has not always saturated
    quotient = (blocks / scale[:, None, :, None]).clamp(-448, 448)
    codes = quotient.to(torch.float8_e4m3fn).view(high * block, -1)[:rows, :cols]
    return codes.contiguous().view(torch.uint8).numpy(), scale.numpy()


def power_above(number: float) -> float:
    """The least power of two that is not below `number`."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def dequantize_torch(
    codes: NDArray[np.uint8], scale: NDArray[np.float32], block: tuple[int, int]
) -> Tensor:
    rows, cols = codes.shape
    spread = torch.from_numpy(scale).repeat_interleave(block[0], 0)[:rows]
    spread = spread.repeat_interleave(block[1], 1)[:, :cols]
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * spread


def quantize(
    weight: Tensor, scale_format: ScaleFormat = "float32", block: int = 128
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The function under test, at an odd address and with canaries behind both outputs."""
    rows, cols = weight.shape
    dtype = next(name for name in DTYPES if TORCH_DTYPE[name] == weight.dtype)
    source = b"\0" + weight.contiguous().view(torch.uint8).numpy().tobytes()
    blocks = -(-rows // block) * -(-cols // block)
    codes, scale = bytearray(b"\xaa" * (rows * cols + 9)), bytearray(b"\xaa" * (4 * blocks + 9))
    block_fp8.quantize(
        memoryview(source)[1:],
        dtype,
        cols,
        memoryview(codes)[1:],
        memoryview(scale)[1:],
        scale_format,
        block,
    )
    for buffer in (codes, scale):
        assert bytes(buffer[:1] + buffer[-8:]) == b"\xaa" * 9
    return (
        np.frombuffer(bytes(codes[1:-8]), np.uint8).reshape(rows, cols),
        np.frombuffer(bytes(scale[1:-8]), np.float32).reshape(-1, -(-cols // block)),
    )


quantize_torch_once = cache(quantize_torch)  # for tensors that stay the same for every level


def assert_same_as_torch(
    weight: Tensor, scale_format: ScaleFormat = "float32", block: int = 128, cached: bool = False
) -> None:
    codes, scale = quantize(weight, scale_format, block)
    reference = quantize_torch_once if cached else quantize_torch
    wanted_codes, wanted_scale = reference(weight, scale_format, block)
    np.testing.assert_array_equal(scale.view(np.uint32), wanted_scale.view(np.uint32))
    np.testing.assert_array_equal(codes, wanted_codes)


def random_weight(rows: int, cols: int, dtype: Dtype, spread: float = 3.0) -> Tensor:
    """Normal numbers over many binades, so that codes of every size occur, subnormal and zero."""
    generator = torch.Generator().manual_seed(rows * 100_003 + cols)
    normal = torch.randn(rows, cols, generator=generator)
    binade = torch.randn(rows, cols, generator=generator) * spread
    return (normal * torch.exp(binade)).clamp(-60000, 60000).to(TORCH_DTYPE[dtype])


# ---- Quantize ------------------------------------------------------------------------------------


def test_a_block_worked_by_hand(level: str) -> None:
    # amax 448 gives scale 1, so each number is its own quotient
    weight = torch.tensor(
        [
            [448.0, -3.0, 0.5, -0.0],  # 448 = 1.75 x 2^8 and so on, exactly
            [17.0, 19.0, -26.0, 416.0],  # ties: 16 | 18, 18 | 20; exact; 416 exact
            [2**-6, 2**-9, 2**-10, 3 * 2**-10],  # least normal, least subnormal, ties 0 | 1, 1 | 2
            [432.0, 2**-11, -(2**-10), 0.0],  # tie 416 | 448; below half the least; sign kept
        ]
    ).to(torch.bfloat16)
    codes, scale = quantize(weight, block=4)
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [
        [0x7E, 0xC4, 0x30, 0x80],
        [0x58, 0x5A, 0xDD, 0x7D],
        [0x08, 0x01, 0x00, 0x02],
        [0x7E, 0x00, 0x80, 0x00],
    ]
    # amax 500 / 448 = 1.116...: the next power of two is 2
    codes, scale = quantize(torch.tensor([[500.0, 4.0]]).to(torch.bfloat16), "ue8m0")
    assert (scale.tolist(), codes.tolist()) == ([[2.0]], [[0x78, 0x40]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_shapes_give_the_bytes_of_torch(
    level: str, shape: tuple[int, int], dtype: Dtype
) -> None:
    assert_same_as_torch(random_weight(*shape, dtype))


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("block", [1, 32, 64, 100, 256])
def test_other_block_sizes_give_the_bytes_of_torch(
    level: str, block: int, scale_format: ScaleFormat
) -> None:
    for dtype in DTYPES:
        assert_same_as_torch(random_weight(150, 333, dtype), scale_format, block)


@cache
def every_bf16_below(largest: float) -> Tensor:
    """All finite BF16 up to a block's amax, in blocks of 128 x 128 that each hold that amax."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    amax = torch.tensor(largest).bfloat16()
    below = every[every.float().abs() <= amax.float()]
    room = 128 * 128 - 1
    blocks = torch.zeros(-(-len(below) // room), room + 1, dtype=torch.bfloat16)
    blocks[:, 0] = amax
    for block, start in zip(blocks, range(0, len(below), room), strict=True):
        part = below[start : start + room]
        block[1 : 1 + len(part)] = part
    return blocks.view(-1, 128)


def block_maxima() -> Iterator[float]:
    for exponent in range(-45, 46, 6):
        yield from (math.ldexp(mantissa, exponent) for mantissa in (1.0, 1.3, 1.77))
    # the top of the format, with the largest finite number
    yield from (math.ldexp(mantissa, 127) for mantissa in (1.0, 1.5, 255 / 128))
    # subnormal, and on both sides of the floors
    yield from (2.0**-133, 2.0**-130, 2.0**-126, 0.9e-12, 1.1e-12, 0.9e-4, 1.1e-4)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_every_bf16_below_many_maxima_gives_the_bytes_of_torch(
    level: str, scale_format: ScaleFormat
) -> None:
    for largest in block_maxima():
        assert_same_as_torch(every_bf16_below(largest), scale_format, cached=True)


def test_every_mantissa_of_the_maximum_gives_the_bytes_of_torch(level: str) -> None:
    # the scale depends on the maximum's mantissa, and each scale cuts the codes elsewhere
    for mantissa in range(128):
        assert_same_as_torch(every_bf16_below((1 + mantissa / 128) / 64), cached=True)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_every_f16_gives_the_bytes_of_torch(level: str, scale_format: ScaleFormat) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for largest in (65504.0, 1.0, 0.37, 6e-5, 6e-8):
        below = every[every.float().abs() <= largest]
        weight = torch.zeros(-(-len(below) // 128) * 128, dtype=torch.float16)
        weight[: len(below)] = below
        assert_same_as_torch(weight.view(-1, 128), scale_format, block=1024)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_any_f32_gives_the_bytes_of_torch(level: str, scale_format: ScaleFormat) -> None:
    generator = torch.Generator().manual_seed(0)
    for low in (-126, -60, -20, 0, 100):
        bits = torch.randint(-(2**31), 2**31, (256, 256), generator=generator).to(torch.int32)
        number = bits.view(torch.float32)
        mantissa, _ = torch.frexp(torch.where(number.isfinite(), number, 1.0))
        binade = torch.randint(low, low + 24, (256, 256), generator=generator)
        assert_same_as_torch(torch.ldexp(mantissa, binade), scale_format)


def test_f32_right_at_the_ties_gives_the_bytes_of_torch(level: str) -> None:
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    for largest in (448.0, 1.0, 0.7, 3.3e-5):
        near = ties * torch.tensor(largest) / 448.0
        for _ in range(3):
            near = torch.cat(
                [near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(1e9))]
            )
        weight = torch.cat([torch.tensor([largest]), near.clamp(max=largest)])
        assert_same_as_torch(weight[None])


def test_tiny_huge_and_zero_blocks_give_the_bytes_of_torch(level: str) -> None:
    normal = random_weight(256, 384, "F32", spread=1.0)
    for factor in (1e-38, 1e-30, 1e-12, 1e30, 1e34, 0.0, -0.0):
        for scale_format in SCALE_FORMATS:
            assert_same_as_torch((normal * factor).bfloat16(), scale_format)
    sparse = normal.bfloat16()
    sparse[:, ::3] = 0  # zeros among large ones
    sparse[::2, 1::5] *= 1e-7  # and numbers that round to zero
    assert_same_as_torch(sparse)


def test_zeros_keep_their_sign_and_a_scale_that_divides(level: str) -> None:
    codes, scale = quantize(torch.tensor([[0.0, -0.0]]).bfloat16())
    assert codes.tolist() == [[0x00, 0x80]]
    assert scale[0, 0] == np.float32(1e-12) / np.float32(448)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [(0, 0), (0, 299), (130, 200), (200, 299), (200, 256)], ids=str)
def test_infinity_and_nan_are_refused_and_named(
    level: str, at: tuple[int, int], bad: float, dtype: Dtype
) -> None:
    weight = random_weight(201, 300, dtype, spread=1.0)
    weight[at] = bad
    with pytest.raises(NonFiniteError, match=f"row {at[0]}, column {at[1]}") as caught:
        quantize(weight)
    assert (caught.value.row, caught.value.col) == at


def test_the_first_bad_number_of_the_first_bad_block_is_named(level: str) -> None:
    weight = torch.zeros(256, 256).bfloat16()
    for at in [(3, 140), (2, 255), (200, 0)]:
        weight[at] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        quantize(weight)
    assert (caught.value.row, caught.value.col) == (2, 255)


def test_no_rows_are_no_work(level: str) -> None:
    block_fp8.quantize(b"", "BF16", 7, bytearray(), bytearray())
    block_fp8.dequantize(b"", 7, b"", bytearray())
    assert block_fp8.outside_bound(b"", b"", 7, b"") == (0, -1)


def test_large_outputs_written_around_the_cache_equal_small_ones(level: str) -> None:
    # mmap gives the alignment that streaming stores need; 4160 columns are 32.5 blocks
    if level == native.NUMPY:
        pytest.skip("needs the library: numpy has one way of writing")
    rows, cols = 8 * 128 * 4, 4160
    weight = random_weight(128, cols, "BF16").view(torch.uint8).numpy().tobytes() * (rows // 128)
    codes, scale, back = mmap(-1, rows * cols), bytearray(4 * 32 * 33), mmap(-1, 2 * rows * cols)
    block_fp8.quantize(weight, "BF16", cols, codes, scale)
    block_fp8.dequantize(codes, cols, scale, back)
    few_codes, few_scale, few_back = bytearray(128 * cols), bytearray(4 * 33), bytearray(256 * cols)
    block_fp8.quantize(weight[: 256 * cols], "BF16", cols, few_codes, few_scale)
    block_fp8.dequantize(few_codes, cols, few_scale, few_back)
    times = rows // 128
    assert (codes[:] == few_codes * times, scale == few_scale * times) == (True, True)
    assert back[:] == few_back * times


# ---- Dequantize ----------------------------------------------------------------------------------

BLOCKS = [(128, 128), (32, 32), (64, 64), (1, 128), (128, 1), (3, 5), (1000, 1000)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (300, 500), (257, 640)], ids=str)
def test_dequantized_bytes_are_those_of_torch(
    level: str, shape: tuple[int, int], block: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, shape, np.uint8)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    # from products that vanish to products that overflow
    scale = np.exp2(rng.uniform(-140, 128, grid)).astype(np.float32)
    assert_dequantizes_like_torch(codes, scale, block)


@pytest.mark.parametrize("block", [(128, 128), (1, 256)], ids=str)
def test_every_code_under_many_scales_dequantizes_like_torch(
    level: str, block: tuple[int, int]
) -> None:
    rng = np.random.default_rng(2)
    special = [0.0, -0.0, math.inf, -1.5, math.nan, 1e-45, 2**-133, 2**-126, 3.4e38, 1 / 448]
    mantissas = (1 + np.arange(400) / 400) * 2.0**-9
    scale = np.array([*special, *mantissas, *rng.normal(size=100)], np.float32)
    if block == (128, 128):
        row = np.concatenate([np.arange(128), np.arange(128, 256)]).astype(np.uint8)
        codes = np.tile(row, (2 * len(scale) * 64, 1))[: len(scale) * 128]
        assert_dequantizes_like_torch(codes, scale[:, None].repeat(2, 1), block)
    else:
        codes = np.tile(np.arange(256, dtype=np.uint8), (len(scale), 1))
        assert_dequantizes_like_torch(codes, scale[:, None], block)


def assert_dequantizes_like_torch(
    codes: NDArray[np.uint8], scale: NDArray[np.float32], block: tuple[int, int]
) -> None:
    count = codes.size
    bf16, float32 = bytearray(2 * count + 9), bytearray(4 * count + 9)
    outputs: list[tuple[bytearray, Literal["BF16", "F32"]]] = [(bf16, "BF16"), (float32, "F32")]
    for out, dtype in outputs:
        out[:] = b"\xaa" * len(out)
        coded, scaled = codes.tobytes(), scale.tobytes()
        block_fp8.dequantize(coded, codes.shape[1], scaled, memoryview(out)[1:], block, dtype)
        assert bytes(out[:1] + out[-8:]) == b"\xaa" * 9
    product = dequantize_torch(codes, scale, block)
    nan = product.isnan().numpy().ravel()
    wanted = product.bfloat16().view(torch.uint16).numpy().ravel()
    np.testing.assert_array_equal(np.frombuffer(bf16[1:-8], np.uint16)[~nan], wanted[~nan])
    wanted = product.view(torch.uint32).numpy().ravel()
    np.testing.assert_array_equal(np.frombuffer(float32[1:-8], np.uint32)[~nan], wanted[~nan])
    got = torch.frombuffer(bytearray(bf16[1:-8]), dtype=torch.bfloat16)
    np.testing.assert_array_equal(got.isnan().numpy(), nan)
    got = torch.frombuffer(bytearray(float32[1:-8]), dtype=torch.float32)
    np.testing.assert_array_equal(got.isnan().numpy(), nan)


# ---- Widen and narrow ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_is_exact_for_every_half(level: str, dtype: Dtype) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    out = np.empty(65536, np.float32)
    block_fp8.widen(every.numpy(), dtype, out)
    np.testing.assert_array_equal(out, every.view(TORCH_DTYPE[dtype]).float().numpy())
    assert np.array_equal(np.signbit(out[:0x7C00]), np.zeros(0x7C00, bool))
    assert np.signbit(out[0x8000])


def test_widening_float32_copies_it(level: str) -> None:
    data = np.random.default_rng(3).bytes(4 * 1001)
    out = bytearray(4 * 1001)
    block_fp8.widen(data, "F32", out)
    assert out == data


def test_widening_an_exponent_gives_its_power_of_two(level: str) -> None:
    out = np.empty(256, np.float32)
    block_fp8.widen(bytes(range(256)), "F8_E8M0", out)
    # 2^-127 lies below the least normal float32 and is still exact
    assert out[:255].tolist() == [math.ldexp(1.0, byte - 127) for byte in range(255)]
    assert math.isnan(out[255])


def test_narrowing_rounds_like_torch(level: str) -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**32, 300_001, np.uint32)
    bits[:100_000] &= 0xFFFF0000  # exact
    bits[100_000:200_000] = bits[100_000:200_000] & 0xFFFF0000 | 0x8000  # ties
    bits[-6:] = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x7FFFFFFF]
    out = np.empty(len(bits), np.uint16)
    block_fp8.narrow(bits, out)
    wanted = torch.from_numpy(bits.view(np.float32)).bfloat16()
    nan = wanted.isnan().numpy()
    np.testing.assert_array_equal(out[~nan], wanted.view(torch.uint16).numpy()[~nan])
    assert (out[nan] & 0x7FFF > 0x7F80).all()


# ---- Proof and measure ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_true_quantization_is_inside_its_bound(
    level: str, dtype: Dtype, scale_format: ScaleFormat
) -> None:
    for weight, block in [
        (random_weight(300, 500, dtype), 128),
        (random_weight(130, 70, dtype, spread=0.0), 32),
        (every_bf16_below(1.3).to(TORCH_DTYPE[dtype]), 128),
    ]:
        codes, scale = quantize_torch(weight, scale_format, block)
        wide = weight.float().numpy()
        cols = weight.shape[1]
        assert block_fp8.outside_bound(wide, codes, cols, scale, (block, block)) == (0, -1)


def value_and_ulp(code: int) -> tuple[Fraction, Fraction]:
    exponent, mantissa = code >> 3 & 15, code & 7
    ulp = Fraction(2) ** (max(exponent, 1) - 10)
    size = (mantissa + 8 * (exponent > 0)) * ulp
    return (-size if code & 0x80 else size), ulp


@cache
def exact_verdicts(scale: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weights, and whether each with each code is inside the bound, in rational arithmetic."""
    rng = np.random.default_rng(5)
    values = np.array([float(value_and_ulp(code)[0]) for code in range(0x7F)])
    # at every code and every tie, some of them negative, and beyond the largest code
    near = np.concatenate([values, values[:-1] + np.diff(values) / 2, [470, 1e4]])
    near = np.concatenate([near, -near[::5]])
    jitter = 1 + rng.choice([0, 1e-7, -1e-7, 1e-3, -0.02], len(near))
    weight = (near * jitter * scale).astype(np.float32)
    inside = np.zeros((len(weight), 256), bool)
    for row, code in itertools.product(range(len(weight)), range(256)):
        if code & 0x7F != 0x7F:
            inside[row, code] = is_inside(Fraction(float(weight[row])), code, Fraction(scale))
    return weight, inside


@pytest.mark.parametrize("scale", [float(np.float32(0.3)), 2.0**70])
def test_the_bound_is_the_exact_one_for_every_code(level: str, scale: float) -> None:
    weight, inside = exact_verdicts(scale)
    rows = len(weight)
    codes = np.tile(np.arange(256, dtype=np.uint8), (rows, 1))
    wide = weight[:, None].repeat(256, 1)
    for block in [(rows, 256), (16, 128), (7, 100)]:
        grid = np.full((-(-rows // block[0]), -(-256 // block[1])), scale, np.float32)
        found = block_fp8.outside_bound(wide, codes, 256, grid, block)
        assert found == ((~inside).sum(), np.flatnonzero(~inside)[0])
    for row in range(rows):  # where, and not only how many
        grid = np.full((1, 2), scale, np.float32)
        found = block_fp8.outside_bound(wide[row], codes[row], 256, grid)
        assert found == ((~inside[row]).sum(), np.flatnonzero(~inside[row])[0])


def is_inside(weight: Fraction, code: int, scale: Fraction) -> bool:
    value, ulp = value_and_ulp(code)
    is_power = code & 7 == 0 and code & 0x78 > 8  # below it, codes lie half as far apart
    step = ulp / 2 if is_power and abs(weight) < abs(value) * scale else ulp
    near = abs(weight - value * scale) <= scale * step / 2 + abs(weight) / 2**23
    saturated = abs(value) == 448 and weight * value > 0 and abs(weight) > 448 * scale
    return near or saturated


def test_a_neighbouring_code_is_outside(level: str) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    scale = np.float32(0.375)
    for code in [*range(0x7F), *range(0x80, 0xFF)]:
        for wrong in {code - 1, code + 1} & {*range(0x7F), *range(0x80, 0xFF)}:
            weight = values[code : code + 1] * scale
            found = block_fp8.outside_bound(weight, bytes([wrong]), 1, scale.tobytes())
            assert found == (1, 0)


def test_only_the_largest_code_of_the_same_sign_may_saturate(level: str) -> None:
    def outside(weight: float, code: int) -> int:
        scale = np.float32(1).tobytes()
        return block_fp8.outside_bound(np.float32(weight).tobytes(), bytes([code]), 1, scale)[0]

    assert [outside(1000, code) for code in (0x7E, 0x7D, 0xFE)] == [0, 1, 1]
    assert [outside(-1000, code) for code in (0xFE, 0xFD, 0x7E)] == [0, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_outside(level: str, bad: float) -> None:
    one, odd = np.float32(1).tobytes(), np.float32(bad).tobytes()
    for code in range(256):
        assert block_fp8.outside_bound(odd, bytes([code]), 1, one) == (1, 0)
        assert block_fp8.outside_bound(one, bytes([code]), 1, odd) == (1, 0)
    for code in (0x7F, 0xFF):
        assert block_fp8.outside_bound(one, bytes([code]), 1, one) == (1, 0)


def test_a_negative_scale_is_outside(level: str) -> None:
    for weight, code in itertools.product((0.0, 1.0, -1.0, 600.0, -600.0), range(256)):
        one = (np.float32(weight).tobytes(), bytes([code]), 1)
        assert block_fp8.outside_bound(*one, np.float32(-1).tobytes()) == (1, 0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100_003, (1 << 20) + 5])
def test_the_difference_is_added_up_in_sixteen_lanes(level: str, count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=(2, count)).astype(np.float32)
    diff = b.astype(np.float64) - a.astype(np.float64)
    terms = [diff * diff, a.astype(np.float64) ** 2, diff]
    sums = []
    for term in terms:
        lanes = [
            float(np.cumsum(term[lane::16])[-1]) if lane < count else 0.0 for lane in range(16)
        ]
        total = lanes[0]
        for lane in lanes[1:]:
            total += lane
        sums.append(total)
    largest = float(np.abs(diff).max(initial=0.0))
    assert block_fp8.difference(a, b) == (*sums, largest)


def test_the_difference_of_nan_is_nan(level: str) -> None:
    a, b = np.ones(40, np.float32), np.ones(40, np.float32)
    b[33] = math.nan
    found = block_fp8.difference(a, b)
    assert found.sum_sq_a == 40
    assert all(map(math.isnan, (found.sum_sq_diff, found.sum_diff, found.max_abs_diff)))


# ---- Misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: block_fp8.quantize(bytes(23), "BF16", 4, bytearray(12), bytearray(4)),
            "weight must be a whole",
        ),
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 5, bytearray(12), bytearray(4)),
            "weight must be a whole",
        ),
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 0, bytearray(12), bytearray(4)),
            "cols must be at least 1",
        ),
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 4, bytearray(11), bytearray(4)),
            "codes must hold at least 12",
        ),
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 4, bytearray(12), bytearray(3)),
            "scale_inv must hold at least 4",
        ),
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 4, bytes(12), bytearray(4)),
            "codes must be writable",
        ),
        (
            lambda: block_fp8.quantize(
                bytes(24), "BF16", 4, bytearray(12), bytearray(4), "float32", 0
            ),
            "block_size",
        ),
        (lambda: block_fp8.quantize(bytes(24), "F64", 4, bytearray(12), bytearray(4)), "dtype"),  # type: ignore[arg-type]
        (
            lambda: block_fp8.quantize(bytes(24), "BF16", 4, bytearray(12), bytearray(4), "e8m0"),
            "scale_format",
        ),  # type: ignore[arg-type]
        (
            lambda: block_fp8.quantize(
                memoryview(bytes(48))[::2], "BF16", 4, bytearray(12), bytearray(4)
            ),
            "contiguous",
        ),
        (
            lambda: block_fp8.dequantize(bytes(12), 5, bytes(4), bytearray(24)),
            "codes must be a whole",
        ),
        (
            lambda: block_fp8.dequantize(bytes(12), 4, bytes(8), bytearray(24)),
            "scale_inv must hold 4",
        ),
        (
            lambda: block_fp8.dequantize(bytes(12), 4, bytes(4), bytearray(23)),
            "out must hold at least 24",
        ),
        (
            lambda: block_fp8.dequantize(bytes(12), 4, bytes(4), bytearray(24), (0, 128)),
            "block_rows",
        ),
        (
            lambda: block_fp8.dequantize(bytes(12), 4, bytes(4), bytearray(47), dtype="F32"),
            "out must hold at least 48",
        ),
        (lambda: block_fp8.widen(bytes(3), "BF16", bytearray(8)), "data must be a whole"),
        (
            lambda: block_fp8.widen(bytes(4), "BF16", bytearray(7)),
            "out_float32 must hold at least 8",
        ),
        (lambda: block_fp8.widen(bytes(4), "I8", bytearray(8)), "dtype"),  # type: ignore[arg-type]
        (lambda: block_fp8.narrow(bytes(8), bytearray(3)), "out_bf16 must hold at least 4"),
        (
            lambda: block_fp8.outside_bound(bytes(47), bytes(12), 4, bytes(4)),
            "weight_float32 must hold 48",
        ),
        (lambda: block_fp8.difference(bytes(8), bytes(12)), "b_float32 must hold 8"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(level: str, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


# ---- Without numpy, without the library ----------------------------------------------------------

DIGEST = """
import hashlib, struct, sys
from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8
weight = struct.pack("<30000H", *(i * 7919 % 0x7f80 | (i & 1) << 15 for i in range(30000)))
digest = hashlib.sha256()
for scale_format in ("float32", "ue8m0"):
    codes, scale = bytearray(30000), bytearray(4 * 4)
    back, wide = bytearray(60000), bytearray(120000)
    block_fp8.quantize(weight, "BF16", 150, codes, scale, scale_format)
    block_fp8.dequantize(codes, 150, scale, back)
    block_fp8.widen(weight, "BF16", wide)
    assert block_fp8.outside_bound(wide, codes, 150, scale)[0] == 0
    for part in (codes, scale, back, wide):
        digest.update(part)
print(native.instruction_set(), "numpy" in sys.modules, digest.hexdigest())
"""


def run_digest(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(native.levels() == [native.NUMPY], reason="needs libdstools_cpu.so")
def test_the_library_needs_no_numpy_and_numpy_gives_the_same_bytes() -> None:
    level, has_numpy, digest = run_digest()
    assert (level, has_numpy) == (native.levels()[0], "False")
    assert run_digest(DSTOOLS_NATIVE="0") == ["numpy", "True", digest]
    assert len(digest) == 2 * hashlib.sha256().digest_size


@pytest.mark.parametrize(
    ("dtype", "bits", "bad"),
    [
        ("BF16", "<u2", [0x7F80, 0xFF80, 0x7F81, 0xFFFF]),
        ("F16", "<u2", [0x7C00, 0xFC00, 0x7C01, 0xFFFF]),
        ("F32", "<u4", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF]),
        ("F64", "<u8", [0x7FF << 52, 0xFFF << 52, (0x7FF << 52) + 1, 2**64 - 1]),
        ("F8_E4M3", "u1", [0x7F, 0xFF]),
        ("F8_E5M2", "u1", [0x7C, 0xFC, 0x7D, 0xFF]),
    ],
)
def test_the_first_infinity_or_nan_is_found_wherever_it_is(
    level: str, dtype: FiniteDtype, bits: str, bad: list[int]
) -> None:
    greatest = min(bad) - 1  # the largest finite magnitude: every other bit may be set
    for size in (0, 1, 31, 1024, 1025, 5000):
        data = np.full(size, greatest, bits)
        data[::3] |= data.dtype.type(1 << (8 * data.itemsize - 1))
        assert block_fp8.first_non_finite(data, dtype) == -1
        for at in {0, 1, size // 2, size - 1} & set(range(size)):
            for value in bad:
                spoilt = data.copy()
                spoilt[at] = value
                assert block_fp8.first_non_finite(spoilt, dtype) == at
                if at + 1 < size:
                    spoilt[at + 1] = value
                    assert block_fp8.first_non_finite(spoilt, dtype) == at
                odd = np.concatenate([[0], spoilt.view(np.uint8)]).astype(np.uint8)[1:]
                assert block_fp8.first_non_finite(odd.data, dtype) == at  # at any address


@pytest.mark.parametrize(
    ("dtype", "bits", "numbers"),
    [
        ("BF16", "<u2", {0x0001: 2.0**-133, 0x3F80: 1.0, 0x7F7F: (2 - 2**-7) * 2.0**127}),
        ("F16", "<u2", {0x0001: 2.0**-24, 0x3C00: 1.0, 0x7BFF: 65504.0}),
        ("F32", "<u4", {0x00000001: 2.0**-149, 0x7F7FFFFF: (2 - 2**-23) * 2.0**127}),
        ("F64", "<u8", {1: 2.0**-1074, 0x7FEFFFFFFFFFFFFF: sys.float_info.max}),
        ("F8_E4M3", "u1", {0x01: 2.0**-9, 0x08: 2.0**-6, 0x39: 1.125, 0x7E: 448.0}),
        ("F8_E5M2", "u1", {0x01: 2.0**-16, 0x3C: 1.0, 0x7B: 57344.0}),
    ],
)
def test_the_largest_magnitude_is_found_wherever_it_is_under_either_sign(
    level: str, dtype: FiniteDtype, bits: str, numbers: dict[int, float]
) -> None:
    sign = 1 << (8 * np.dtype(bits).itemsize - 1)
    assert block_fp8.largest_magnitude(b"", dtype) == 0.0
    for size in (1, 31, 1024, 1025, 5000):
        data = np.zeros(size, bits)
        data[::3] = sign  # -0
        assert block_fp8.largest_magnitude(data, dtype) == 0.0
        for at in {0, 1, size // 2, size - 1} & set(range(size)):
            spoilt = data.copy()
            for magnitude, number in numbers.items():  # each larger than the one before
                for element in (magnitude, magnitude | sign):
                    spoilt[at] = element
                    assert block_fp8.largest_magnitude(spoilt, dtype) == number
                odd = np.concatenate([[0], spoilt.view(np.uint8)]).astype(np.uint8)[1:]
                assert block_fp8.largest_magnitude(odd.data, dtype) == number  # at any address
            for magnitude in (NON_FINITE_BITS[dtype], sign - 1):
                spoilt[at] = magnitude
                assert not math.isfinite(block_fp8.largest_magnitude(spoilt, dtype))


def test_the_smallest_number_is_found_wherever_it_is_and_any_sign_is_below(level: str) -> None:
    assert block_fp8.smallest(b"") == math.inf
    for size in (1, 31, 1024, 1025, 5000):
        data = np.full(size, 3.0, np.float32)
        assert block_fp8.smallest(data) == 3.0
        for at in {0, 1, size // 2, size - 1} & set(range(size)):
            spoilt = data.copy()
            for number in (1.0, 2.0**-149, 0.0, -1.0, -0.0):  # each below the one before
                spoilt[at] = number
                found = block_fp8.smallest(spoilt)
                assert (found, math.copysign(1, found)) == (number, math.copysign(1, number))
            odd = np.concatenate([[0], spoilt.view(np.uint8)]).astype(np.uint8)[1:]
            assert block_fp8.smallest(odd.data) == 0.0  # at any address
