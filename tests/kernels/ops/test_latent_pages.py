"""Latents in pages: slots by hand, the bytes of FP8 rows, and what is dropped."""

import math
import struct

import pytest
import torch
from torch import Tensor

from dstools_kernels.fp8 import E4M3_MAX
from dstools_kernels.ops.latent_pages import (
    SCALE_FLOOR,
    fp8_row_bytes,
    pack_fp8,
    row_lengths,
    token_slots,
    unpack_fp8,
    write_latents,
)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- slots


def test_slots_by_hand() -> None:
    """Row 0 has 5 tokens, 3 of them new: 2 and 3 of page 7, 0 of page 1; row 1 has one."""
    table = torch.tensor([[7, 1], [3, 0]], dtype=torch.int32)
    slots = token_slots(table, ints(5, 1), ints(0, 3, 4), pages=8, page_size=4)
    assert slots.tolist() == [7 * 4 + 2, 7 * 4 + 3, 1 * 4 + 0, 3 * 4 + 0]


def test_a_row_without_tokens_has_no_slot() -> None:
    table = torch.tensor([[2], [3]], dtype=torch.int32)
    assert token_slots(table, ints(0, 1), ints(0, 0, 1), pages=4, page_size=4).tolist() == [12]


def test_places_and_pages_out_of_range_have_slot_minus_one() -> None:
    table = torch.tensor([[4], [-1], [0], [0]], dtype=torch.int32)
    lengths = ints(1, 1, 5, -7)  # page 4 of 4, page -1, a place past the table, a place below 0
    slots = token_slots(table, lengths, ints(0, 1, 2, 3, 4), pages=4, page_size=4)
    assert slots.tolist() == [-1, -1, -1, -1]


def test_lengths_count_the_new_tokens() -> None:
    assert row_lengths(ints(5, 0, 7), ints(0, 2, 2, 3)).tolist() == [7, 0, 8]
    with pytest.raises(ValueError, match=r"must be int32, got torch\.int64 and torch\.int32"):
        row_lengths(torch.tensor([1]), ints(0, 1))


def test_slots_outside_the_pool_are_dropped() -> None:
    cache = torch.zeros(2, 4, 6)
    write_latents(torch.ones(4, 6), cache, torch.tensor([-1, 8, 3, 1 << 40]), rank=4)
    assert cache.sum(-1).tolist() == [[0, 0, 0, 6], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent_comes_back_from_its_slot(dtype: torch.dtype) -> None:
    cache, latents = torch.zeros(3, 4, 6, dtype=dtype), normal(3, 6).to(dtype)
    write_latents(latents, cache, torch.tensor([11, 0, 5]), rank=4)
    assert torch.equal(cache.view(12, 6)[[11, 0, 5]], latents)
    assert torch.count_nonzero(cache.abs().sum(-1)) == 3


def test_a_pool_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"656\], got \[1, 64, 576\]"):
        write_latents(torch.zeros(1, 576), torch.zeros(1, 64, 576, dtype=torch.uint8), ints(0))
    with pytest.raises(ValueError, match="multiple of 128, got 96"):
        fp8_row_bytes(96, 64)


# --------------------------------------------------------------------------------------- FP8 rows


def test_a_latent_of_deepseek_v3_takes_656_bytes() -> None:
    assert fp8_row_bytes(512, 64) == 656 == 512 + 4 * 4 + 2 * 64


def test_the_bytes_of_a_row_by_hand() -> None:
    """Amax 896 gives the scale 2; 896/2 = 448 is 0x7e, 3/2 = 1.5 is 0x3c, -8.5 ties to 8, 0xd0.

    The second group is zeros, its scale FLT_MIN. 1.0 in BF16 is 0x3f80, the low byte first.
    """
    latent = torch.zeros(1, 258)
    latent[0, :3], latent[0, 256:] = torch.tensor([896.0, 3.0, -17.0]), 1.0
    row = bytes(pack_fp8(latent, rank=256)[0].tolist())
    assert row[:4] == b"\x7e\x3c\xd0\x00"
    assert not any(row[4:256])
    assert struct.unpack("<2f", row[256:264]) == (2.0, SCALE_FLOOR)
    assert row[264:] == b"\x80\x3f\x80\x3f"


def test_unpacked_rows_are_code_times_scale() -> None:
    latents = (normal(5, 576) * torch.logspace(-3, 2, 5)[:, None]).bfloat16()
    wide = unpack_fp8(pack_fp8(latents))
    assert torch.equal(wide[:, 512:], latents[:, 512:].float())
    groups = latents[:, :512].float().unflatten(-1, (4, 128))
    scales = (groups.abs().amax(-1) / E4M3_MAX)[..., None]
    # half a step of E4M3: 2^-4 of a normal number, 2^-10 of the scale below 2^-6 of it
    bound = torch.maximum(groups.abs() * 2**-4, scales * 2**-10)
    assert (wide[:, :512].unflatten(-1, (4, 128)) - groups).abs().le(bound).all()


def test_the_largest_of_a_group_comes_back() -> None:
    latents = normal(7, 576, seed=1)
    wide = unpack_fp8(pack_fp8(latents))[:, :512].unflatten(-1, (4, 128)).abs().amax(-1)
    amax = latents[:, :512].unflatten(-1, (4, 128)).abs().amax(-1)
    assert torch.allclose(wide, amax, rtol=2**-22, atol=0)  # two roundings in float32


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_make_their_group_nan(value: float) -> None:
    latents = normal(1, 576)
    latents[0, 130] = value
    is_nan = unpack_fp8(pack_fp8(latents))[0].isnan()
    assert is_nan.nonzero()[:, 0].tolist() == list(range(128, 256))
