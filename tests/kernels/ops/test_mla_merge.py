"""The splits of a softmax, joined: equal to the whole one, with any number of splits."""

import math

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.mla_merge import mla_merge

LOG2_E = math.log2(math.e)


def parts(scores: Tensor, values: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the attention and log-sum-exp of each split of keys: scores [H, n], values [n, L]."""
    partial = torch.full((len(sizes), len(scores), values.shape[1]), math.nan)
    lse = torch.full((len(sizes), len(scores)), -math.inf)
    begin = 0
    for i, size in enumerate(sizes):
        if size:
            some = slice(begin, begin + size)
            partial[i] = scores[:, some].softmax(-1) @ values[some]
            lse[i] = scores[:, some].logsumexp(-1) * LOG2_E
        begin += size
    return partial, lse


@pytest.mark.parametrize("sizes", [[7], [3, 4], [0, 7, 0], [1] * 7, [2, 0, 0, 5, 0]])
def test_splits_of_any_number_and_size_make_the_whole(sizes: list[int]) -> None:
    draw = torch.Generator().manual_seed(len(sizes))
    scores, values = torch.randn(4, 7, generator=draw) * 9, torch.randn(7, 16, generator=draw)
    offsets = torch.tensor([0, len(sizes)], dtype=torch.int32)
    out = mla_merge(*parts(scores, values, sizes), offsets, torch.float32)
    # float32 throughout; scores of up to 30 lose 2^-24 x 30 in exp
    assert torch.allclose(out[0], scores.softmax(-1) @ values, rtol=0, atol=2e-5)


def test_tokens_have_splits_of_their_own() -> None:
    """Two splits of equal weight, none, and one: the mean, 0, and the split itself."""
    partial = torch.tensor([[[2.0]], [[4.0]], [[5.0]]])
    lse = torch.tensor([[3.0], [3.0], [-7.0]])
    out = mla_merge(partial, lse, torch.tensor([0, 2, 2, 3], dtype=torch.int32))
    assert out.dtype == torch.bfloat16
    assert out.flatten().tolist() == [3.0, 0.0, 5.0]


def test_tokens_whose_splits_are_all_empty_get_0() -> None:
    partial, lse = torch.full((3, 2, 8), math.nan), torch.full((3, 2), -math.inf)
    assert not mla_merge(partial, lse, torch.tensor([0, 3], dtype=torch.int32)).any()


@pytest.mark.parametrize("shift", [-3e38, 0, 3e38])
def test_far_apart_splits_neither_overflow_nor_vanish(shift: float) -> None:
    partial = torch.tensor([[[1.0]], [[3.0]]])
    lse = torch.tensor([[shift], [shift - 1e38]])
    assert mla_merge(partial, lse, torch.tensor([0, 2], dtype=torch.int32)).item() == 1.0


def test_nan_reaches_its_token_alone() -> None:
    partial = torch.ones(3, 1, 4)
    lse = torch.tensor([[0.0], [math.nan], [0.0]])
    out = mla_merge(partial, lse, torch.tensor([0, 2, 3], dtype=torch.int32))
    assert out[0].isnan().all()
    assert out[1].tolist() == [[1.0] * 4]


def test_no_tokens() -> None:
    out = mla_merge(torch.ones(0, 2, 4), torch.ones(0, 2), torch.tensor([0], dtype=torch.int32))
    assert out.shape == (0, 2, 4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 1, 4\], \[2, 2\], \[2\]"):
        mla_merge(torch.ones(2, 1, 4), torch.ones(2, 2), torch.tensor([0, 2]))
