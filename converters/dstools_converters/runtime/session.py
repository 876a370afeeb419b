"""A serving form with caches for a pool of pages: the model that a loop runs."""

from torch import Tensor

from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.serving import Serving


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
        """Return what the MTP layer drafts at `rows` [R, V], and the states [T, D]."""
        rows = rows.to(self.device)
        return self.serving.draft(self._moved(batch), hidden, rows, self.caches)

    def _moved(self, batch: Batch) -> Batch:
        return Batch(*(part.to(self.device) for part in batch))
