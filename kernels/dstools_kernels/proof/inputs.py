"""Inputs of the ops at shapes to try: random, ragged, and NaN where no one may read."""

import torch
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.latent_pages import PAGE_SIZE, pack_fp8
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.proof.roofline import LATENT, ROPE

BF16 = torch.bfloat16


def random(device: torch.device, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Return normal numbers of `shape`."""
    return torch.randn(shape, device=device).to(dtype)


def with_ties(device: torch.device, rows: int, columns: int) -> Tensor:
    """Return activations whose first group has scale 1 and every point between two codes."""
    x = random(device, rows, columns)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2  # all are BF16 numbers; the last code is 448
    if rows and columns >= 128:
        x[0, :128] = torch.cat([ties, torch.tensor([448.0, -448.0])]).to(x)
    return x


def offsets(device: torch.device, rows: int, experts: int) -> Tensor:
    """Return ragged offsets [experts + 1]; the first expert has no rows where there are several."""
    cuts = torch.linspace(0, 1, experts) ** 1.5 if experts > 1 else torch.tensor([1.0])
    ends = (cuts * rows).round().int()
    return torch.cat([ends.new_zeros(1), ends]).to(device)


def product_inputs(device: torch.device, m: int, n: int, k: int) -> tuple[Quantized, Quantized]:
    """Return FP8 codes of positive numbers, whose sums lose most where they are narrow."""
    x, w = torch.rand(m, k, device=device), torch.rand(n, k, device=device)
    return act_quant(x, is_transposed=True), weight_quant(w)


def pool(device: torch.device, lengths: Tensor, is_fp8: bool) -> tuple[Tensor, Tensor]:
    """Return a pool and a table for rows of `lengths`, shuffled; what no row wrote is NaN."""
    width = max(1, -(-int(lengths.max()) // PAGE_SIZE)) if len(lengths) else 1
    pages = len(lengths) * width + 1
    table = torch.randperm(pages - 1, device=device).int().view(len(lengths), width)
    pool = torch.full(
        (pages, PAGE_SIZE, LATENT + ROPE), torch.nan, device=device, dtype=torch.bfloat16
    )
    at = torch.arange(width * PAGE_SIZE, device=device)
    is_used = at < lengths[:, None]
    rows = table.long().repeat_interleave(PAGE_SIZE, 1) * PAGE_SIZE + at % PAGE_SIZE
    used = rows[is_used]
    pool.view(-1, LATENT + ROPE)[used] = random(device, len(used), LATENT + ROPE)
    return (pack_fp8(pool) if is_fp8 else pool), table


def decode_inputs(
    device: torch.device, lengths: list[int], heads: int, new: int = 1, is_fp8: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Return the arguments of `mla_decode` for `new` tokens of each row."""
    held = torch.tensor(lengths, dtype=torch.int32, device=device)
    cache, table = pool(device, held, is_fp8)
    q = random(device, len(lengths) * new, heads, LATENT + ROPE)
    starts = new * torch.arange(len(lengths) + 1, device=device, dtype=torch.int32)
    return q, cache, table, held, starts, 192**-0.5
