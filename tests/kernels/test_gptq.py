"""GPTQ on a block grid: against an independent dense one, and its scales and codes to the bit.

Not run on CUDA here: the tensors are on the CPU.
"""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dstools_kernels import gptq
from dstools_kernels.formats import block_fp8
from dstools_kernels.formats.block_fp8 import NonFiniteError
from dstools_kernels.fp8 import AMAX_FLOOR, ScaleFormat

SCALE_FORMATS: list[ScaleFormat] = ["float32", "ue8m0"]
# one row, one column, one block and a bit, many blocks, ragged on both sides
SHAPES = [(1, 128), (128, 1), (130, 200), (576, 192), (192, 576), (65, 333)]
pytestmark = pytest.mark.usefixtures("one_thread")


def normal(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int, cols: int, seed: int = 0) -> Tensor:
    """Inputs [tokens, cols] of unequal power that share directions, as a model's do."""
    mixed = normal(tokens, cols, seed) + normal(tokens, 8, seed + 1) @ normal(8, cols, seed + 2)
    return mixed * torch.exp(normal(1, cols, seed + 3) / 2)


def hessian_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs


def error(weight: Tensor, codes: Tensor, scale_inv: Tensor, hessian: Tensor, block: int) -> float:
    return gptq.output_power(weight - gptq.restore(codes, scale_inv, block), hessian)


# ---- Grid ----------------------------------------------------------------------------------------


