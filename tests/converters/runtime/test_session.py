"""A session is a model for the loop, with caches as large as the pool."""

import os
from pathlib import Path

import pytest
import torch

from dstools_converters.runtime.decode import Model
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.session import Session, pool_for
from dstools_converters.runtime.weights import load

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def test_a_session_has_a_cache_for_each_layer_and_the_limits_of_its_model() -> None:
    session: Model = Session(load(SAMPLE, torch.float32, torch.device("cpu")), Pool(7, 16))
    assert (session.vocab_size, session.positions) == (320, 512)
    assert isinstance(session, Session)
    assert [tuple(c.shape) for c in session.caches] == [(7, 16, 192)] * 5  # 128 + 64; 4 and MTP


def test_steps_write_the_pages_of_their_rows_and_no_other() -> None:
    session = Session(load(SAMPLE, torch.float32, torch.device("cpu")), Pool(6, 16))
    for cache in session.caches:
        cache.fill_(torch.nan)
    table = torch.tensor([[4, 2]], dtype=torch.int32)
    ids, past = torch.arange(20), torch.zeros(1, dtype=torch.int32)
    batch = Batch(ids, table, torch.tensor([0, 20], dtype=torch.int32), past)
    logits, hidden = session.step(batch, torch.tensor([19, 3]))
    assert (logits.shape, hidden.shape) == ((2, 320), (20, 256))
    drafted, state = session.draft(batch, hidden, torch.tensor([], dtype=torch.int64))
    assert (drafted.shape, state.shape) == ((0, 320), (0, 256))
    for cache in session.caches:
        written = cache.isfinite().all(-1)
        assert written[4].all()
        assert written[2].tolist() == [True] * 4 + [False] * 12
        assert not written[[0, 1, 3, 5]].any()


def test_a_pool_holds_the_longest_rows_that_run_at_once() -> None:
    serving = load(SAMPLE, torch.float32, torch.device("cpu"))
    # 1, 1, 2 and 2 pages of 256 tokens
    assert pool_for(serving, [10, 65, 257, 512], rows=2).count == 2 + 2
    assert pool_for(serving, [10, 65, 257, 512], rows=9).count == 6
    short = pool_for(serving, [10, 65, 192], rows=9)
    assert (short.size, short.count) == (192, 3)
    assert pool_for(serving, [], rows=9).count == 1


def test_a_pool_takes_no_more_than_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = load(SAMPLE, torch.float32, torch.device("cpu"))
    page = 5 * 192 * 4 * 256  # layers, elements of a latent, bytes, tokens
    sizes = {"SC_PHYS_PAGES": 6 * page, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert pool_for(serving, [512] * 9, rows=9).count == 3
