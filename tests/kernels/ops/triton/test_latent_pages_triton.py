"""The twins of `latent_pages`, interpreted: their definitions' bytes, nothing else written."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.latent_pages import row_lengths, token_slots, write_latents
from dstools_kernels.ops.triton import latent_pages_triton as twin
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized

SLOTS = torch.tensor([5, -1, 0, 127, 128, 1 << 40, -(1 << 40), 64, 1])


def latents() -> Tensor:
    """Return latents of 1e-30 to 1e30, with zeros, NaN and infinity in groups of their own."""
    x = torch.randn(len(SLOTS), 576, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(-30, 30, len(SLOTS))[:, None]
    x[0, :128], x[2, 130], x[3, 260], x[7, 0] = 0, math.nan, math.inf, -math.inf
    return x.bfloat16()


def pool(is_fp8: bool) -> Tensor:
    if is_fp8:
        return torch.full((2, 64, 656), 0xAB, dtype=torch.uint8)
    return torch.full((2, 64, 576), -7.0, dtype=torch.bfloat16)


def definition(x: Tensor, is_fp8: bool) -> Tensor:
    cache = pool(is_fp8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTOOLS_KERNELS", "reference")
        write_latents(x, cache, SLOTS)
    return cache


def same(ours: Tensor, wanted: Tensor) -> bool:
    """Compare bytes, where one NaN is as good as another."""
    if ours.dtype == torch.bfloat16:
        return torch.equal(ours.nan_to_num(99), wanted.nan_to_num(99))
    both = [rows.view(-1, 656).clone() for rows in (ours, wanted)]
    for rows in both:
        codes = rows[:, :512]
        codes[codes & 0x7F == 0x7F] = 0x7F
        scales = rows[:, 512:528].contiguous().view(torch.float32)
        rows[:, 512:528] = torch.where(scales.isnan(), math.nan, scales).view(torch.uint8)
    return torch.equal(*both)


@pytest.mark.parametrize("is_fp8", [False, True])
def test_the_bytes_are_those_of_the_definition_and_no_other_is_written(is_fp8: bool) -> None:
    cache, x = pool(is_fp8), latents()
    with sanitized():
        write_latents(x, cache, SLOTS)
    assert same(cache, definition(x, is_fp8))


def test_no_tokens_launch_nothing() -> None:
    cache = pool(is_fp8=True)
    write_latents(latents()[:0], cache, SLOTS[:0])
    assert torch.equal(cache, pool(is_fp8=True))


def test_other_sizes_take_the_definition() -> None:
    cache = torch.zeros(1, 4, 192)
    write_latents(torch.ones(1, 192), cache, torch.tensor([2]), rank=128)
    assert cache.sum(-1).tolist() == [[0, 0, 192, 0]]


def test_a_slot_past_2_to_the_31_bytes_is_written() -> None:
    slot = 2**31 // 656 + 1
    pages = slot // 64 + 1
    cache = torch.empty(pages, 64, 656, dtype=torch.uint8)  # untouched, it costs no memory
    x = latents()[4:5]
    write_latents(x, cache, torch.tensor([slot]))
    small = torch.zeros(1, 64, 656, dtype=torch.uint8)
    write_latents(x, small, torch.tensor([0]))
    assert torch.equal(cache.view(-1, 656)[slot], small[0, 0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("448.0), FLOOR)", "448.0), 1e-4)"),
        ('tl.where(has_nan, float("nan"), scale)', "scale"),
        ("(row_ptr + 528)", "(row_ptr + 526)"),
        ("group[:, None] * 128", "group[:, None] * 64"),
    ],
)
def test_a_mutant_has_other_bytes(old: str, new: str, tmp_path: Path) -> None:
    cache, x = pool(is_fp8=True), latents()
    mutate(twin, old, new, tmp_path).write_latents(x, cache, SLOTS)
    assert not same(cache, definition(x, is_fp8=True))


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Return table, past and cumulative of 70 rows with 0 to 3 new tokens, and rows of garbage.

    Their pages, the places before their first token and behind their last are out of range.
    """
    draw = torch.Generator().manual_seed(0)
    table = torch.randint(9, (70, 3), generator=draw, dtype=torch.int32)
    past = torch.randint(3 * 64 - 3, (70,), generator=draw, dtype=torch.int32)
    new = torch.randint(4, (71,), generator=draw, dtype=torch.int32)
    new[:8] = torch.tensor([0, 3, 3, 3, 3, 3, 3, 3])
    table[:2], table[2], past[3], past[4] = 9, -1, 190, -2
    past[5], past[6] = 2**31 - 4, -(2**31)
    return table, past, new.cumsum(0).int()


def test_lengths_and_slots_are_those_of_the_definition(by_definition: Callable[..., Any]) -> None:
    table, past, starts = rows()
    with sanitized():
        lengths = row_lengths(past, starts)
        slots = token_slots(table, lengths, starts, 9, 64)
    assert torch.equal(lengths, by_definition(row_lengths, past, starts))
    assert torch.equal(slots, by_definition(token_slots, table, lengths, starts, 9, 64))
    assert 0 < (slots < 0).sum() < len(slots) / 2


def test_no_rows_and_no_tokens_have_no_slots() -> None:
    table, nothing = torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    start = torch.zeros(1, dtype=torch.int32)
    assert row_lengths(nothing, start).shape == (0,)
    assert token_slots(table, nothing, start, 1, 64).shape == (0,)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(place >= 0) & ", ""),
        ("place // page_size < width", "place // page_size <= width"),
        ("is_inside & (page >= 0) & (page < pages)", "is_inside & (page < pages)"),
        ("is_inside & (page >= 0) & (page < pages)", "is_inside & (page >= 0)"),
        ("(end - token)\n", "(end - token) + 1\n"),
    ],
)
def test_a_mutant_has_other_slots_or_reads_outside(
    old: str, new: str, tmp_path: Path, by_definition: Callable[..., Any]
) -> None:
    table, past, starts = rows()
    lengths = by_definition(row_lengths, past, starts)
    wanted = by_definition(token_slots, table, lengths, starts, 9, 64)
    try:
        with sanitized():
            slots = mutate(twin, old, new, tmp_path).token_slots(table, lengths, starts, 9, 64)
    except OutOfBounds:
        return
    assert not torch.equal(slots, wanted)


@pytest.mark.parametrize("half", ["slot >= 0", "slot < slots"])
def test_the_sanitizer_catches_unchecked_slots(half: str, tmp_path: Path) -> None:
    mutant = mutate(twin, "(slot >= 0) & (slot < slots)", half, tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.write_latents(latents(), pool(is_fp8=True), SLOTS)
