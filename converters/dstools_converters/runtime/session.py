"""A serving form with caches for a pool of pages: the model that a loop runs."""

import math
import os

import torch
from torch import Tensor

from dstools_converters.runtime.pages import PAGE, Batch, Pool
from dstools_converters.runtime.serving import Serving

CPU_PAGE = 256  # tokens, at most; one page is copied faster than many, where latents are attended
SHARE = 0.5  # of a machine's memory, or of what is free on a GPU, that caches may take


class Session:
    """The steps of a serving form, as `decode.Model` has them."""

    def __init__(self, serving: Serving, pool: Pool) -> None:
        self.serving, self.device = serving, serving.angles.cos.device
        self.vocab_size, self.positions = serving.model.vocab_size, serving.positions
        self.caches = serving.new_caches(pool.count, pool.size)

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] after the new tokens at `rows`, and the states [T, D]."""
        logits, hidden = self.serving(self._moved(batch), rows.to(self.device), self.caches)
        return logits, hidden

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the MTP layer drafts at `rows` [R, V], and the states [R, D]."""
        rows = rows.to(self.device)
        return self.serving.draft(self._moved(batch), hidden, rows, self.caches)

    def _moved(self, batch: Batch) -> Batch:
        return Batch(*(part.to(self.device) for part in batch))


def pool_for(serving: Serving, lengths: list[int], rows: int) -> Pool:
    """Return a pool for sequences of `lengths`, of which `rows` run at a time.

    It has room for the longest ones at once, or as much as SHARE of the memory holds. On a CPU
    pages take memory only when they are written.
    """
    weight = serving.decoder.model.embed_tokens.weight
    size = PAGE if weight.is_cuda else min(CPU_PAGE, max(lengths, default=1))
    needs = sorted((-(-length // size) for length in lengths), reverse=True)
    of_token = sum(math.prod(entry) for entry in serving.entries) * weight.itemsize
    if weight.is_cuda:
        free = torch.cuda.mem_get_info(weight.device)[0]
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = int(SHARE * free) // (of_token * size)
    return Pool(max(1, min(sum(needs[:rows]), most)), size)
