"""Activations in E4M3: golden values by hand, exact properties, and the conventions of weights."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dstools_kernels import gptq
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import E4M3_MAX
from dstools_kernels.ops.act_quant import AMAX_FLOOR, Quantized, act_quant, restore, rounded

ScaleFormat = Literal["float32", "ue8m0"]
FORMATS: tuple[ScaleFormat, ...] = ("float32", "ue8m0")


def bits(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.uint8).flatten().tolist()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------ golden values


def test_a_token_by_hand() -> None:
    """Amax 896 gives the scale 2; 896/2 = 448 is 0x7e, and 448 = 1.75 * 2^8.

    3/2 = 1.5 is 0 0111 100, 0x3c; -17/2 = -8.5 is between 8 and 9, a tie, and 8 is even: 1 1010
    000, 0xd0; 19/2 = 9.5 is between 9 and 10, and 10 is even: 0x52; 0 is 0.
    """
    codes, scales = act_quant(torch.tensor([[896.0, 3.0, -17.0, 19.0, 0.0]]))
    assert scales.tolist() == [[2.0]]
    assert bits(codes) == [0x7E, 0x3C, 0xD0, 0x52, 0x00]
    assert restore(Quantized(codes, scales)).tolist() == [[896.0, 3.0, -16.0, 20.0, 0.0]]


def test_powers_of_two_by_hand() -> None:
    """Amax 500 gives 500/448 = 1.116, hence the scale 2: codes up to 250, which rounds to 256.

    Amax 448 gives exactly 1, which is a power of two; the next float above gives 2.
    """
    above = np.nextafter(np.float32(448), np.float32(500)).item()
    x = torch.tensor([[500.0, 1.0], [448.0, 1.0], [above, 1.0]])
    codes, scales = act_quant(x, "ue8m0")
    assert scales.tolist() == [[2.0], [1.0], [2.0]]
    assert codes.float().tolist() == [[256.0, 0.5], [448.0, 1.0], [224.0, 0.5]]


def test_a_group_below_the_floor_is_scaled_by_the_floor() -> None:
    tiny = torch.full((1, 128), 1e-5)
    for scale_format, scale in (("float32", np.float32(1e-4) / np.float32(448)), ("ue8m0", 2**-22)):
        codes, scales = act_quant(tiny, scale_format)  # type: ignore[arg-type]
        assert scales.item() == scale
        assert (codes.float() > 0).all()


@pytest.mark.parametrize("scale_format", FORMATS)
def test_zeros_stay_zeros(scale_format: ScaleFormat) -> None:
    codes, scales = act_quant(torch.zeros(2, 256), scale_format)
    assert set(bits(codes)) == {0}
    assert scales.isfinite().all()
    assert (scales > 0).all()


# ------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300, 576])
@pytest.mark.parametrize("scale_format", FORMATS)
def test_a_short_last_group_has_its_own_scale(width: int, scale_format: ScaleFormat) -> None:
    """576 = 4.5 groups, the width of V3's latent with its rotary part."""
    x = normal(5, width)
    codes, scales = act_quant(x, scale_format)
    assert (codes.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert codes.shape == x.shape
    assert scales.shape == (5, math.ceil(width / 128))
    for group, part in enumerate(x.split(128, -1)):
        alone = act_quant(part, scale_format)
        assert torch.equal(alone.scales[:, 0], scales[:, group])
        assert bits(alone.codes) == bits(codes[:, group * 128 : group * 128 + 128])


def test_a_token_does_not_depend_on_those_beside_it() -> None:
    x = normal(100, 300)
    x[50] *= 1e6
    for row in (0, 49, 50, 99):
        assert torch.equal(rounded(x)[row], rounded(x[row : row + 1])[0])


@pytest.mark.parametrize("shape", [(0, 128), (2, 3, 4, 256), (130,)])
def test_any_number_of_dimensions_and_no_tokens(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    codes, scales = act_quant(x)
    assert codes.shape == x.shape
    assert scales.shape == (*shape[:-1], math.ceil(shape[-1] / 128))
    assert rounded(x).shape == x.shape
    assert torch.equal(rounded(x), restore(Quantized(codes, scales)))


@pytest.mark.parametrize("group_size", [1, 16, 64, 256])
def test_groups_of_another_size(group_size: int) -> None:
    x = normal(4, 256)
    codes, scales = act_quant(x, group_size=group_size)
    assert scales.shape == (4, 256 // group_size)
    wanted = x.view(4, -1, group_size).abs().amax(-1) / torch.full_like(scales, E4M3_MAX)
    assert torch.equal(scales, wanted)
    assert torch.equal(
        restore(Quantized(codes, scales), group_size), rounded(x, "float32", group_size)
    )
    if group_size == 1:  # a scale for each element: nothing is lost but the last bits
        assert torch.allclose(rounded(x, group_size=1), x, rtol=2**-22, atol=0)


def test_a_group_wider_than_the_inputs_is_one_group_and_no_more_memory() -> None:
    x = normal(4, 200)
    for ours, theirs in zip(
        act_quant(x, group_size=1 << 40), act_quant(x, group_size=200), strict=True
    ):
        assert bits(ours) == bits(theirs)
    assert torch.equal(rounded(x, group_size=1 << 40), rounded(x, group_size=200))


def test_a_transposed_view_is_read_by_its_elements() -> None:
    x = normal(256, 7)
    assert torch.equal(rounded(x.T), rounded(x.T.contiguous()))


# ------------------------------------------------------------------------------ rows, transposition


@pytest.mark.parametrize("scale_format", FORMATS)
def test_rows_are_gathered_and_one_that_is_not_there_is_zeros(scale_format: ScaleFormat) -> None:
    x = normal(5, 300)
    rows = torch.tensor([4, 0, 0, -1, 5, 2**31 - 1, 3], dtype=torch.int32)
    zeros = torch.zeros(1, 300)
    wanted = act_quant(torch.cat([x[[4, 0, 0]], zeros, zeros, zeros, x[[3]]]), scale_format)
    for ours, theirs in zip(act_quant(x, scale_format, rows=rows), wanted, strict=True):
        assert bits(ours) == bits(theirs)
    assert act_quant(x, rows=rows[:0]).codes.shape == (0, 300)
    assert act_quant(x[:0], rows=rows[:2]).codes.float().tolist() == [[0] * 300] * 2


def test_transposed_scales_are_the_same_numbers_in_another_order_in_memory() -> None:
    x = normal(5, 300)
    plain, transposed = act_quant(x), act_quant(x, is_transposed=True)
    assert bits(plain.codes) == bits(transposed.codes)
    assert torch.equal(plain.scales, transposed.scales)
    assert (plain.scales.stride(), transposed.scales.stride()) == ((3, 1), (1, 5))


# --------------------------------------------------------------------------------- exact properties


@pytest.mark.parametrize("scale_format", FORMATS)
def test_rounding_twice_is_rounding_once_and_signs_are_symmetric(scale_format: ScaleFormat) -> None:
    """Exactly with powers of two; a float32 scale may differ in its last bit the second time."""
    x = normal(200, 384) * torch.logspace(-6, 6, 200)[:, None]
    once = rounded(x, scale_format)
    assert torch.equal(rounded(-x, scale_format), -once)
    if scale_format == "ue8m0":
        assert torch.equal(rounded(once, scale_format), once)
    else:
        assert torch.allclose(rounded(once), once, rtol=2**-22, atol=0)


@pytest.mark.parametrize("scale_format", FORMATS)
def test_scaling_by_a_power_of_two_scales_the_result(scale_format: ScaleFormat) -> None:
    x = normal(50, 256)
    assert torch.equal(rounded(x * 2.0**9, scale_format), rounded(x, scale_format) * 2.0**9)


@pytest.mark.parametrize("scale_format", FORMATS)
def test_what_is_on_the_grid_is_unchanged(scale_format: ScaleFormat) -> None:
    """All 254 finite codes, in two groups that both hold 448."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = codes[~codes.isnan()]
    x = torch.stack([values[:127], values[127:]])
    assert torch.equal(rounded(x, scale_format), x)


@given(st.floats(1e-3, 1e30), st.sampled_from(FORMATS), st.integers(0, 2**32 - 1))
def test_the_error_is_at_most_half_a_step(
    size: float, scale_format: ScaleFormat, seed: int
) -> None:
    """Half a step is 2^-4 of a normal value, or 2^-10 scales near zero; the division adds 2^-23."""
    x = normal(3, 200, seed=seed) * size
    _, scales = act_quant(x, scale_format)
    step = torch.maximum(x.abs() * 2.0**-4, scales.repeat_interleave(128, -1)[:, :200] * 2.0**-10)
    assert ((rounded(x, scale_format) - x).abs() <= step * (1 + 2**-18)).all()


# --------------------------------------------------------------------------- conventions of weights


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("width", [128, 300])
def test_codes_and_scales_are_those_of_a_weight_of_one_row(
    scale_format: ScaleFormat, width: int
) -> None:
    """A block of one row is a group; values are large enough for neither floor to matter."""
    for row in normal(20, width) * torch.logspace(-2, 4, 20)[:, None]:
        codes, scales = act_quant(row[None], scale_format)
        raw, steps = bytearray(width), bytearray(4 * scales.numel())
        block_fp8.quantize(row.numpy(), "F32", width, raw, steps, scale_format)
        assert bits(codes) == list(raw)
        assert bits(scales) == list(steps)
        assert torch.equal(scales, gptq.scales(row[None], scale_format))


def test_bf16_is_widened_before_anything_else() -> None:
    x = normal(10, 256).bfloat16()
    for ours, theirs in zip(act_quant(x), act_quant(x.float()), strict=True):
        assert bits(ours) == bits(theirs)
    assert rounded(x).dtype == torch.float32


def test_the_product_of_codes_and_scales_is_that_of_the_rounded_values() -> None:
    """In float64, where it is exact for 256 inputs."""
    x, weight = normal(4, 256), normal(8, 256, seed=1)
    codes, scales = act_quant(x)
    by_group = torch.einsum(
        "tgi,rgi->trg", codes.double().view(4, 2, 128), weight.double().view(8, 2, 128)
    )
    wanted = (by_group * scales.double()[:, None]).sum(-1)
    exact = (codes.double().view(4, 2, 128) * scales.double()[..., None]).view(4, 256)
    assert torch.allclose(exact @ weight.double().T, wanted, rtol=1e-14, atol=1e-14)
    assert torch.allclose(rounded(x).double(), exact, rtol=2**-24, atol=0)


# ----------------------------------------------------------------------------------- NaN, infinity


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_whole_group_and_no_other(
    scale_format: ScaleFormat, bad: float
) -> None:
    x = normal(3, 384)
    x[1, 130] = bad
    codes, scales = act_quant(x, scale_format)
    wanted = math.nan if math.isnan(bad) else math.inf
    assert scales[1, 1].item() == pytest.approx(wanted, nan_ok=True)
    is_lost = torch.zeros_like(x, dtype=torch.bool)
    is_lost[1, 128:256] = True
    values = rounded(x, scale_format)
    assert torch.equal(values.isnan(), is_lost)
    assert values[~is_lost].isfinite().all()
    x[1, 130] = 0
    kept = ~is_lost
    assert torch.equal(values[kept], rounded(x, scale_format)[kept])
    assert codes.float()[kept].isfinite().all()


@pytest.mark.parametrize("scale_format", FORMATS)
def test_large_floats_are_finite(scale_format: ScaleFormat) -> None:
    """A code may be 1/16 above its value, so the largest float itself may overflow."""
    assert rounded(torch.full((1, 128), 3e38), scale_format).isfinite().all()


# ------------------------------------------------------------------------------------------- misuse


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        act_quant(torch.zeros(1, 8), group_size=0)
    with pytest.raises(ValueError, match=r"floating type, got torch\.int64"):
        act_quant(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"two-dimensional, got \[1, 2, 8\]"):
        act_quant(torch.zeros(1, 2, 8), rows=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"rows must be int32, got torch\.int64"):
        act_quant(torch.zeros(1, 8), rows=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"two-dimensional, got \[8\]"):
        act_quant(torch.zeros(8), is_transposed=True)
    assert AMAX_FLOOR == 1e-4
