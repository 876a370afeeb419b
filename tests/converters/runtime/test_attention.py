"""Attention to pages is softmax over a row's own tokens, whatever else the pages hold."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dstools_converters.runtime import attention as module
from dstools_converters.runtime.attention import attention_plan, paged_attention

HEADS, GROUPS, SIZE, PAGE = 6, 2, 8, 4


def attend(q: Tensor, cache: Tensor, table: Tensor, lengths: list[int], news: list[int]) -> Tensor:
    cumulative = torch.tensor([0, *news]).cumsum(0).int()
    plan = attention_plan(table, torch.tensor(lengths).int(), cumulative, cache.shape, q.shape[1])
    return paged_attention(q, cache, plan, 0.3)


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the attention [H, W] of one token to the keys and values [X, G, W] of its row."""
    k, v = (part.double().repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
    shares = (torch.einsum("hw,xhw->hx", q.double(), k) * scale).softmax(-1)
    return torch.einsum("hx,xhw->hw", shares, v)


@pytest.mark.parametrize("most", [module.MOST, 200, 1])
@pytest.mark.parametrize("news", [[1, 1, 1, 1], [2, 1, 2, 2], [5, 1, 9, 3], [0, 1, 0, 4]])
def test_each_new_token_sees_its_row_up_to_itself(
    news: list[int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of none or few, a page, a page and one, 11 tokens; what no one wrote holds NaN."""
    monkeypatch.setattr(module, "MOST", most)
    torch.manual_seed(0)
    lengths = [max(n, length) for n, length in zip(news, [0, 4, 5, 11], strict=True)]
    cache = torch.full((20, PAGE, 2, GROUPS, SIZE), torch.nan)
    table = torch.randperm(20)[:12].view(4, 3).int()
    rows = [torch.randn(length, 2, GROUPS, SIZE) for length in lengths]
    for pages, row in zip(table.tolist(), rows, strict=True):
        for at, entry in enumerate(row):
            cache[pages[at // PAGE], at % PAGE] = entry
    q = torch.randn(sum(news), HEADS, SIZE)
    found = attend(q, cache, table, lengths, news)
    at = 0
    for n, row in zip(news, rows, strict=True):
        for seen in range(len(row) - n + 1, len(row) + 1):
            wanted = by_hand(q[at], row[:seen, 0], row[:seen, 1], 0.3)
            # a few units in the last place of float32, of values up to 4
            assert (found[at] - wanted).abs().max() < 1e-6
            at += 1


def test_no_more_is_copied_at_a_time_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 64 tokens and 60 of one, which all padded to 64 would be 61 * 64 tokens."""
    most = 100 * 2 * GROUPS * SIZE
    monkeypatch.setattr(module, "MOST", most)
    copied, scores = [], []

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        copied.append(k.numel() + v.numel())
        scores.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return torch.zeros(*q.shape[:-1], SIZE)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", watched)
    lengths, news = ([1] * 30 + [longest] + [1] * 30 for longest in (64, 40))
    cache = torch.zeros(16, PAGE, 2, GROUPS, SIZE)
    table = torch.zeros(61, 16).int()
    attend(torch.zeros(100, HEADS, SIZE), cache, table, lengths, news)
    assert max(copied) <= most
    assert max(scores) <= most
    assert len(copied) < 10


def test_bfloat16_stays_bfloat16() -> None:
    cache = torch.randn(2, PAGE, 2, GROUPS, SIZE).bfloat16()
    q = torch.randn(1, HEADS, SIZE).bfloat16()
    found = attend(q, cache, torch.tensor([[0]]).int(), [1], [1])
    assert torch.equal(found[0], cache[0, 0, 1].repeat_interleave(HEADS // GROUPS, 0))
