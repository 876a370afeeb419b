"""Scores of every next token, computed from the head in slabs of the vocabulary.

The log-sum-exp is carried from slab to slab: neither a head [V, D] nor logits [T, V] are ever in
memory. Everything after the product is float64, because KL is a small difference of large numbers:
float32 would be off by some 1e-7 nats.

T: tokens, V: vocabulary, R: rows of a slab of it, D: width.
Source: Milakov and Gimelshein, arXiv 1805.02867, for the sum that goes with a running maximum.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import TensorName
from dstools_converters.layerwise.runner import DAMAGED, TOKENS_AT_A_TIME, Runner
from dstools_converters.layerwise.spill import Spill
from dstools_converters.model.decoder import RMSNorm

SLAB_ROWS = 1024  # of the vocabulary: with 2048 tokens, 16 MiB of logits


@torch.inference_mode()
def score(
    runners: list[Runner], hidden: list[list[Spill]], progress: Progress
) -> "tuple[list[Scores], list[Tensor]]":
    """Return each stream's scores of the next tokens, and the KL of the first to it [T], nats.

    `hidden` holds the states after the last layer, of each stream of a model; they are closed. A
    head is read once. Scores of the last token of a sample mean nothing. Raises DstoolsError where
    a head gives NaN or infinity.
    """
    next_T = runners[0].ids.roll(-1, 1).flatten()  # anything after a sample's last
    batches = [
        (begin, min(begin + TOKENS_AT_A_TIME, len(next_T)))
        for begin in range(0, len(next_T), TOKENS_AT_A_TIME)
    ]
    for runner, streams in zip(runners, hidden, strict=True):
        norm = RMSNorm(streams[0].width, runner.architecture.rms_norm_eps)
        norm.weight = nn.Parameter(runner.load(TensorName("norm", "weight")))
        for states in streams:
            for begin, end in batches:
                states.write(begin, norm(states.read(begin, end).to(runner.device)))
    owners = [(number, states) for number, streams in enumerate(hidden) for states in streams]
    scores = [Scores(next_T.to(runners[number].device)) for number, _ in owners]
    gaps = [torch.zeros_like(one.sum_T) for one in scores]  # exp(logit - peak) (logit - other's)
    for first, last in _slabs([runner.inventory for runner in runners]):
        slabs = [runner.load_rows(head(runner.inventory), first, last) for runner in runners]
        for begin, end in batches:
            logits = [
                F.linear(states.read(begin, end).to(slabs[number].device), slabs[number]).double()
                for number, states in owners
            ]
            added = [one.add(begin, first, x_TR) for one, x_TR in zip(scores, logits, strict=True)]
            terms_TR, shrink_T = added[0]
            for gap_T, x_TR in zip(gaps[1:], logits[1:], strict=True):
                gap_T[begin:end] *= shrink_T
                gap_T[begin:end] += (terms_TR * (logits[0] - x_TR)).sum(1)
        for runner in runners:
            info = runner.inventory.info(head(runner.inventory))
            progress(info.nbytes * (last - first) // info.shape[0])
    for (number, states), one in zip(owners, scores, strict=True):
        states.close()
        if not one.log_sum().isfinite().all():
            inventory = runners[number].inventory
            name = inventory.info(head(inventory)).name
            raise DstoolsError(
                f"{inventory.checkpoint.folder}: {name}: gives NaN or infinity", DAMAGED
            )
    log_sums = [one.log_sum() for one in scores]
    kl = [g / scores[0].sum_T - log_sums[0] + s for g, s in zip(gaps, log_sums, strict=True)]
    return scores, [kl_T.cpu() for kl_T in kl]


class Scores:
    """One model's scores of the next tokens, updated slab by slab. float64 [T], tokens int64."""

    def __init__(self, next_T: Tensor) -> None:
        self.next_T = next_T
        self.next_logit_T = torch.zeros_like(next_T, dtype=torch.float64)
        self.peak_T = torch.full_like(self.next_logit_T, -math.inf)
        self.sum_T = torch.zeros_like(self.next_logit_T)  # of exp(logit - peak)
        self.top_T = torch.zeros_like(next_T)  # the likeliest token, the first of equals

    def add(self, begin: int, first: int, logits_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Add the logits of the tokens from `begin` on for the vocabulary rows from `first` on.

        Return exp(logits - peak) and the factor [T] by which earlier sums of such terms shrink.
        """
        rows = slice(begin, begin + len(logits_TR))
        slab_peak_T, slab_top_T = logits_TR.max(1)
        is_higher_T = slab_peak_T > self.peak_T[rows]
        self.top_T[rows] = torch.where(is_higher_T, first + slab_top_T, self.top_T[rows])
        peak_T = torch.maximum(slab_peak_T, self.peak_T[rows])
        shrink_T = (self.peak_T[rows] - peak_T).exp()
        terms_TR = (logits_TR - peak_T[:, None]).exp()
        self.sum_T[rows] = self.sum_T[rows] * shrink_T + terms_TR.sum(1)
        self.peak_T[rows] = peak_T
        at_T = self.next_T[rows] - first
        is_here_T = (at_T >= 0) & (at_T < logits_TR.shape[1])
        self.next_logit_T[rows][is_here_T] = logits_TR[is_here_T, at_T[is_here_T]]
        return terms_TR, shrink_T

    def log_sum(self) -> Tensor:
        """Return the log-sum-exp of the logits."""
        return self.peak_T + self.sum_T.log()

    def surprise(self) -> Tensor:
        """Return -log of the probability of the next token, nats."""
        return self.log_sum() - self.next_logit_T


def _slabs(inventories: list[Inventory]) -> Iterator[tuple[int, int]]:
    """Yield spans of the vocabulary that are whole blocks of both heads."""
    sizes = (inventory.scheme.block_size[0] for inventory in inventories if inventory.scheme)
    block, rows = math.lcm(*sizes), inventories[0].model.vocab_size
    step = max(SLAB_ROWS // block, 1) * block
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def head(inventory: Inventory) -> TensorName:
    """Return the name of the head's weight."""
    return TensorName("embed_tokens" if inventory.model.is_tied else "lm_head", "weight")
