"""Whether the weights and the cache of `dstools generate` fit into memory, and what would."""

import math
from typing import TYPE_CHECKING, NamedTuple

from dstools_converters.errors import DstoolsError, counted, size

if TYPE_CHECKING:
    from dstools_converters.runtime.decode import Request
    from dstools_converters.runtime.pages import Pool


SHARE = 0.95  # of the free memory, for a hint: a little of it is taken until it is followed


class Held(NamedTuple):
    """A model as memory holds it."""

    precision: str
    device: str
    weights: int  # bytes
    token: int  # bytes of the cache for a token
    smaller: str  # what to do to hold both in half the memory; "" if nothing is known


def make_pool(
    request: "Request", limit: int, asked: int | None, most_pages: int | None = None
) -> "Pool":
    """Return a pool of at least `asked` tokens, or of what prompt and answer need.

    limit: how many tokens prompt and answer have at most; most_pages: that a pool of this model
    has. Raises DstoolsError where the pool that was asked for is too small, or too large.
    """
    from dstools_converters.runtime.pages import PAGE, Pool

    needed = max(limit - 1, 1)  # the last token is not cached
    pool = Pool(-(-(asked or needed) // PAGE))
    room = pool.count * PAGE
    if room < needed:
        count = len(request.prompt)
        shorter = f", or --max-tokens {room + 1 - count}" if room >= count else ""
        raise DstoolsError(
            f"the prompt of {counted(count, 'token')} and an answer of {limit - count:,} need a "
            f"cache of {needed:,} tokens; --pool {asked} has room for {room:,}",
            f"--pool {needed}{shorter}",
        )
    if most_pages is not None and pool.count > most_pages:
        raise DstoolsError(
            f"--pool {asked}: the folder is made for a cache of {most_pages * PAGE:,} tokens",
            f"--pool {most_pages * PAGE}, or export it with a larger --max-batch",
        )
    return pool


def require_memory(held: Held, pool: "Pool", request: "Request", limit: int, step: int) -> None:
    """Raise DstoolsError where a model and its pool need more memory than the device has free.

    step: bytes of the keys and values that attention multiplies at a time.
    """
    free, tokens = free_memory(held.device), pool.count * pool.size
    cache = tokens * held.token
    if held.weights + cache + step <= free:
        return
    raise DstoolsError(
        f"the weights in {held.precision} on {held.device} take {size(held.weights)}, a cache of "
        f"{tokens:,} tokens {size(cache)} and a step's keys and values {size(step)}; {size(free)} "
        "of memory is free",
        _advice(held, free - step, pool, request, limit),
    )


def _advice(held: Held, free: int, pool: "Pool", request: "Request", limit: int) -> str:
    """Return what would fit: a smaller pool, a shorter answer, half the precision; or nothing.

    free: bytes of memory for the weights and the cache.
    """
    count, ways = len(request.prompt), []
    spared = int(SHARE * free) - held.weights
    room = max(spared, 0) // (held.token * pool.size) * pool.size
    if room >= limit - 1:
        ways.append(f"--pool {room}")
    elif room >= count:
        smaller = f"--pool {room} " if pool.count > pool.needed(limit - 1) else ""
        ways.append(f"{smaller}--max-tokens {room + 1 - count}")
    whole = held.weights + pool.count * pool.size * held.token
    if held.smaller and math.ceil(whole / 2) <= free:
        ways.append(held.smaller)
    if ways:
        return ", or ".join(ways)
    return "free memory or take a larger machine; an engine can divide it among several GPUs"


def free_memory(device: str) -> int:
    """Return the bytes of memory that are free."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    from dstools.machine import memory

    return memory().free
