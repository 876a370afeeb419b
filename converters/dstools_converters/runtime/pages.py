"""Pages of a cache: a pool that rows take them from, and a batch of new tokens that names them."""

from typing import NamedTuple

from torch import Tensor

from dstools_converters.errors import DstoolsError
from dstools_kernels.ops.latent_pages import PAGE_SIZE

PAGE = PAGE_SIZE  # tokens of a page that the kernels of MLA read


class Batch(NamedTuple):
    """The new tokens of all rows, end to end. The names are those of onnxruntime-genai."""

    input_ids: Tensor  # [T] int64
    block_table: Tensor  # [B, N] int32, the pages of each row
    cumulative_sequence_lengths: Tensor  # [B + 1] int32, where the new tokens of each row begin
    past_sequence_lengths: Tensor  # [B] int32, tokens that the cache has


class Pool:
    """The free pages of a cache of `count` pages with `size` tokens each.

    Those that came back last are taken first; then new ones, by number. New ones are
    only counted, so that a pool of any size costs nothing.
    """

    def __init__(self, count: int, size: int = PAGE) -> None:
        if count < 1 or size < 1:
            raise DstoolsError(
                f"a pool of {count} pages of {size} tokens holds nothing", "make it larger"
            )
        self.count, self.size = count, size
        self._new = 0  # the first page that was never taken
        self._returned: list[int] = []

    @property
    def free(self) -> int:
        """Return how many pages are free."""
        return self.count - self._new + len(self._returned)

    def needed(self, tokens: int) -> int:
        """Return the pages that hold `tokens`."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """Return `count` pages, which are no longer free; there must be as many."""
        assert count <= self.free
        again = [self._returned.pop() for _ in range(min(count, len(self._returned)))]
        first, self._new = self._new, self._new + count - len(again)
        return [*again, *range(first, self._new)]

    def give(self, pages: list[int]) -> None:
        """Take pages back; the first of them is the next one taken."""
        self._returned += reversed(pages)
