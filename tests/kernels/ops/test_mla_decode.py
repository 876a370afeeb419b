"""Attention over paged latents: against float64, ragged, with pages that no one wrote."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.latent_pages import pack_fp8, token_slots, unpack_fp8, write_latents
from dstools_kernels.ops.mla_decode import mla_decode

SCALE = 192**-0.5


class Case(NamedTuple):
    """Arguments of `mla_decode`, and what it is to return, in float64."""

    q: Tensor
    cache: Tensor
    table: Tensor
    lengths: Tensor
    cumulative: Tensor
    expected: Tensor


def case(
    lengths: list[int],
    counts: list[int],
    *,
    heads: int = 4,
    rank: int = 128,
    rope: int = 64,
    page_size: int = 64,
    dtype: torch.dtype = torch.float32,
    is_fp8: bool = False,
    seed: int = 0,
) -> Case:
    """Return rows of `lengths` tokens, the last `counts` of them new, in shuffled pages.

    What no row owns, and what comes after its last token, is NaN.
    """
    draw = torch.Generator().manual_seed(seed)
    width = max(1, max(-(-length // page_size) for length in lengths))
    pages = width * len(lengths) + 1
    table = torch.randperm(pages, generator=draw)[: width * len(lengths)]
    table = table.view(len(lengths), width).to(torch.int32)
    latents = [torch.randn(n, rank + rope, generator=draw).to(dtype) for n in lengths]
    cache = torch.full((pages, page_size, rank + rope), math.nan, dtype=dtype)
    if is_fp8:
        cache = pack_fp8(cache, rank)
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    ends = torch.tensor(lengths, dtype=torch.int32)
    slots = token_slots(table, ends, starts, pages, page_size)
    write_latents(torch.cat(latents), cache, slots, rank)
    if is_fp8:
        latents = [unpack_fp8(pack_fp8(latent, rank), rank) for latent in latents]
    q = torch.randn(sum(counts), heads, rank + rope, generator=draw).to(dtype)
    cumulative = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int()
    expected = [
        float64(q[begin : begin + count], latent, rank)
        for begin, count, latent in zip(cumulative.tolist(), counts, latents, strict=False)
    ]
    return Case(q, cache, table, ends, cumulative, torch.cat(expected))


def float64(q: Tensor, latents: Tensor, rank: int) -> Tensor:
    """Attend from the last tokens `q` [n, H, C] of a row to its `latents` [length, C]."""
    out = torch.zeros(*q.shape[:2], rank, dtype=torch.float64)
    for i in range(len(q)):
        seen = latents[: max(0, len(latents) - (len(q) - 1 - i))].double()
        if len(seen):
            shares = torch.softmax(q[i].double() @ seen.T * SCALE, -1)
            out[i] = shares @ seen[:, :rank]
    return out


def run(c: Case, rank: int = 128) -> Tensor:
    return mla_decode(*c[:5], SCALE, rank)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


LENGTHS = [150, 65, 1, 0, 64, 128]


@pytest.mark.parametrize("counts", [[1, 1, 1, 0, 1, 1], [2, 2, 1, 0, 2, 2], [150, 3, 0, 0, 64, 7]])
def test_ragged_rows_equal_float64(counts: list[int]) -> None:
    c = case(LENGTHS, counts)
    # sums of 192 and 150 products in float32: 2^-24 x sqrt(192) x a few
    assert error(run(c), c.expected) < 2e-6


@pytest.mark.parametrize(("page_size", "rank", "rope"), [(16, 32, 16), (64, 512, 64), (1, 24, 8)])
def test_other_sizes_of_pages_and_latents(page_size: int, rank: int, rope: int) -> None:
    c = case([40, 17], [2, 17], page_size=page_size, rank=rank, rope=rope)
    assert error(run(c, rank), c.expected) < 2e-6


def test_bfloat16_is_within_its_rounding() -> None:
    c = case(LENGTHS, [2, 2, 1, 0, 2, 2], dtype=torch.bfloat16)
    # shares, sums of pages and the output round by at most 2^-9 each, mostly by less
    assert run(c).dtype == torch.bfloat16
    assert error(run(c), c.expected) < 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_latents_are_code_times_scale(dtype: torch.dtype) -> None:
    c = case(LENGTHS, [2, 2, 1, 0, 2, 2], dtype=dtype, is_fp8=True)
    assert error(run(c), c.expected) < (2e-6 if dtype == torch.float32 else 2**-8)


def test_rows_of_length_0_and_tokens_before_the_first_give_0() -> None:
    c = case([0, 3, 1], [1, 1, 2])  # the last row has one token, but two new ones
    out = run(c)
    assert not out[0].any()
    assert not out[2].any()
    assert error(out, c.expected) < 2e-6


def test_no_tokens_at_all() -> None:
    c = case([0, 0], [0, 0])
    assert run(c).shape == (0, 4, 128)


def test_a_page_out_of_range_counts_as_one_without_tokens() -> None:
    c = case([150], [1])
    latents = c.cache[c.table[0].long()].flatten(0, 1)[:150]
    for garbage in (-1, len(c.cache), 2**31 - 1, -(2**31)):
        table = c.table.clone()
        table[0, 1] = garbage
        out = run(c._replace(table=table))
        assert error(out, float64(c.q, torch.cat((latents[:64], latents[128:])), 128)) < 2e-6


def test_a_length_past_the_table_reads_the_table_alone() -> None:
    c = case([128], [1])
    assert torch.equal(run(c._replace(lengths=torch.tensor([4000], dtype=torch.int32))), run(c))


def test_a_nan_of_a_later_token_does_not_reach_an_earlier_one() -> None:
    c = case([70, 70], [2, 2])
    whole = run(c)
    cache = c.cache.clone()
    cache[c.table[0, 1], 5] = math.nan  # the last token of row 0
    out = run(c._replace(cache=cache))
    assert out[1].isnan().all()
    assert torch.equal(out.isnan().any(-1).any(-1), torch.tensor([False, True, False, False]))
    assert error(out[[0, 2, 3]], whole[[0, 2, 3]].double()) < 2e-6


def test_shapes_that_do_not_fit_are_refused() -> None:
    c = case([3], [1])
    with pytest.raises(ValueError, match=r"q must be \[tokens, heads, 512 or more\]"):
        mla_decode(*c[:5], SCALE)
    with pytest.raises(ValueError, match=r"\[pages, tokens, 192\], got"):
        run(c._replace(cache=c.cache[..., :100]))
    with pytest.raises(ValueError, match=r"\[1, 1\], \[1\] and \[1\]"):
        run(c._replace(cumulative=c.cumulative[:1]))
