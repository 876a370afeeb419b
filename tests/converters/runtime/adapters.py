"""The loop and its drawing as the scripts of tests/cases/runtime call it."""

from collections.abc import Callable

import torch
from conftest import Toy
from torch import Tensor

from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.draw import NOT_FINITE, pick
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling


def answer(
    step: Callable[[list[int]], list[int]],
    prompt: list[int],
    ends: set[int],
    max_tokens: int,
    drafts: int,
) -> tuple[list[int], str]:
    """Return the ids after a prompt and the reason of their end; end_in_a_draft.py."""
    pool = Pool(4, 16)
    model = Toy(pool, lambda ids: step(ids)[-1])
    loop = Loop(model, pool, Sampling(), frozenset(ends), rows=1, drafts=drafts)
    pieces = list(loop.run([Request(0, prompt, max_tokens)]))
    return [token for piece in pieces for token in piece.ids], str(pieces[-1].reason)


def answers(
    next_token: Callable[[list[int]], int],
    prompts: list[list[int]],
    max_tokens: int,
    pages: int,
    page_size: int,
    drafts: int,
) -> list[list[int]]:
    """Return the answers to all prompts from one pool; stalled_pool.py."""
    pool = Pool(pages, page_size)
    model = Toy(pool, next_token)
    loop = Loop(model, pool, Sampling(), frozenset(), rows=len(prompts), drafts=drafts)
    found: list[list[int]] = [[] for _ in prompts]
    for piece in loop.run([Request(i, p, max_tokens) for i, p in enumerate(prompts)]):
        found[piece.prompt_index] += piece.ids
    return found


def draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Return a token for each row, or raise ValueError; sampling_edges.py."""
    tokens = pick(logits, Sampling(1.0, top_p), uniform.tolist())
    if NOT_FINITE in tokens:
        raise ValueError(f"row {tokens.index(NOT_FINITE)} is not finite")
    return torch.tensor(tokens)
