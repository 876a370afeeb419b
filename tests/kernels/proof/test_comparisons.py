"""Comparisons with the definitions: what passes, and what does not."""

import pytest
import torch

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.router import Routed
from dstools_kernels.proof import comparisons


def test_bits_are_compared_nan_and_sign_of_zero_included() -> None:
    x = torch.tensor([0.0, float("nan")])
    assert comparisons.equal(x, x.clone())[0]
    assert comparisons.equal(x, torch.tensor([-0.0, float("nan")])) == (
        False,
        "1 of 2 values differ",
    )


def test_sums_in_bf16_pass_and_truncated_ones_do_not() -> None:
    torch.manual_seed(0)
    exact = torch.rand(4096) + 0.5
    truncated = (exact.view(torch.int32) & -65536).view(torch.float32)
    assert comparisons.near_sum(exact.bfloat16(), exact.bfloat16())[0]
    assert comparisons.near_sum((exact * (1 + 6e-4)).bfloat16(), exact.bfloat16())[0]
    assert not comparisons.near_sum(truncated.bfloat16(), exact.bfloat16())[0]
    assert comparisons.near_attention(exact * (1 + 2.0**-9), exact)[0]
    assert not comparisons.near_attention(exact * (1 + 2.0**-7), exact)[0]


def test_sums_in_float32_that_were_rounded_to_bf16_do_not_pass() -> None:
    torch.manual_seed(0)
    exact = torch.rand(4096) + 0.5
    assert comparisons.near_sum(exact * (1 + 6e-4), exact)[0]  # as Hopper's accumulator may have it
    assert not comparisons.near_sum(exact.bfloat16(), exact)[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_wrong(bad: float) -> None:
    wanted = torch.ones(8)
    result = wanted.clone()
    result[3] = bad
    assert not comparisons.near_sum(result, wanted)[0]


def test_codes_of_swiglu_may_be_one_step_off_in_one_of_a_thousand() -> None:
    codes = torch.full((1, 2048), 0x38, dtype=torch.uint8)
    scales = torch.ones(1, 16)

    def changed(count: int, by: int) -> Quantized:
        other = codes.clone()
        other[0, :count] += by
        return Quantized(other.view(torch.float8_e4m3fn), scales)

    wanted = changed(0, 0)
    assert comparisons.one_step(changed(2, 1), wanted)[0]
    assert not comparisons.one_step(changed(3, 1), wanted)[0]
    assert not comparisons.one_step(changed(1, 2), wanted)[0]
    assert comparisons.one_step(Quantized(wanted.codes, scales * (1 + 2**-7)), wanted)[0]
    assert not comparisons.one_step(Quantized(wanted.codes, scales * (1 + 2**-6)), wanted)[0]


def test_experts_are_compared_by_id_and_their_weights_within_a_millionth() -> None:
    ids, weights = torch.tensor([[3, 1]], dtype=torch.int32), torch.tensor([[0.5, 0.25]])
    wanted = Routed(ids, weights)
    assert comparisons.routed(Routed(ids, weights + 5e-7), wanted)[0]
    assert not comparisons.routed(Routed(ids, weights + 2e-6), wanted)[0]
    of_v2 = Routed(ids, 16 * weights)  # the largest is 8
    assert comparisons.routed(Routed(ids, 16 * weights + 7e-6), of_v2)[0]
    assert not comparisons.routed(Routed(ids, 16 * weights + 9e-6), of_v2)[0]
    assert comparisons.routed(Routed(ids.flip(-1), weights.flip(-1)), wanted)[0]
    assert not comparisons.routed(Routed(ids.flip(-1), weights), wanted)[0]
    assert not comparisons.routed(Routed(ids + 1, weights), wanted)[0]
    assert not comparisons.routed(Routed(ids, weights * float("nan")), wanted)[0]
