"""The twin of `mla_merge`, interpreted: equal to its definition, whatever the splits hold."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.mla_merge import mla_merge
from dstools_kernels.ops.triton import mla_merge_triton as twin
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def splits(count: int, heads: int = 3) -> tuple[Tensor, Tensor]:
    """Return partial outputs of `count` splits and their log-sum-exps, every third one empty."""
    draw = torch.Generator().manual_seed(count)
    partial = torch.randn(count, heads, 512, generator=draw)
    lse = torch.randn(count, heads, generator=draw) * 8
    partial[::3], lse[::3] = math.nan, -math.inf
    return partial, lse


def definition(partial: Tensor, lse: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTOOLS_KERNELS", "reference")
        return mla_merge(partial, lse, offsets, dtype)


def test_any_number_of_splits_equals_the_definition() -> None:
    """None, one that is empty, one, two, many, and three that are all empty."""
    partial, lse = splits(80)
    lse[-3:] = -math.inf
    offsets = ints(0, 0, 1, 2, 4, 77, 80)
    with sanitized():
        out = mla_merge(partial, lse, offsets, torch.float32)
    # the same sums in another order, in float32: 70 terms of at most 4
    wanted = definition(partial, lse, offsets, torch.float32)
    assert torch.allclose(out, wanted, rtol=0, atol=2e-6)
    for token in (0, 1, 5):
        assert not out[token].any()


def test_a_split_alone_keeps_its_bits() -> None:
    partial, lse = splits(3)
    assert torch.equal(mla_merge(partial, lse, ints(1, 2), torch.float32)[0], partial[1])


def test_bf16_is_the_nearest() -> None:
    partial, lse = splits(8)
    wide = mla_merge(partial, lse, ints(0, 8), torch.float32)
    assert torch.equal(mla_merge(partial, lse, ints(0, 8)), wide.bfloat16())


def test_nan_and_splits_past_the_end_reach_their_token_alone() -> None:
    partial, lse = splits(8)
    lse[4] = math.nan
    with sanitized():
        out = mla_merge(partial, lse, ints(0, 4, 6, 8, 9))
    assert out.isnan().flatten(1).all(1).tolist() == [False, True, False, True]
    assert not out[[0, 2]].isnan().any()


def far() -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """Return a split past element 2^31 of BF16 outputs; what is not touched costs no memory."""
    split, heads = 2**31 // (128 * 512) + 1, 128
    partial = torch.empty(split + 1, heads, 512, dtype=torch.bfloat16)
    lse = torch.zeros(split + 1, heads)
    partial[split] = 3
    return partial, lse, ints(split, split + 1), torch.float32


def test_splits_past_2_to_the_31_elements_are_read(tmp_path: Path) -> None:
    with sanitized():
        assert (twin.mla_merge(*far()) == 3).all()
    mutant = mutate(twin, "first.to(tl.int64)", "first", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.mla_merge(*far())


def test_a_latent_that_is_no_power_of_two_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(twin, "mla_merge")
    partial, lse = splits(8)
    assert mla_merge(partial[..., :96], lse, ints(0, 8)).shape == (1, 3, 96)


def test_partial_outputs_may_be_views() -> None:
    partial, lse = splits(8)
    wanted = mla_merge(partial[..., :256].contiguous(), lse, ints(0, 8))
    assert torch.equal(mla_merge(partial[..., :256], lse.T.contiguous().T, ints(0, 8)), wanted)


def test_nothing_to_do_launches_nothing() -> None:
    assert mla_merge(*splits(3), ints(0)).shape == (0, 3, 512)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('top == float("-inf"), 0.0, top', 'top == float("-inf"), top, top'),
        ("tl.where(share == 0.0, 0.0, share", "tl.where(share < 0.0, 0.0, share"),
        ("total += share", "total = share"),
        ("tl.exp2(tl.load(lse_ptr + at) - top)", "tl.exp(tl.load(lse_ptr + at) - top)"),
        ("        at += heads\n", "        at += 1\n"),
    ],
)
def test_a_mutant_is_away_from_the_definition(old: str, new: str, tmp_path: Path) -> None:
    mutant = mutate(twin, old, new, tmp_path)
    partial, lse = splits(12)
    lse[9:] = -math.inf
    arguments = (partial, lse, ints(0, 9, 12), torch.float32)
    assert not torch.allclose(mutant.mla_merge(*arguments), definition(*arguments), atol=1e-5)


def test_the_sanitizer_catches_splits_past_the_end(tmp_path: Path) -> None:
    mutant = mutate(twin, "end = tl.minimum(end, capacity)", "end = end + 0", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        mutant.mla_merge(*splits(8), ints(0, 9), torch.float32)
