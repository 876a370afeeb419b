"""A model that is a function of the tokens before, with caches of ids in pages.

    model = toy(pool, next_token, positions=64, drafter=guess)

`next_token(ids)` is the token that follows; a list of them, one is drawn. The caches hold nothing
but what steps wrote, so a wrong page, place or length shows as another token or fails.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dstools_converters.runtime.pages import Batch, Pool

Next = Callable[[list[int]], int]
VOCABULARY = 1000
UNWRITTEN = -1


class Toy:
    """A `decode.Model`. Its hidden state is the id at its place; a draft's, its depth in 1000s."""

    vocab_size = VOCABULARY

    def __init__(
        self, pool: Pool, next_token: Next, positions: int = 10_000, drafter: Next | None = None
    ) -> None:
        self.size, self.positions = pool.size, positions
        self.next_token, self.drafter = next_token, drafter or next_token
        self.ids = torch.full((pool.count * pool.size,), UNWRITTEN)
        self.first = self.ids.clone()  # a draft's cache: the id at each place, from the states
        self.after = self.ids.clone()  # and the one after it
        self.steps: list[Batch] = []
        self.drafts: list[Batch] = []

    def slots(self, batch: Batch, row: int, begin: int, end: int) -> Tensor:
        """Return the rows of the flat cache that the tokens begin to end of a row have."""
        places = torch.arange(begin, end)
        pages = batch.block_table[row, places // self.size].long()
        return pages * self.size + places % self.size

    def spans(self, batch: Batch) -> list[tuple[int, int, int, int]]:
        """Return of each row where its new tokens begin and end in the batch and the sequence."""
        cumulative = batch.cumulative_sequence_lengths.tolist()
        past = batch.past_sequence_lengths.tolist()
        return [
            (a, b, p, p + b - a) for a, b, p in zip(cumulative, cumulative[1:], past, strict=False)
        ]

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.steps.append(batch)
        logits = torch.zeros(len(batch.input_ids), VOCABULARY)
        for row, (a, b, begin, end) in enumerate(self.spans(batch)):
            self.ids[self.slots(batch, row, begin, end)] = batch.input_ids[a:b]
            history = self.ids[self.slots(batch, row, 0, end)].tolist()
            assert UNWRITTEN not in history
            assert end <= self.positions
            for t in range(a, b):
                _say(logits[t], self.next_token(history[: begin + t - a + 1]))
        return logits[rows], batch.input_ids[:, None].clone()

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.drafts.append(batch)
        logits = torch.zeros(len(batch.input_ids), VOCABULARY)
        for row, (a, b, begin, end) in enumerate(self.spans(batch)):
            places = self.slots(batch, row, begin, end)
            self.first[places], self.after[places] = hidden[a:b, 0] % 1000, batch.input_ids[a:b]
            whole = self.slots(batch, row, 0, end)
            first, after = self.first[whole].tolist(), self.after[whole].tolist()
            assert UNWRITTEN not in after
            assert end < self.positions
            assert first[1:] == after[:-1]  # the state of a place, and the token at the next one
            for t in range(a, b):
                _say(logits[t], self.drafter([*first[:1], *after[: begin + t - a + 1]]))
        assert set(rows.tolist()) <= {b - 1 for _, b, _, _ in self.spans(batch)}
        return logits[rows], batch.input_ids[rows, None]


def _say(logits: Tensor, token: int) -> None:
    """Make `token` the most probable; -1 is for logits that are not finite."""
    logits[token] = 20.0
    if token < 0:
        logits[:] = torch.nan


@pytest.fixture
def toy() -> Any:
    return Toy
