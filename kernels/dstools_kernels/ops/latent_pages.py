"""The latents of MLA in pages: which row of the pool a token has, writing it, reading it back.

Letters: T new tokens of all rows end to end, B rows, N pages of a row, P pages of the pool,
S tokens of a page, L latent, R rotated key, C = L + R.

A pool is [P, S, C] of a float type, or uint8 [P, S, L + 4 L/128 + 2 R]: L codes in E4M3, a float32
scale for each 128 of them, R values in BF16, which is 656 bytes for 512 + 64. The scale is
max(amax / 448, FLT_MIN), so that a latent of zeros does not divide 0 by 0. NaN and infinity reach
the scale and with it all 128 values.
Source: deepseek-ai/FlashMLA, README.md, "FP8 with scale"; the scale is that of vLLM's fp8_ds_mla
(csrc/cache_kernels.cu, concat_and_cache_ds_mla_kernel); FlashMLA's own test rounds it up to a power
of two, which reads back the same way.
"""

import torch
from torch import Tensor

from dstools_kernels.fp8 import E4M3_MAX
from dstools_kernels.ops.dispatch import runs_twin

GROUP_SIZE = 128  # latents that share a scale
PAGE_SIZE = 64  # tokens of a page that the twin of mla_decode takes
SCALE_FLOOR = torch.finfo(torch.float32).tiny  # FLT_MIN


def fp8_row_bytes(rank: int, rope: int) -> int:
    """Return the bytes of one FP8 latent of `rank` codes and `rope` BF16 values.

    Raises ValueError where `rank` is not a multiple of 128.
    """
    if rank % GROUP_SIZE:
        raise ValueError(f"FP8 latents need a rank that is a multiple of {GROUP_SIZE}, got {rank}")
    return rank + 4 * (rank // GROUP_SIZE) + 2 * rope


def row_lengths(past: Tensor, cumulative: Tensor) -> Tensor:
    """Return the tokens of each row with its new ones, int32 [B].

    `past` [B] int32 are those before this step, `cumulative` [B + 1] int32 where the new ones of a
    row begin. Raises ValueError where either is not int32.
    """
    if past.dtype != torch.int32 or cumulative.dtype != torch.int32:
        raise ValueError(
            f"past and cumulative must be int32, got {past.dtype} and {cumulative.dtype}"
        )
    if runs_twin("row_lengths", past):
        from dstools_kernels.ops.triton import latent_pages_triton

        return latent_pages_triton.row_lengths(past, cumulative)
    return past + cumulative.diff()


def token_slots(
    table: Tensor, lengths: Tensor, cumulative: Tensor, pages: int, page_size: int
) -> Tensor:
    """Return the row of the flat pool [P * S] that each new token is written to, int64 [T].

    `table` [B, N] holds the pages of a row, `lengths` [B] its tokens with the new ones, and
    `cumulative` [B + 1] where its new tokens begin. A token whose place or page is out of range
    gets -1, which `write_latents` drops. The same for all layers of a step. The Triton twin takes
    int32.
    """
    is_int32 = all(part.dtype == torch.int32 for part in (table, lengths, cumulative))
    if runs_twin("token_slots", table, is_int32, "int32"):
        from dstools_kernels.ops.triton import latent_pages_triton

        return latent_pages_triton.token_slots(table, lengths, cumulative, pages, page_size)
    counts = cumulative.diff().long()
    row = torch.repeat_interleave(torch.arange(len(counts), device=table.device), counts)
    token = torch.arange(len(row), device=table.device)
    place = lengths.long()[row] - (cumulative[1:].long()[row] - token)
    inside = (place >= 0) & (place < table.shape[1] * page_size)
    column = torch.where(inside, place, 0) // page_size
    page = table[row, column].long()
    inside &= (page >= 0) & (page < pages)
    return torch.where(inside, page * page_size + place % page_size, -1)


def write_latents(latents: Tensor, cache: Tensor, slots: Tensor, rank: int = 512) -> None:
    """Write `latents` [T, C] into the pool `cache`, in place, each to its row of `slots` [T].

    Slots outside the pool are dropped. Raises ValueError where a row of the pool does not fit.
    """
    check_pool(cache, rank, latents.shape[-1] - rank)
    is_v3 = (rank, latents.shape[-1]) == (512, 576) and latents.dtype == torch.bfloat16
    fits = is_v3 and cache.dtype in (torch.bfloat16, torch.uint8)
    if runs_twin("latent_pages", cache, fits, "BF16 of 512 + 64, in a pool of BF16 or FP8"):
        from dstools_kernels.ops.triton import latent_pages_triton

        return latent_pages_triton.write_latents(latents, cache, slots)
    rows = cache.view(-1, cache.shape[-1])
    kept = (slots >= 0) & (slots < len(rows))
    if not kept.all():
        latents, slots = latents[kept], slots[kept]
    packed = pack_fp8(latents, rank) if cache.dtype == torch.uint8 else latents.to(cache.dtype)
    rows[slots.long()] = packed


def check_pool(cache: Tensor, rank: int, rope: int) -> None:
    """Raise ValueError where the last dimension of `cache` [P, S, ...] is not that of latents."""
    width = fp8_row_bytes(rank, rope) if cache.dtype == torch.uint8 else rank + rope
    if cache.dim() != 3 or cache.shape[-1] != width or not cache.is_contiguous():
        raise ValueError(
            f"a pool of {cache.dtype} latents {rank} + {rope} must be contiguous [pages, tokens, "
            f"{width}], got {list(cache.shape)}"
        )


def pack_fp8(latents: Tensor, rank: int = 512) -> Tensor:
    """Cast latents [..., L + R] to rows of bytes, uint8 [..., L + 4 L/128 + 2 R]."""
    groups = (
        latents[..., :rank].float().reshape(*latents.shape[:-1], rank // GROUP_SIZE, GROUP_SIZE)
    )
    amax = groups.abs().amax(-1)
    scales = (amax / torch.full_like(amax, E4M3_MAX)).clamp(min=SCALE_FLOOR)  # NaN stays NaN
    codes = (groups / scales[..., None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    rope = latents[..., rank:].to(torch.bfloat16).contiguous()
    parts = (codes.flatten(-2), scales, rope)
    return torch.cat([part.view(torch.uint8) for part in parts], -1)


def unpack_fp8(rows: Tensor, rank: int = 512) -> Tensor:
    """Return float32(code) x scale and the BF16 values of rows of bytes, float32 [..., L + R]."""
    scales_end = rank + 4 * (rank // GROUP_SIZE)
    codes = rows[..., :rank].contiguous().view(torch.float8_e4m3fn).float()
    scales = rows[..., rank:scales_end].contiguous().view(torch.float32)
    rope = rows[..., scales_end:].contiguous().view(torch.bfloat16).float()
    wide = codes.view(*scales.shape, GROUP_SIZE) * scales[..., None]
    return torch.cat((wide.flatten(-2), rope), -1)
