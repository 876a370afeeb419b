"""Attention over paged latents: against float64, ragged, with pages that no one wrote."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dstools_kernels.ops import dispatch
from dstools_kernels.ops.mla_decode import mla_decode

Make = Callable[..., Any]

LENGTHS = [150, 65, 1, 0, 64, 128]


@pytest.mark.parametrize("counts", [[1, 1, 1, 0, 1, 1], [2, 2, 1, 0, 2, 2], [150, 3, 0, 0, 64, 7]])
def test_ragged_rows_equal_float64(decode_case: Make, counts: list[int]) -> None:
    case = decode_case(LENGTHS, counts)
    # sums of 192 and 150 products in float32: 2^-24 x sqrt(192) x a few
    assert case.error(mla_decode(*case.arguments())) < 2e-6


@pytest.mark.parametrize(("page_size", "rank", "rope"), [(16, 32, 16), (64, 512, 64), (1, 24, 8)])
def test_other_sizes_of_pages_and_latents(
    decode_case: Make, page_size: int, rank: int, rope: int
) -> None:
    case = decode_case([40, 17], [2, 17], page_size=page_size, rank=rank, rope=rope)
    assert case.error(mla_decode(*case.arguments())) < 2e-6


def test_bfloat16_is_within_its_rounding(decode_case: Make) -> None:
    case = decode_case(LENGTHS, [2, 2, 1, 0, 2, 2], dtype=torch.bfloat16)
    out = mla_decode(*case.arguments())
    assert out.dtype == torch.bfloat16
    assert case.error(out) < 2**-9  # of the output alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_latents_are_code_times_scale(decode_case: Make, dtype: torch.dtype) -> None:
    case = decode_case(LENGTHS, [2, 2, 1, 0, 2, 2], dtype=dtype, is_fp8=True)
    bound = 2e-6 if dtype == torch.float32 else 2**-9
    assert case.error(mla_decode(*case.arguments())) < bound


def test_rows_of_length_0_and_tokens_before_the_first_give_0(decode_case: Make) -> None:
    case = decode_case([0, 3, 1], [1, 1, 2])  # the last row has one token, but two new ones
    out = mla_decode(*case.arguments())
    assert not out[0].any()
    assert not out[2].any()
    assert case.error(out) < 2e-6


def test_no_tokens_at_all(decode_case: Make) -> None:
    case = decode_case([0, 0], [0, 0])
    assert mla_decode(*case.arguments()).shape == (0, 4, 128)


@pytest.mark.parametrize("garbage", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_page_out_of_range_counts_as_one_without_tokens(decode_case: Make, garbage: int) -> None:
    case = decode_case([150], [1])
    assert len(case.cache) == 4
    latents = case.cache[case.table[0].long()].flatten(0, 1)[:150]
    table = case.table.clone()
    table[0, 1] = garbage
    out = mla_decode(*case.arguments(table=table))
    wanted = case.attend(0, torch.cat((latents[:64], latents[128:])))
    assert torch.allclose(out[0].double(), wanted, rtol=0, atol=2e-6)


def test_a_length_past_the_table_reads_the_table_alone(decode_case: Make) -> None:
    case = decode_case([128], [1])
    lengths = torch.tensor([4000], dtype=torch.int32)
    assert case.error(mla_decode(*case.arguments(lengths=lengths))) < 2e-6


def test_a_nan_of_a_later_token_does_not_reach_an_earlier_one(decode_case: Make) -> None:
    case = decode_case([70, 70], [2, 2])
    whole = mla_decode(*case.arguments())
    cache = case.cache.clone()
    cache[case.table[0, 1], 5] = math.nan  # the last token of row 0
    out = mla_decode(*case.arguments(cache=cache))
    assert out[1].isnan().all()
    kept = [0, 2, 3]
    assert torch.allclose(out[kept], whole[kept], rtol=0, atol=1e-6)


def test_on_a_gpu_other_pages_than_the_twins_take_the_definition_with_a_line(
    decode_case: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"rank": 512, "rope": 64, "dtype": torch.bfloat16}
    case = decode_case([40, 17], [2, 1], page_size=16, **sizes)
    monkeypatch.delenv("DSTOOLS_KERNELS", raising=False)
    twin = dispatch.Form("triton", "the GPU is of Hopper or later")
    monkeypatch.setattr(dispatch, "form", lambda device, capability: twin)
    dispatch._log_once.cache_clear()
    caplog.set_level(logging.INFO, dispatch.__name__)
    assert case.error(mla_decode(*case.arguments())) < 2**-9
    (line,) = caplog.messages
    assert line.startswith("mla_decode runs as its torch definition: the twin needs")
    assert line.endswith("pages of 64 tokens")


def test_shapes_that_do_not_fit_are_refused(decode_case: Make) -> None:
    case = decode_case([3], [1])
    with pytest.raises(ValueError, match=r"q must be \[tokens, heads, 512 or more\]"):
        mla_decode(*case.arguments()[:6])
    with pytest.raises(ValueError, match=r"\[pages, tokens, 192\], got"):
        mla_decode(*case.arguments(cache=case.cache[..., :100]))
    with pytest.raises(ValueError, match=r"\[1, 1\], \[1\] and \[1\]"):
        mla_decode(*case.arguments(cumulative=case.cumulative[:1]))