def quantize_buffers(
    weight: Tensor, scale_format: ScaleFormat, block: int
) -> tuple[Tensor, Tensor]:
    rows, cols = weight.shape
    codes = np.empty((rows, cols), np.uint8)
    scale = np.empty((-(-rows // block), -(-cols // block)), np.float32)
    block_fp8.quantize(weight.numpy(), "F32", cols, codes, scale, scale_format, block)
    return torch.from_numpy(codes), torch.from_numpy(scale)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("block", [128, 32, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_and_nearest_are_the_bits_of_block_fp8(
    shape: tuple[int, int], block: int, scale_format: ScaleFormat
) -> None:
    weight = normal(*shape) * torch.exp(3 * normal(*shape, seed=1))  # over many binades
    weight[:, : shape[1] // 3] *= 1e-9  # below both floors
    weight[-1, -1] = -0.0
    wanted_codes, wanted_scale = quantize_buffers(weight, scale_format, block)
    scale_inv = gptq.scales(weight, scale_format, block)
    assert torch.equal(scale_inv.view(torch.int32), wanted_scale.view(torch.int32))
    codes = gptq.nearest(weight, scale_inv, block)
    assert torch.equal(codes, wanted_codes)
    restored = torch.empty_like(weight)
    block_fp8.dequantize(
        codes.numpy(), shape[1], scale_inv.numpy(), restored.numpy(), (block, block), "F32"
    )
    assert torch.equal(
        gptq.restore(codes, scale_inv, block).view(torch.int32), restored.view(torch.int32)
    )


def test_infinity_and_nan_in_a_weight_are_refused_by_place() -> None:
    for bad in (math.inf, -math.inf, math.nan):
        weight = normal(130, 140)
        weight[129, 3] = bad
        with pytest.raises(NonFiniteError, match="row 129, column 3"):
            gptq.scales(weight, "float32")


def test_what_does_not_fit_the_grid_is_refused() -> None:
    weight, factor = normal(129, 128), gptq.factorize(torch.eye(128))
    for scale_inv in (torch.ones(1, 1), torch.ones(2, 2), torch.ones(2)):
        for call in (
            lambda s: gptq.nearest(weight, s),
            lambda s: gptq.restore(weight.byte(), s),
            lambda s: gptq.gptq(weight, factor, s),
        ):
            with pytest.raises(ValueError, match=r"scale_inv must be \[2, 1\]"):
                call(scale_inv)
    with pytest.raises(ValueError, match="the factor must be for 128 inputs, got 64"):
        gptq.gptq(weight, gptq.factorize(torch.eye(64)), torch.ones(2, 1))


def test_rounding_without_a_cast_is_that_of_the_cast() -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    near = (codes[1:] + codes[:-1]) / 2  # the ties, and the numbers next to them
    for _ in range(3):
        near = torch.cat(
            [near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(1e9))]
        )
    for x in (every[every.abs() <= 448], near, -near, codes, -codes):
        wanted = x.to(torch.float8_e4m3fn).float()
        assert torch.equal(gptq._round_e4m3(x), wanted)  # which takes -0 for 0


def test_steps_apart_counts_the_numbers_between_two_codes() -> None:
    # 0x01 is the least subnormal; -0 (0x80) is 0; 0x7E is 448, 0xFE -448, 126 steps from 0 each
    a = torch.tensor([0x00, 0x80, 0x01, 0x7E, 0x38, 0x38], dtype=torch.uint8)
    b = torch.tensor([0x80, 0x01, 0x81, 0xFE, 0x39, 0x30], dtype=torch.uint8)
    steps = gptq.steps_apart(a, b)
    assert steps.dtype == torch.int16
    assert steps.tolist() == [0, 1, 2, 252, 1, 8]  # 1.0 and 0.5 are one binade of 8 numbers apart


# ---- GPTQ ----------------------------------------------------------------------------------------


def test_an_example_worked_by_hand() -> None:
    # 448 makes the scale 1 and has no error. Of the other two the stronger input goes first: 16.75
    # lies between 16 and 18 and leaves 0.75. The last code q then best cancels it at
    # 9.25 + 0.75 * H12 / H22 = 9.25 + 0.75 * 4 / 4.053 = 9.99, so 10 in place of 9 (0.053 is the
    # damping, 0.01 of the mean of 4, 8, 4).
    weight = torch.tensor([[448.0, 16.75, 9.25]])
    hessian = torch.tensor([[4.0, 0, 0], [0, 8, 4], [0, 4, 4]])
    scale_inv = gptq.scales(weight, "float32")
    codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv)
    assert gptq.restore(codes, scale_inv).tolist() == [[448.0, 16.0, 10.0]]
    plain = gptq.nearest(weight, scale_inv)
    assert gptq.restore(plain, scale_inv).tolist() == [[448.0, 16.0, 9.0]]
    # e H e: 8 * .75^2 + 2 * 4 * .75 * .25 + 4 * .25^2 = 6.25, and with -.75 for .25 it is 2.25
    assert error(weight, plain, scale_inv, hessian, 128) == 6.25
    assert error(weight, codes, scale_inv, hessian, 128) == 2.25


def dense_gptq(
    weight: Tensor, hessian: Tensor, scale_inv: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Optimal brain surgery by the book, in float64: round a column, make the others take it up.

    Returns the rounded values [R, C] in units of their scale, and which rows came near no tie.
    """
    values = torch.arange(256).byte().view(torch.float8_e4m3fn).double()
    values = values[values.isfinite()].unique()
    ties = (values[1:] + values[:-1]) / 2
    power, cols = hessian.diagonal().double(), len(hessian)
    inverse = torch.linalg.inv(hessian.double() + torch.eye(cols) * 0.01 * power.mean())
    scale = scale_inv.double().repeat_interleave(block, 0).repeat_interleave(block, 1)
    scale = scale[: len(weight), :cols]
    w, rounded = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    clear = torch.ones(len(w), dtype=torch.bool)
    for c in power.argsort(descending=True).tolist():  # the strongest input first
        quotient = w[:, c, None] / scale[:, c, None]
        rounded[:, c] = values[(quotient - values).abs().argmin(1)]
        # A float32 factor of a Hessian of condition 3e3 is good to 3e3 * 2^-24 = 2e-4; it is met by
        # errors of some units, of both signs. Measured against this one: targets 3e-4 off at most.
        clear &= ((quotient - ties).abs() > 4e-4).all(1)
        miss = w[:, c] - rounded[:, c] * scale[:, c]
        w -= torch.outer(miss, inverse[c] / inverse[c, c])  # optimal brain surgery's update
        inverse -= torch.outer(inverse[:, c], inverse[c]) / inverse[c, c]  # without input c
        inverse[c, c] = 1  # it is done: its row and column are zero
    return rounded, clear


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize(
    ("shape", "block"),
    [((1, 128), 128), ((130, 200), 128), ((576, 192), 128), ((65, 150), 32), ((7, 1), 128)],
    ids=str,
)
def test_codes_equal_those_of_an_independent_dense_gptq(
    shape: tuple[int, int], block: int, scale_format: ScaleFormat
) -> None:
    weight, hessian = normal(*shape), hessian_of(correlated_inputs(400, shape[1]))
    scale_inv = gptq.scales(weight, scale_format, block)
    codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv, block)
    wanted, clear = dense_gptq(weight, hessian, scale_inv, block)
    got = codes.view(torch.float8_e4m3fn).double()
    # rows do not depend on each other; those that came near a tie may differ
    assert clear.float().mean() > 0.7
    assert torch.equal(got[clear], wanted[clear])
    if shape[1] > 1:
        assert not torch.equal(codes, gptq.nearest(weight, scale_inv, block))


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inputs_that_are_not_correlated_give_the_nearest_codes(
    shape: tuple[int, int], scale_format: ScaleFormat
) -> None:
    weight = normal(*shape) * torch.exp(3 * normal(*shape, seed=1))
    scale_inv = gptq.scales(weight, scale_format)
    power = torch.exp(normal(1, shape[1], seed=2))[0]
    for hessian in (torch.eye(shape[1]), power.diag()):
        codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv)
        assert torch.equal(codes, gptq.nearest(weight, scale_inv))


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_outputs_come_nearer_than_by_rounding_to_nearest(scale_format: ScaleFormat) -> None:
    for seed in range(3):
        weight, inputs = normal(130, 333, seed), correlated_inputs(2000, 333, seed)
        hessian = hessian_of(inputs)
        scale_inv = gptq.scales(weight, scale_format)
        codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv)
        plain = gptq.nearest(weight, scale_inv)
        # eight directions hold nine tenths of the power, and errors move out of them
        chosen = error(weight, codes, scale_inv, hessian, 128)
        assert chosen < 0.5 * error(weight, plain, scale_inv, hessian, 128)


def test_an_input_never_seen_gets_the_nearest_codes_and_disturbs_no_other() -> None:
    weight, inputs = normal(64, 200), correlated_inputs(1000, 200)
    seen = torch.ones(200, dtype=torch.bool)
    seen[[0, 17, 130, 199]] = False
    inputs[:, ~seen] = 0
    scale_inv = gptq.scales(weight, "float32")
    codes = gptq.gptq(weight, gptq.factorize(hessian_of(inputs)), scale_inv)
    assert torch.equal(codes[:, ~seen], gptq.nearest(weight, scale_inv)[:, ~seen])
    # 1 / 200 of the power is spread over 200 inputs, not 196: the same damping for those seen
    weight[:, ~seen] = 0.5
    again = gptq.gptq(weight, gptq.factorize(hessian_of(inputs)), scale_inv)
    assert torch.equal(codes[:, seen], again[:, seen])


def test_fewer_tokens_than_inputs_still_help() -> None:
    weight, hessian = normal(64, 300), hessian_of(correlated_inputs(40, 300))  # rank 40 of 300
    scale_inv = gptq.scales(weight, "float32")
    codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv)
    plain = gptq.nearest(weight, scale_inv)
    assert error(weight, codes, scale_inv, hessian, 128) < error(
        weight, plain, scale_inv, hessian, 128
    )


def test_a_hessian_that_is_not_quite_positive_gets_more_damping() -> None:
    basis, _ = torch.linalg.qr(normal(64, 64))
    powers = torch.linspace(1, 2, 64)
    powers[0] = -0.05  # more than 0.01 of the mean, less than 0.1
    hessian = (basis * powers) @ basis.T
    order, lower = gptq.factorize(hessian)
    damped = hessian.double()
    damped += torch.eye(64) * 0.1 * hessian.diagonal().mean()
    wanted = torch.linalg.cholesky(damped[order][:, order])
    # the smallest eigenvalue is 1/20 of the largest: float32's 6e-8 times some tens
    torch.testing.assert_close(
        lower.double().tril(), wanted / wanted.diagonal(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "hessian",
    [torch.zeros(8, 8), -torch.eye(8), torch.eye(8) * math.nan, torch.eye(8) * math.inf],
    ids=["zero", "negative", "nan", "infinite"],
)
def test_a_hessian_of_no_use_is_refused(hessian: Tensor) -> None:
    with pytest.raises(ValueError, match="positive mean"):
        gptq.factorize(hessian)


def test_a_hessian_that_no_damping_helps_is_refused_and_left_as_it_is() -> None:
    hessian = torch.ones(8, 8) - 100 * (1 - torch.eye(8))
    before = hessian.clone()
    with pytest.raises(ValueError, match="not positive definite"):
        gptq.factorize(hessian)
    assert torch.equal(hessian, before)


def test_the_hessian_and_the_weight_are_left_as_they_are() -> None:
    weight, hessian = normal(64, 200), hessian_of(correlated_inputs(400, 200))
    before = weight.clone(), hessian.clone()
    gptq.gptq(weight, gptq.factorize(hessian), gptq.scales(weight, "float32"))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_targets_beyond_the_largest_number_saturate() -> None:
    # The stronger input goes first: 270 lies between 256 and 288 and leaves 14. The other then
    # wants 448 + 14 * 30 / 6.005 = 518, from where a cast that does not saturate makes a NaN.
    weight = torch.tensor([[448.0, 270.0], [-448.0, -270.0]])
    hessian = torch.tensor([[0.955, 30.0], [30.0, 1009.0]])  # damped by 0.01 * 505
    codes = gptq.gptq(weight, gptq.factorize(hessian), torch.tensor([[1.0]]))
    assert codes.tolist() == [[0x7E, 0x78], [0xFE, 0xF8]]


def test_what_saturation_cuts_off_is_carried_on_as_an_error() -> None:
    weight, hessian = normal(64, 100), hessian_of(correlated_inputs(400, 100))
    scale_inv = gptq.scales(weight, "float32") / 4  # a third of the numbers lies beyond 448
    codes = gptq.gptq(weight, gptq.factorize(hessian), scale_inv)
    wanted, clear = dense_gptq(weight, hessian, scale_inv, 128)
    assert (wanted.abs() == 448).float().mean() > 0.2
    assert clear.float().mean() > 0.7
    assert torch.equal(codes.view(torch.float8_e4m3fn).double()[clear], wanted[clear])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 70),
    block=st.sampled_from([1, 16, 128]),
    size=st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 1e20, 1e36]),
    tokens=st.integers(1, 100),
    scale_format=st.sampled_from(SCALE_FORMATS),
    seed=st.integers(0, 2**31),
)
def test_no_code_is_ever_nan(
    rows: int, cols: int, block: int, size: float, tokens: int, scale_format: ScaleFormat, seed: int
) -> None:
    weight = normal(rows, cols, seed) * size
    inputs = correlated_inputs(tokens, cols, seed)
    scale_inv = gptq.scales(weight, scale_format, block)
    codes = gptq.gptq(weight, gptq.factorize(hessian_of(inputs)), scale_inv, block)
    assert not (codes & 0x7F == 0x7F).any()


def test_a_weight_that_overflows_on_the_way_is_refused() -> None:
    weight = torch.full((1, 200), 3e38)
    hessian = hessian_of(correlated_inputs(20, 200))
    tiny_scales = torch.full((1, 2), 1e30)  # everything saturates, and errors add up
    with pytest.raises(ValueError, match="overflows float32"):
        gptq.gptq(weight, gptq.factorize(hessian), tiny_scales)


RUN_ONCE = """
import hashlib, torch
from dstools_kernels import gptq
torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
x, w = torch.randn(600, 400, generator=g), torch.randn(300, 400, generator=g)
x = x @ torch.randn(400, 400, generator=g)
f = gptq.factorize(x.T @ x)
s = gptq.scales(w, "float32")
codes = [gptq.gptq(w, f, s).numpy().tobytes() for _ in range(2)]
assert codes[0] == codes[1]
print(hashlib.sha256(codes[0]).hexdigest())
"""


def test_the_same_inputs_give_the_same_bytes_in_another_process() -> None:
    command = [sys.executable, "-c", RUN_ONCE]
    sums = {subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(sums) == 1
    assert len(sums.pop().strip()) == len(hashlib.sha256().hexdigest())


FACTORIZE = """
import torch
from dstools_kernels import gptq
def memory(line):  # VmRSS: now, VmHWM: at most; in kB
    return next(1024 * int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(line))
torch.set_num_threads(1)
gptq.factorize(torch.eye(600))  # loads and warms up what LAPACK wants
hessian = torch.eye(4096).add_(0.1)
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew: importing torch had its own
before = memory("VmRSS")
gptq.factorize(hessian)
print((memory("VmHWM") - before) / hessian.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_factorizing_makes_one_matrix_of_the_hessians_size() -> None:
    done = subprocess.run([sys.executable, "-c", FACTORIZE], capture_output=True, check=True)
    # rows being copied are 1/8 of it at 4096, LAPACK's buffers some MB; a second one makes it 2
    assert 0.9 < float(done.stdout) < 1.9


# ---- Error and scales ----------------------------------------------------------------------------


def test_the_output_error_is_that_of_the_outputs() -> None:
    weight, inputs = normal(700, 1100), correlated_inputs(500, 1100)
    restored = weight + 0.02 * normal(700, 1100, seed=9)
    hessian = hessian_of(inputs)
    error2 = gptq.output_power(weight - restored, hessian)
    reference2 = gptq.output_power(weight, hessian)
    x, w, q = inputs.double(), weight.double(), restored.double()
    # float32 products over 1100 inputs: about 2^-24 sqrt(1100) each, no cancelling
    assert error2 == pytest.approx(((x @ (w - q).T) ** 2).sum().item(), rel=1e-5)
    assert reference2 == pytest.approx(((x @ w.T) ** 2).sum().item(), rel=1e-5)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_searched_scales_are_never_worse_in_any_block(
    shape: tuple[int, int], scale_format: ScaleFormat
) -> None:
    weight = normal(*shape) * torch.exp(normal(*shape, seed=1))
    for power in (None, torch.exp(2 * normal(1, shape[1], seed=2))[0]):
        start = gptq.scales(weight, scale_format)
        found = gptq.search_scales(weight, power, scale_format)
        weights = torch.ones(shape[1]) if power is None else power
        errors = []
        for scale_inv in (start, found):
            restored = gptq.restore(gptq.nearest(weight, scale_inv), scale_inv).double()
            square = (weight - restored) ** 2 * weights
            padded = torch.nn.functional.pad(square, (0, -shape[1] % 128, 0, -shape[0] % 128))
            errors.append(padded.view(len(start), 128, -1, 128).sum((1, 3)))
        # squares are formed in float32, three roundings of 2^-24 each
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        if scale_format == "ue8m0":
            assert (torch.frexp(found).mantissa == 0.5).all()
        elif shape[0] > 1:
            assert (errors[1] < errors[0]).any()


def test_a_searched_scale_follows_the_weighting() -> None:
    # with 1.0 as the scale 460 saturates at 448 and 17 rounds to 16; 460 / 1.05 = 438.1 is as far
    # from 448, but where only column 1 counts, a scale that puts 17 on a code wins
    weight = torch.tensor([[448.0, 17.0]])
    found = gptq.search_scales(weight, torch.tensor([0.0, 1.0]), "float32")
    restored = gptq.restore(gptq.nearest(weight, found), found)
    assert abs(restored[0, 1].item() - 17) < 0.5
    only_first = gptq.search_scales(weight, torch.tensor([1.0, 0.0]), "float32")
    assert only_first.item() == 1.0  # exact, and the scale of `scales` wins a draw


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_no_searched_scale_lies_below_the_floor(scale_format: ScaleFormat) -> None:
    # half the scale would suit numbers this small, but engines that quantize again at load time
    # have the same floor
    small = 1e-2 * AMAX_FLOOR[scale_format] * normal(130, 130)
    start = gptq.scales(small, scale_format)
    assert (gptq.search_scales(small, None, scale_format) >= start).all()
    zeros = torch.zeros(130, 130)
    assert torch.equal(gptq.search_scales(zeros, None, scale_format), start)
