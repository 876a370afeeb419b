"""The loop that answers prompts: rows enter and leave, prompts fill in chunks, drafts are checked.

    loop = Loop(session, pool, Sampling(), ends, rows=8, drafts=1)
    for piece in loop.run([Request(0, prompt, 128)]):    # tokens as they come
        ...

A model is whatever has the `step` of a `Model`; nothing here knows how it computes. A step takes
the next tokens of some rows: a chunk of prompts, or the last token of every row whose prompt is
whole and the drafts after it. The two take turns while there are both, so that a long prompt costs
the other rows every second step and no more. A row enters when all the pages that it may need are
free, so that none ever waits for a page while it runs.

Speculation (arXiv 2412.19437, section 2.2): a multi-token prediction module drafts the tokens that
follow, and the next step checks them all at once. Tokens are drawn as draw.py says, so drafts
change the speed and no answer, as long as a step computes the same logits for one and for more
tokens.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError, counted
from dstools_converters.runtime.draw import NOT_FINITE, Noise, pick
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling

Reason = Literal["stop", "length", "error"]  # an end token; a limit; logits that are not finite
CHUNK = 4096  # tokens of prompts in a step
# Waiting rows enter once this share of the rows or fewer run, so that one step reads many prompts:
# 256 sums in 64 rows take 326 steps, and 384 if a row enters as soon as one ends (171 and 211 with
# drafts); tokens a CPU-second are the same, 8 % more with drafts. sample-v3, 2 cores, 2026-11-29.
CROWD = 0.875


class Model(Protocol):
    """What the loop asks of a model, with caches of the pages that batches name."""

    vocab_size: int
    positions: int

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Add the tokens of `batch` to the cache.

        Return the logits [R, V] after the new tokens at `rows` [R], and the hidden states [T, D].
        """

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens and the hidden states [T, D] at the places before them to the draft's cache.

        Return the logits [R, V] after those at `rows` [R], which are the last ones of their rows,
        and the states [R, D] that a further draft takes for hidden states.
        """


class Request(NamedTuple):
    """A prompt to answer."""

    prompt_index: int  # names the answer, and decides its random numbers
    prompt: list[int]
    max_tokens: int  # the answer also ends where the model's positions do


class Piece(NamedTuple):
    """The next tokens of an answer."""

    prompt_index: int
    ids: list[int]  # none where the reason is "error" and the first of them failed
    reason: Reason | None  # None: more will come; an end token is the last of the ids


@dataclass
class Counts:
    """What a loop did."""

    steps: int = 0
    tokens: int = 0  # of answers
    drafted: list[int] = field(default_factory=list)  # drafts that were checked, by position
    kept: list[int] = field(default_factory=list)  # and were right
    not_finite: int = 0  # drafts that were not made, as their logits are not finite


@dataclass(eq=False)
class _Row:
    """A prompt and its answer so far."""

    prompt_index: int
    tokens: list[int]
    prompt: int  # how many tokens it has
    limit: int  # of prompt and answer
    noise: Noise
    pages: list[int] = field(default_factory=list)
    cached: int = 0  # tokens in the cache of the model; a draft's cache has as many
    drafts: list[int] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        """Return how many tokens the answer has."""
        return len(self.tokens) - self.prompt

    @property
    def room(self) -> int:
        """Return how many drafts may follow: the token after the last one needs no cache."""
        return self.limit - len(self.tokens) - 1 - len(self.drafts)


class Loop:
    """A model, its pool of pages, and how answers are drawn and end.

    pool: the pages of the model's caches; ends: the ids that end an answer; rows: how many run at a
    time at most; drafts: how many tokens are drafted at a time; chunk: the most tokens of prompts
    in a step. Raises DstoolsError where one of the numbers is out of range.
    """

    def __init__(
        self,
        model: Model,
        pool: Pool,
        sampling: Sampling,
        ends: frozenset[int],
        *,
        rows: int,
        drafts: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        if rows < 1 or chunk < 1 or drafts < 0:
            raise DstoolsError(f"cannot run {rows} rows in chunks of {chunk} with {drafts} drafts")
        self.model, self.pool, self.sampling, self.ends = model, pool, sampling, ends
        self.rows, self.drafts, self.chunk = rows, drafts, chunk
        self.counts = Counts(drafted=[0] * drafts, kept=[0] * drafts)
        self._table: tuple[list[_Row], Tensor] | None = None

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yield the tokens of all answers as they come; rows enter in the order of `requests`.

        Raises DstoolsError before the first token for a prompt that is empty, has an id outside of
        the vocabulary, or does not fit the positions of the model or the empty pool.
        """
        alone = len(requests) == 1
        waiting = deque(
            self._row(request, "the prompt" if alone else f"prompt {request.prompt_index}")
            for request in requests
        )
        live: list[_Row] = []
        fills = False
        while waiting or live:
            if len(live) <= CROWD * self.rows:
                while waiting and len(live) < self.rows and self._enters(waiting[0]):
                    live.append(waiting.popleft())
            filling = [row for row in live if not row.drawn]
            drawing = [row for row in live if row.drawn]
            fills = bool(filling) and not (fills and drawing)
            pieces = self._fill(filling) if fills else self._advance(drawing)
            for piece in pieces:
                self.counts.tokens += len(piece.ids)
                yield piece
            live = [row for row in live if row.pages]

    def _row(self, request: Request, name: str) -> _Row:
        index, prompt, _ = request
        model = self.model
        limit = length_limit(request, name, self.pool, model.vocab_size, model.positions)
        return _Row(index, [*prompt], len(prompt), limit, Noise(self.sampling.seed, index))

    def _enters(self, row: _Row) -> bool:
        """Give a row all the pages it may need, and return whether they were free."""
        pages = self.pool.needed(row.limit - 1)
        if pages > self.pool.free:
            return False
        row.pages = self.pool.take(pages)
        return True

    # ------------------------------------------------------------------------------------- a step

    def _fill(self, filling: list[_Row]) -> list[Piece]:
        """Cache the next chunk of prompts; draw the first token of those that are whole."""
        rows, feeds, left = [], [], self.chunk
        for row in filling:
            feed = row.tokens[row.cached : row.cached + left]
            if not feed:
                break
            rows.append(row)
            feeds.append(feed)
            left -= len(feed)
        whole = [i for i, row in enumerate(rows) if row.cached + len(feeds[i]) == len(row.tokens)]
        batch, begins = self._batch(rows, feeds, [row.cached for row in rows])
        last = [begins[i] + len(feeds[i]) - 1 for i in whole]
        logits, hidden = self._step(batch, last)
        picked = self._pick(logits, [(rows[i], 0) for i in whole]) if whole else []
        for row, feed in zip(rows, feeds, strict=True):
            row.cached += len(feed)
        pieces = [self._take(rows[i], [token]) for i, token in zip(whole, picked, strict=True)]
        if self.drafts:
            self._draft(rows, begins, [len(feed) for feed in feeds], hidden)
        return pieces

    def _advance(self, rows: list[_Row]) -> list[Piece]:
        """Draw the next token of every row, and those after its drafts that were right."""
        feeds = [[row.tokens[-1], *row.drafts] for row in rows]
        batch, begins = self._batch(rows, feeds, [row.cached for row in rows])
        logits, hidden = self._step(batch, range(len(batch.input_ids)))
        steps = [(row, i) for row, feed in zip(rows, feeds, strict=True) for i in range(len(feed))]
        picked = self._pick(logits, steps)
        pieces, advanced = [], []
        for row, begin, feed in zip(rows, begins, feeds, strict=True):
            before = row.drawn
            pieces.append(self._take(row, picked[begin : begin + len(feed)]))
            advanced.append(row.drawn - before)
            row.cached += advanced[-1]
        if self.drafts:
            self._draft(rows, begins, advanced, hidden)
        return pieces

    def _take(self, row: _Row, picked: list[int]) -> Piece:
        """Append the tokens drawn after a row and its drafts, up to the first draft not drawn."""
        ids: list[int] = []
        reason: Reason | None = None
        for i, token in enumerate(picked):
            if token == NOT_FINITE:
                reason = "error"
                break
            ids.append(token)
            row.tokens.append(token)
            is_right = i < len(row.drafts) and token == row.drafts[i]
            if i < len(row.drafts):
                self.counts.drafted[i] += 1
                self.counts.kept[i] += is_right
            if token in self.ends or len(row.tokens) == row.limit:
                reason = "stop" if token in self.ends else "length"
                break
            if not is_right:
                break
        if reason:
            self.pool.give(row.pages)
            row.pages = []
        row.drafts = []
        return Piece(row.prompt_index, ids, reason)

    def _step(self, batch: Batch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.counts.steps += 1
        return self.model.step(batch, torch.tensor(rows, dtype=torch.int64))

    def _pick(self, logits: Tensor, steps: list[tuple[_Row, int]]) -> list[int]:
        """Return the tokens of rows at steps counted from their next one."""
        uniform = []
        if self.sampling.temperature:
            uniform = [row.noise.number(row.drawn + ahead) for row, ahead in steps]
        return pick(logits, self.sampling, uniform)

    def _batch(
        self, rows: list[_Row], feeds: list[list[int]], past: list[int]
    ) -> tuple[Batch, list[int]]:
        """Return the batch of new tokens, and where those of each row begin."""
        begins = [0, *accumulate(map(len, feeds))]
        batch = Batch(
            torch.tensor([token for feed in feeds for token in feed], dtype=torch.int64),
            self._block_table(rows),
            torch.tensor(begins, dtype=torch.int32),
            torch.tensor(past, dtype=torch.int32),
        )
        return batch, begins[:-1]

    def _block_table(self, rows: list[_Row]) -> Tensor:
        """Return the pages [B, N] int32 of rows; made again only where the rows are others."""
        if self._table is None or self._table[0] != rows:
            width = max(len(row.pages) for row in rows)
            table = [row.pages + [0] * (width - len(row.pages)) for row in rows]
            self._table = rows, torch.tensor(table, dtype=torch.int32)
        return self._table[1]

    # ----------------------------------------------------------------------------------- drafting

    def _draft(self, rows: list[_Row], begins: list[int], news: list[int], hidden: Tensor) -> None:
        """Add the new places of rows to the draft's cache, and draft what follows whole prompts.

        `hidden` [T, D] are the states of a step; those of the `news` tokens that a row now has in
        the cache begin at `begins`. Rows that ended or have room for one more token are left out.
        """
        kept = [i for i, row in enumerate(rows) if row.pages and row.room > 0]
        if not kept:
            return
        places = [begins[i] + at for i in kept for at in range(news[i])]
        rows, news = [rows[i] for i in kept], [news[i] for i in kept]
        feeds = [r.tokens[r.cached - n + 1 : r.cached + 1] for r, n in zip(rows, news, strict=True)]
        past = [row.cached - n for row, n in zip(rows, news, strict=True)]
        batch, starts = self._batch(rows, feeds, past)
        lasts = [start + n - 1 for start, n in zip(starts, news, strict=True)]
        asked = [(row, last) for row, last in zip(rows, lasts, strict=True) if row.drawn]
        state = self._append(asked, batch, hidden[places])
        for count in range(1, self.drafts):
            rows = [row for row, _ in asked]
            kept = [i for i, row in enumerate(rows) if len(row.drafts) == count and row.room > 0]
            if not kept:
                return
            state, rows = state[kept], [rows[i] for i in kept]
            past = [row.cached + count - 1 for row in rows]
            batch, starts = self._batch(rows, [[row.drafts[-1]] for row in rows], past)
            asked = list(zip(rows, starts, strict=True))
            state = self._append(asked, batch, state)

    def _append(self, asked: list[tuple[_Row, int]], batch: Batch, state: Tensor) -> Tensor:
        """Append a draft to each row that is asked, and return the states [R, D] after them.

        A row is asked after its last token in `batch`, at a place of it; it gets none where the
        logits are not finite. `state` [T, D] are those before the new tokens.
        """
        places = torch.tensor([at for _, at in asked], dtype=torch.int64)
        logits, state = self.model.draft(batch, state, places)
        picked = self._pick(logits, [(row, len(row.drafts)) for row, _ in asked]) if asked else []
        for (row, _), token in zip(asked, picked, strict=True):
            if token == NOT_FINITE:
                self.counts.not_finite += 1
            else:
                row.drafts.append(token)
        return state


def length_limit(request: Request, name: str, pool: Pool, vocab_size: int, positions: int) -> int:
    """Return how many tokens a prompt and its answer have at most; errors call it `name`.

    Raises DstoolsError for a prompt that is empty, has an id outside of the vocabulary, or does not
    fit the positions of the model or the empty pool.
    """
    _, prompt, max_tokens = request
    limit = min(len(prompt) + max_tokens, positions)
    if not prompt:
        raise DstoolsError(f"{name} is empty", "give it at least one token")
    if max_tokens < 1:
        raise DstoolsError(f"max_tokens must be at least 1, got {max_tokens} for {name}")
    wrong = [token for token in prompt if not 0 <= token < vocab_size]
    if wrong:
        raise DstoolsError(
            f"{name} has the token {wrong[0]}; the model has {vocab_size}",
            "the tokenizer is that of another model",
        )
    if limit <= len(prompt):
        raise DstoolsError(
            f"{name} has {counted(len(prompt), 'token')}; the model has "
            f"{counted(positions, 'position')}",
            "shorten it, to leave room for an answer",
        )
    # the last token of an answer is never cached, nor are drafts that would follow it
    pages = pool.needed(limit - 1)
    if pages > pool.count:
        raise DstoolsError(
            f"{name} of {counted(len(prompt), 'token')} and its answer need "
            f"{counted(pages, 'page')} of {pool.size} tokens; the pool has {pool.count}",
            "make the pool larger, or allow fewer tokens",
        )
    return limit
