"""A pool hands out each page once, and takes it back."""

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.pages import PAGE, Pool
from dstools_kernels.ops.latent_pages import PAGE_SIZE


def test_a_page_has_one_owner_until_it_is_given_back() -> None:
    pool = Pool(5, 16)
    assert pool.take(5) == [0, 1, 2, 3, 4]
    pool.give([3, 0, 4, 1, 2])
    first, second = pool.take(2), pool.take(3)
    assert (first, second) == ([3, 0], [4, 1, 2])
    assert pool.free == 0
    pool.give(first)
    assert pool.free == 2
    assert pool.take(2) == first


def test_a_pool_of_any_size_costs_nothing_until_pages_are_taken() -> None:
    pool = Pool(10**25)
    assert pool.take(2) == [0, 1]
    pool.give([0, 1])
    assert pool.take(3) == [0, 1, 2]
    assert pool.free == 10**25 - 3


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_a_page_is_needed_for_each_16_tokens_begun(tokens: int, pages: int) -> None:
    assert Pool(1, 16).needed(tokens) == pages


def test_a_page_has_the_64_tokens_that_the_kernels_read() -> None:
    assert Pool(1).size == PAGE == PAGE_SIZE == 64


@pytest.mark.parametrize(("count", "size"), [(0, 64), (-1, 64), (4, 0)])
def test_a_pool_that_holds_nothing_is_refused(count: int, size: int) -> None:
    with pytest.raises(DstoolsError, match=f"a pool of {count} pages of {size} tokens"):
        Pool(count, size)
