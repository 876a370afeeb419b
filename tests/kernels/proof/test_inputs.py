"""Inputs of the cases: every tie, NaN where no row wrote, ragged groups."""

import torch

from dstools_kernels.proof import inputs

CPU = torch.device("cpu")


def test_activations_to_quantize_hold_every_tie_of_e4m3() -> None:
    group = inputs.with_ties(CPU, 3, 256)[0, :128]
    assert group.abs().max() == 448  # so that the scale is 1
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(group[:126].float(), (codes[:-1] + codes[1:]) / 2)


def test_rows_of_a_pool_that_no_one_wrote_are_nan() -> None:
    lengths = torch.tensor([1, 64, 65], dtype=torch.int32)
    pool, table = inputs.pool(CPU, lengths, is_fp8=False)
    is_written = pool.isfinite().all(-1)
    assert is_written.sum() == lengths.sum()
    assert is_written[table[0, 0]].tolist() == [True] + 63 * [False]


def test_groups_of_experts_are_ragged_and_the_first_is_empty() -> None:
    assert inputs.offsets(CPU, 130, 4).tolist() == [0, 0, 25, 71, 130]
    assert inputs.offsets(CPU, 7, 1).tolist() == [0, 7]
