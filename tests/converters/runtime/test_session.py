"""A session is a model for the loop, with caches as large as the pool."""

from pathlib import Path

import torch

from dstools_converters.runtime.decode import Model
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.session import Session
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
    assert (drafted.shape, state.shape) == ((0, 320), (20, 256))
    for cache in session.caches:
        written = cache.isfinite().all(-1)
        assert written[4].all()
        assert written[2].tolist() == [True] * 4 + [False] * 12
        assert not written[[0, 1, 3, 5]].any()
