"""Drawing of tokens: from logits and random numbers that hang on seed, place and step alone.

A row's token at a step is the same whatever else is in its batch, and however many tokens a step
of the loop checks at once: a draft, drawn with the number of its own step, is right exactly where
it equals the token that is drawn there.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError

FIRST_TOKENS = 1024  # nucleus sampling looks at this many before it sorts the whole vocabulary
NOISE_STEPS = 64  # this many random numbers of a row are drawn at a time
MIN_TEMPERATURE = 1e-6  # below it, logits may overflow
NOT_FINITE = -1  # in place of a token id


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Raises DstoolsError for a temperature below MIN_TEMPERATURE that is not 0, or a `top_p` outside
    of 0 to 1.
    """

    temperature: float = 0.0  # 0: the token with the largest logit
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf")):
            raise DstoolsError(
                f"temperature {self.temperature:g} is neither 0 nor at least {MIN_TEMPERATURE:g}",
                "use 0 for the most probable token",
            )
        if not 0 <= self.top_p <= 1:
            raise DstoolsError(f"top_p {self.top_p:g} is not between 0 and 1", "1 turns it off")


class Noise:
    """The random numbers of the answer to the prompt at `place`."""

    def __init__(self, seed: int, place: int) -> None:
        self.seed, self.place = seed, place
        self._begin, self._numbers = -1, [0.0]

    def number(self, step: int) -> float:
        """Return the number in [0, 1) of a step, which counts the tokens of the answer from 0."""
        begin = step // NOISE_STEPS * NOISE_STEPS
        if begin != self._begin:
            source = random.Random(f"{self.seed} {self.place} {begin}")
            self._begin, self._numbers = begin, [source.random() for _ in range(NOISE_STEPS)]
        return self._numbers[step - begin]


def pick(logits: Tensor, sampling: Sampling, uniform: list[float]) -> list[int]:
    """Return a token for each row of `logits` [rows, vocabulary], NOT_FINITE where none can be.

    uniform: a number for each row; greedy rows need none. A row is NOT_FINITE where it holds NaN or
    +infinity, or nothing but -infinity; a mask of -infinity is right.
    """
    best, tokens = logits.max(-1)
    is_finite = best.isfinite()  # NaN is the maximum of a row that has one
    if sampling.temperature:
        wanted = torch.tensor(uniform, dtype=torch.float64, device=logits.device)
        if not is_finite.all():
            safe = torch.where(is_finite[:, None], logits, 0.0)
            tokens = draw(safe.float() / sampling.temperature, sampling.top_p, wanted)
        else:
            tokens = draw(logits.float() / sampling.temperature, sampling.top_p, wanted)
    picked: list[int] = torch.where(is_finite, tokens, NOT_FINITE).tolist()
    return picked


def draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Return a token for each row [rows], int64: the one whose probability interval has `uniform`.

    logits: [rows, vocabulary] float32, with the temperature applied; uniform: [rows] float64 in
    [0, 1). Only the nucleus counts: the fewest most probable tokens that together reach `top_p`.
    Raises ValueError where a row has NaN, +infinity, or nothing but -infinity.
    Source: Holtzman et al., arXiv 1904.09751.
    """
    if not logits.amax(-1).isfinite().all():
        raise ValueError("logits must be finite, or -infinity for some tokens of a row")
    shares = torch.softmax(logits, -1)
    tokens = None
    if top_p < 1:
        first, tokens = shares.topk(min(FIRST_TOKENS, shares.shape[1]))
        if bool((first.sum(-1) < top_p).any()):
            first, tokens = shares.sort(stable=True, dim=-1, descending=True)
        before = first.cumsum(-1, dtype=torch.float64) - first
        shares = first.masked_fill(before >= top_p, 0)
        shares[:, 0] = first[:, 0]
    reached = shares.cumsum(-1, dtype=torch.float64)  # float64: uniform < 1 stays below the sum
    rank = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    return (rank if tokens is None else tokens.gather(1, rank))[:, 0]
