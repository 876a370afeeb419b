"""Attention to pages is softmax over a row's own tokens, whatever else the pages hold."""

import pytest
import torch
from torch import Tensor

from dstools_converters.runtime.attention import paged_attention

HEADS, GROUPS, SIZE, PAGE = 6, 2, 8, 4


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the attention [H, W] of one token to the keys and values [X, G, W] of its row."""
    k, v = (part.double().repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
    shares = (torch.einsum("hw,xhw->hx", q.double(), k) * scale).softmax(-1)
    return torch.einsum("hx,xhw->hw", shares, v)


@pytest.mark.parametrize("news", [[1, 1, 1, 1], [2, 1, 2, 2], [5, 1, 9, 3]])
def test_each_new_token_sees_its_row_up_to_itself(news: list[int]) -> None:
    """Rows of 1, a page, a page and one, and 11 tokens; pages that no one wrote hold NaN."""
    torch.manual_seed(0)
    lengths = [max(n, length) for n, length in zip(news, [1, 4, 5, 11], strict=True)]
    cache = torch.full((20, PAGE, 2, GROUPS, SIZE), torch.nan)
    table = torch.randperm(20)[:12].view(4, 3).int()
    rows = [torch.randn(length, 2, GROUPS, SIZE) for length in lengths]
    for pages, row in zip(table.tolist(), rows, strict=True):
        for at, entry in enumerate(row):
            cache[pages[at // PAGE], at % PAGE] = entry
    q = torch.randn(sum(news), HEADS, SIZE)
    cumulative = torch.tensor([0, *torch.tensor(news).cumsum(0)], dtype=torch.int32)
    found = paged_attention(q, cache, table, torch.tensor(lengths).int(), cumulative, 0.3)
    at = 0
    for n, row in zip(news, rows, strict=True):
        for seen in range(len(row) - n + 1, len(row) + 1):
            wanted = by_hand(q[at], row[:seen, 0], row[:seen, 1], 0.3)
            # a few units in the last place of float32, of values up to 4
            assert (found[at] - wanted).abs().max() < 1e-6
            at += 1


def test_bfloat16_stays_bfloat16() -> None:
    cache = torch.randn(2, PAGE, 2, GROUPS, SIZE).bfloat16()
    q = torch.randn(1, HEADS, SIZE).bfloat16()
    one = torch.tensor([1]).int()
    found = paged_attention(q, cache, one[:, None] * 0, one, torch.tensor([0, 1]).int(), 0.3)
    assert torch.equal(found[0], cache[0, 0, 1].repeat_interleave(HEADS // GROUPS, 0))
