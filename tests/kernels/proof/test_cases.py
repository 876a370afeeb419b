"""The shapes to try on a card: complete, right by definition, and wrong where a result is."""

import pkgutil

import pytest
import torch

from dstools_kernels import ops
from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.router import Routed
from dstools_kernels.proof import cases, roofline

CPU = torch.device("cpu")


def test_every_op_has_short_cases_and_cases_of_v3() -> None:
    names = {m.name for m in pkgutil.iter_modules(ops.__path__)} - {"dispatch", "triton"}
    assert {case.work.op for case in cases.SMALL} == names
    assert {case.work.op for case in cases.V3} == names


def test_what_the_page_counts_is_timed() -> None:
    timed = {case.name for case in cases.V3}
    assert {f"{work.op} {work.shape}" for work in roofline.V3} <= timed


@pytest.mark.parametrize("case", cases.SMALL, ids=lambda case: case.name)
def test_a_definition_equals_itself(case: cases.Case) -> None:
    call = case.make(CPU)
    is_right, how = case.compare(call(), call())
    assert is_right, how


def test_activations_to_quantize_hold_every_tie_of_e4m3() -> None:
    group = cases.with_ties(CPU, 3, 256)[0, :128]
    assert group.abs().max() == 448  # so that the scale is 1
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(group[:126].float(), (codes[:-1] + codes[1:]) / 2)


def test_rows_of_a_pool_that_no_one_wrote_are_nan() -> None:
    lengths = torch.tensor([1, 64, 65], dtype=torch.int32)
    pool, table = cases._pool(CPU, lengths, is_fp8=False)
    is_written = pool.isfinite().all(-1)
    assert is_written.sum() == lengths.sum()
    assert is_written[table[0, 0]].tolist() == [True] + 63 * [False]


def test_groups_of_experts_are_ragged_and_the_first_is_empty() -> None:
    assert cases._offsets(CPU, 130, 4).tolist() == [0, 0, 25, 71, 130]
    assert cases._offsets(CPU, 7, 1).tolist() == [0, 7]


# ------------------------------------------------------------------------------------- comparisons


def test_bits_are_compared_nan_and_sign_of_zero_included() -> None:
    x = torch.tensor([0.0, float("nan")])
    assert cases.equal(x, x.clone())[0]
    assert cases.equal(x, torch.tensor([-0.0, float("nan")])) == (False, "1 of 2 values differ")


def test_sums_in_bf16_pass_and_truncated_ones_do_not() -> None:
    torch.manual_seed(0)
    exact = torch.rand(4096) + 0.5
    truncated = (exact.view(torch.int32) & -65536).view(torch.float32)
    assert cases.near_sum(exact.bfloat16(), exact.bfloat16())[0]
    assert cases.near_sum(exact.bfloat16(), exact)[0]
    assert not cases.near_sum(truncated, exact)[0]
    assert cases.near_attention(exact * (1 + 2.0**-9), exact)[0]
    assert not cases.near_attention(exact * (1 + 2.0**-7), exact)[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_wrong(bad: float) -> None:
    wanted = torch.ones(8)
    result = wanted.clone()
    result[3] = bad
    assert not cases.near_sum(result, wanted)[0]


def test_codes_of_swiglu_may_be_one_step_off_in_one_of_a_thousand() -> None:
    codes = torch.full((1, 2048), 0x38, dtype=torch.uint8)
    scales = torch.ones(1, 16)

    def changed(count: int, by: int) -> Quantized:
        other = codes.clone()
        other[0, :count] += by
        return Quantized(other.view(torch.float8_e4m3fn), scales)

    wanted = changed(0, 0)
    assert cases.one_step(changed(2, 1), wanted)[0]
    assert not cases.one_step(changed(3, 1), wanted)[0]
    assert not cases.one_step(changed(1, 2), wanted)[0]
    assert not cases.one_step(Quantized(wanted.codes, 2 * scales), wanted)[0]


def test_experts_are_compared_by_id_and_their_weights_within_a_millionth() -> None:
    ids, weights = torch.tensor([[3, 1]], dtype=torch.int32), torch.tensor([[0.5, 0.25]])
    wanted = Routed(ids, weights)
    assert cases.routed(Routed(ids, weights + 5e-7), wanted)[0]
    assert not cases.routed(Routed(ids, weights + 2e-6), wanted)[0]
    assert cases.routed(Routed(ids.flip(-1), weights.flip(-1)), wanted)[0]
    assert not cases.routed(Routed(ids.flip(-1), weights), wanted)[0]
    assert not cases.routed(Routed(ids + 1, weights), wanted)[0]
    assert not cases.routed(Routed(ids, weights * float("nan")), wanted)[0]
