"""Drawing of tokens: from logits and random numbers of seed, index and step alone.

A row's token at a step is the same whatever else is in its batch, and however many tokens a step
of the loop checks at once: a draft, drawn with the number of its own step, is right exactly where
it equals the token that is drawn there.
"""

import random

import torch
from torch import Tensor

from dstools_converters.runtime.sampling import Sampling

FIRST_TOKENS = 1024  # nucleus sampling looks at this many before it sorts the whole vocabulary
NOISE_STEPS = 64  # this many random numbers of a row are drawn at a time
NOT_FINITE = -1  # in place of a token id


class Noise:
    """The random numbers of the answer to the prompt with an index."""

    def __init__(self, seed: int, index: int) -> None:
        self.seed, self.index = seed, index
        self._begin, self._numbers = -1, [0.0]

    def number(self, step: int) -> float:
        """Return the number in [0, 1) of a step, which counts the tokens of the answer from 0."""
        begin = step // NOISE_STEPS * NOISE_STEPS
        if begin != self._begin:
            source = random.Random(f"{self.seed} {self.index} {begin}")
            self._begin, self._numbers = begin, [source.random() for _ in range(NOISE_STEPS)]
        return self._numbers[step - begin]


def pick(logits: Tensor, sampling: Sampling, uniform: list[float]) -> list[int]:
    """Return a token for each row of `logits` [rows, vocabulary], NOT_FINITE where none can be.

    uniform: a number for each row; greedy rows need none. A row is NOT_FINITE where, divided by the
    temperature, it holds NaN or +infinity, or nothing but -infinity; a mask of -infinity is right.
    """
    if sampling.temperature:
        logits = logits.float() / sampling.temperature
    # max(-1) would start all threads however little there is to do: milliseconds on a busy CPU
    tokens = logits.argmax(-1)  # the smallest id of equal ones, and that of NaN where there is one
    is_finite = logits.gather(-1, tokens[:, None])[:, 0].isfinite()
    if sampling.temperature:
        if not is_finite.all():
            logits = torch.where(is_finite[:, None], logits, 0.0)
        wanted = torch.tensor(uniform, dtype=torch.float64, device=logits.device)
        tokens = _draw(logits, sampling.top_p, wanted)
    picked: list[int] = torch.where(is_finite, tokens, NOT_FINITE).tolist()
    return picked


def _draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Return a token for each row [rows], int64: the one whose probability interval has `uniform`.

    logits: [rows, vocabulary] float32, finite, with the temperature applied; uniform: [rows]
    float64 in [0, 1). Only the nucleus counts: the fewest most probable tokens that together reach
    `top_p`, of equal ones those with the smallest ids.
    Source: Holtzman et al., arXiv 1904.09751.
    """
    shares = torch.softmax(logits, -1)
    if top_p == 1:
        return _ranks(shares, uniform)
    first = shares.topk(min(FIRST_TOKENS, shares.shape[1])).indices.sort().values
    tokens, is_whole = _from_nucleus(shares, first, top_p, uniform)
    rest = (~is_whole).nonzero()[:, 0]
    if len(rest) and first.shape != shares.shape:
        every = torch.arange(shares.shape[1], device=shares.device).expand(len(rest), -1)
        tokens[rest], _ = _from_nucleus(shares[rest], every, top_p, uniform[rest])
    return tokens


def _from_nucleus(
    shares: Tensor, ids: Tensor, top_p: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the tokens drawn from the nuclei [rows], and whether `ids` hold the whole nucleus.

    `ids` [rows, count] are the most probable tokens of each row of `shares`, in ascending order.
    Which of several equal ones are the last of them is arbitrary, so none of these may be needed.
    """
    largest, order = shares.gather(1, ids).sort(dim=-1, stable=True, descending=True)
    before = largest.cumsum(-1, dtype=torch.float64) - largest
    is_in = before < top_p
    is_in[:, 0] = True
    is_whole = ~(is_in & (largest == largest[:, -1:])).any(-1)
    rank = _ranks(largest.masked_fill(~is_in, 0), uniform)
    return ids.gather(1, order.gather(1, rank[:, None]))[:, 0], is_whole


def _ranks(shares: Tensor, uniform: Tensor) -> Tensor:
    """Return of each row where the sum of its shares passes `uniform` of their total [rows]."""
    reached = shares.cumsum(-1, dtype=torch.float64)  # float64: uniform < 1 stays below the sum
    wanted = uniform[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True)[:, 0]
