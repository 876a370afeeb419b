"""Cases that the definition of an op and its Triton twin are both tested on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.latent_pages import pack_fp8, token_slots, unpack_fp8, write_latents

SCALE = 192**-0.5


class DecodeCase(NamedTuple):
    """Arguments of `mla_decode`, and what it is to return, in float64."""

    q: Tensor
    cache: Tensor
    table: Tensor
    lengths: Tensor
    cumulative: Tensor
    scale: float
    rank: int
    expected: Tensor

    def arguments(self, **changed: Tensor) -> tuple[Any, ...]:
        """Return the arguments of `mla_decode`, some of them changed."""
        return self._replace(**changed)[:-1]

    def error(self, out: Tensor) -> float:
        """Return the distance of `out` to what is expected, as a part of its norm."""
        return float((out.double() - self.expected).norm() / self.expected.norm())

    def attend(self, token: int, latents: Tensor) -> Tensor:
        """Return what the query of a token makes of other latents, float64 [H, L]."""
        return _attend(self.q[token : token + 1], latents, self.rank)[0]


def _decode_case(
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
) -> DecodeCase:
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
        _attend(q[begin : begin + count], latent, rank)
        for begin, count, latent in zip(cumulative.tolist(), counts, latents, strict=False)
    ]
    return DecodeCase(q, cache, table, ends, cumulative, SCALE, rank, torch.cat(expected))


def _attend(q: Tensor, latents: Tensor, rank: int) -> Tensor:
    """Attend from the last tokens `q` [n, H, C] of a row to its `latents` [length, C]."""
    out = torch.zeros(*q.shape[:2], rank, dtype=torch.float64)
    for i in range(len(q)):
        seen = latents[: max(0, len(latents) - (len(q) - 1 - i))].double()
        if len(seen):
            shares = torch.softmax(q[i].double() @ seen.T * SCALE, -1)
            out[i] = shares @ seen[:, :rank]
    return out


@pytest.fixture
def decode_case() -> Callable[..., DecodeCase]:
    """Make a case of MLA decode: `decode_case(lengths, counts, heads=4, rank=128, ...)`."""
    return _decode_case


class PrefillCase(NamedTuple):
    """Arguments of `mla_prefill`, and what it is to return, in float64."""

    q: Tensor
    k_nope: Tensor
    k_rope: Tensor
    v: Tensor
    cumulative_q: Tensor
    cumulative_k: Tensor
    scale: float
    expected: Tensor

    def error(self, out: Tensor) -> float:
        """Return the distance of `out` to what is expected, as a part of its norm."""
        return float((out.double() - self.expected).norm() / self.expected.norm())


def _prefill_case(
    queries: list[int],
    keys: list[int],
    *,
    heads: int = 2,
    nope: int = 128,
    rope: int = 64,
    value: int = 128,
    dtype: torch.dtype = torch.bfloat16,
) -> PrefillCase:
    """Return rows whose last `queries` of `keys` tokens are new."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    q, k_rope = normal(sum(queries), heads, nope + rope), normal(sum(keys), rope)
    k_nope, v = normal(sum(keys), heads, nope), normal(sum(keys), heads, value)
    expected = torch.zeros(sum(queries), heads, value, dtype=torch.float64)
    cumulative_q, cumulative_k = (
        torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0).int() for sizes in (queries, keys)
    )
    for row, count in enumerate(queries):
        for i in range(count):
            at, begin = int(cumulative_q[row]) + i, int(cumulative_k[row])
            seen = slice(begin, max(begin, begin + keys[row] - (count - 1 - i)))
            k = torch.cat((k_nope[seen], k_rope[seen, None].expand(-1, heads, -1)), -1).double()
            shares = torch.softmax(torch.einsum("hd,khd->hk", q[at].double(), k) * SCALE, -1)
            expected[at] = torch.einsum("hk,khw->hw", shares, v[seen].double())
    return PrefillCase(q, k_nope, k_rope, v, cumulative_q, cumulative_k, SCALE, expected)


@pytest.fixture
def prefill_case() -> Callable[..., PrefillCase]:
    """Make a case of MLA prefill: `prefill_case(queries, keys, heads=2, ...)`."""
    return _prefill_case
