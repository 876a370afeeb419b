"""Comparisons of an op's result on a card with its definition's: is it right, and how far off.

Bytes, ids and orders have to be equal and weights of the router within 1e-6 of the largest one or
of 1. The norm of the difference has to be within 2.5e-3 of the definition's for sums and products
in BF16 (rounding both makes 1.7e-3 of it, Hopper's FP8 accumulator up to 0.6e-3 more), within 1e-3
for those in float32 (rounding one of them to BF16 would make 1.2e-3), and within 2^-8 for
attention, whose probabilities are rounded, too. The share of equal results is reported: tensor
cores do not add as the definition does.
"""

from typing import Any

import torch
from torch import Tensor

SUM_NORM, FLOAT32_SUM_NORM, ATTENTION_NORM = 2.5e-3, 1e-3, 2.0**-8
WEIGHT = 1e-6


def equal(result: Any, wanted: Any) -> tuple[bool, str]:
    """Compare a tensor, or each of a tuple, of 1, 2 or 4 bytes an element by bits, NaN included."""
    pairs = list(zip(_parts(result), _parts(wanted), strict=True))
    wrong = sum(int((_bits(a) != _bits(b)).sum()) for a, b in pairs)
    return not wrong, f"{wrong} of {sum(a.numel() for a, _ in pairs)} values differ"


def near_sum(result: Tensor, wanted: Tensor) -> tuple[bool, str]:
    """Compare sums or products, BF16 or float32 of any shape, by the norm of the difference."""
    is_float32 = wanted.dtype == torch.float32
    return _near(result, wanted, FLOAT32_SUM_NORM if is_float32 else SUM_NORM)


def near_attention(result: Tensor, wanted: Tensor) -> tuple[bool, str]:
    """Compare attention, BF16 of any shape, by the norm of the difference."""
    return _near(result, wanted, ATTENTION_NORM)


def _near(result: Tensor, wanted: Tensor, most: float) -> tuple[bool, str]:
    a, b = result.double(), wanted.double()
    same = (result == wanted).double().mean().item() if a.numel() else 1.0
    error = ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
    return error <= most, f"{error:.1e} of the norm, {100 * same:.2f} % equal"


def one_step(result: Any, wanted: Any) -> tuple[bool, str]:
    """Compare codes of SwiGLU, of which one in a thousand may be a step off, and their scales.

    An ulp of the exponential moves one in 10,000 of its results in BF16 to a neighbour, which is at
    most 2^-7 away, and with it a code in 16; where it is the largest of its group, the scale, too.
    """
    codes = result.codes.view(torch.uint8).int(), wanted.codes.view(torch.uint8).int()
    steps = (codes[0] - codes[1]).abs()
    steps = torch.where((codes[0] | codes[1]) & 0x7F <= 1, 0, steps)  # 0 and -0, or the smallest
    off = (steps > 0).double().mean().item() if steps.numel() else 0.0
    close = torch.allclose(result.scales, wanted.scales, rtol=2.0**-7, atol=0)
    most = int(steps.max()) if steps.numel() else 0
    return (
        close and most <= 1 and off <= 1e-3,
        f"{100 * off:.3f} % of codes differ, by {most} at most",
    )


def routed(result: Any, wanted: Any) -> tuple[bool, str]:
    """Compare ids int32 [T, k], the experts of a token in any order, and weights float32 [T, k]."""
    (ids, weights), (wanted_ids, wanted_weights) = _by_id(*result), _by_id(*wanted)
    wrong = int((ids != wanted_ids).any(-1).sum())
    off = (weights - wanted_weights).abs().max().item() if weights.numel() else 0.0
    largest = max(1.0, wanted_weights.max().item()) if weights.numel() else 1.0  # V2 has 16 times
    return not wrong and off <= WEIGHT * largest, f"{wrong} tokens differ, weights by {off:.0e}"


def _by_id(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    ids, order = ids.sort(-1)
    return ids, weights.gather(-1, order)


def _parts(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _bits(x: Tensor) -> Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(sizes[x.itemsize])
