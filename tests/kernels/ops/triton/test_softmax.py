"""The online softmax over blocks of keys: against float64 over all of them."""

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

import triton
import triton.language as tl

from dstools_kernels.ops.triton import softmax
from dstools_kernels.ops.triton.softmax import LOG2_E, LOWEST
from dstools_kernels.proof.mutate import mutate

BLOCKS, KEYS = 4, 16
BOUND = 2**-9  # shares are rounded to BF16, each by at most 2^-9 of itself


@triton.jit
def attend(scores_ptr, values_ptr, out_ptr, BLOCKS: tl.constexpr, add_block: tl.constexpr):
    """Write the attention of 16 rows with `scores` [16, BLOCKS x 16] to values of 16 columns."""
    row = tl.arange(0, 16)
    top = tl.full((16,), LOWEST, tl.float32)
    total, out = tl.zeros((16,), tl.float32), tl.zeros((16, 16), tl.float32)
    for block in range(BLOCKS):
        key = block * 16 + row
        scores = tl.load(scores_ptr + row[:, None] * (BLOCKS * 16) + key[None, :]) * LOG2_E
        values = tl.load(values_ptr + key[:, None] * 16 + row[None, :])
        top, total, out = add_block(scores, values, top, total, out)
    tl.store(out_ptr + row[:, None] * 16 + row[None, :], out / total[:, None])


def error(module: ModuleType) -> float:
    """Return the distance to float64 for scores that rise and fall from block to block."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(16, BLOCKS * KEYS, generator=draw)
    scores += torch.tensor([0.0, 4.0, -4.0, 8.0]).repeat_interleave(KEYS)
    values = torch.randn(BLOCKS * KEYS, 16, generator=draw).bfloat16()
    out = torch.empty(16, 16)
    attend[(1,)](scores, values, out, BLOCKS, module.add_block)
    wanted = scores.double().softmax(-1) @ values.double()
    return float((out - wanted).norm() / wanted.norm())


def test_blocks_of_keys_give_the_softmax_over_all() -> None:
    assert error(softmax) < BOUND


@pytest.mark.parametrize(
    ("old", "new"), [("out * shrink[:, None]", "out"), ("total * shrink", "total")]
)
def test_a_mutant_is_away_from_float64(old: str, new: str, tmp_path: Path) -> None:
    """The second block has scores 4 higher, so that those before it count e^4 times too much."""
    assert error(mutate(softmax, old, new, tmp_path)) > BOUND


def test_the_constants() -> None:
    assert math.exp2(LOG2_E.value) == pytest.approx(math.e, rel=1e-15)
    assert torch.finfo(torch.float32).min == LOWEST.value
