"""GPTQ: FP8 codes for a weight, chosen by the correlation of its inputs, and the error they cause.

A weight W [R, C] is applied to inputs x [C]; H = sum of x x^T [C, C] over calibration tokens is its
Hessian. Codes Q on a fixed block grid (`block_fp8`) change the outputs by tr((W-Q) H (W-Q)^T).

    scale_inv = scales(weight, "float32")
    factor = factorize(hessian)                   once for all weights with the same inputs
    codes = gptq(weight, factor, scale_inv)       instead of nearest(weight, scale_inv)
    output_power(weight - restore(codes, scale_inv), hessian)

GPTQ (Frantar et al., arXiv 2210.17323) rounds one column at a time and adds its error to the
columns still to come. Here in the form of Babai's nearest plane (Chen et al., arXiv 2507.18553),
which gives the same codes without an inverse: with H = L L^T, L lower triangular, the error is
|(W-Q) L|^2; its column j holds only columns i >= j of W-Q, so from the last column to the first

    target_j = W_j + sum over i > j of (W-Q)_i L_ij / L_jj,    Q_j = the code nearest to target_j

All tensors are on one device, CPU or CUDA. The same inputs and threads give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_kernels.formats.block_fp8 import NonFiniteError
from dstools_kernels.fp8 import AMAX_FLOOR, E4M3_MAX, SEARCHED, ScaleFormat

LEAF_COLUMNS = 64  # rounded one by one before a matrix product
SLAB_ROWS = 512  # of a large matrix at a time, so that no second one is made
DAMPING = 0.01  # 0.1 left 1 % more error on held-out text, 0.001 as much: docs/log.md 2026-11-22
DAMPING_LIMIT = 10.0  # above that the damping outweighs all correlations


class Factor(NamedTuple):
    """The factor of a damped Hessian, for `gptq`."""

    order: Tensor  # [C] int64: column order[j] of the weight is the j-th here; the last goes first
    lower: Tensor  # [C, C] float32: below the diagonal L_ij / L_jj; the rest is unused


def scales(weight: Tensor, scale_format: ScaleFormat, block_size: int = 128) -> Tensor:
    """Return scale_inv float32 [blocks of rows, blocks of cols]: each block's amax becomes 448.

    `weight` is float32 [R, C]; the bits are those of block_fp8.quantize. Raises NonFiniteError
    where the weight holds infinity or NaN.
    """
    amax = torch.stack(
        [_block_sums(slab.abs(), block_size, "amax") for _, slab in _slabs(weight, block_size)]
    )
    if not amax.isfinite().all():
        row, col = (~weight.isfinite()).nonzero()[0].tolist()
        raise NonFiniteError(row, col)
    amax.clamp_(min=AMAX_FLOOR[scale_format])
    scale = amax / torch.full_like(amax, E4M3_MAX)  # a tensor: CUDA multiplies by 1 / number
    if scale_format == "float32":
        return scale
    bits = scale.view(torch.int32)
    up = (bits & 0x7FFFFF != 0).int() << 23
    return ((bits & 0x7F800000) + up).view(torch.float32)


def nearest(weight: Tensor, scale_inv: Tensor, block_size: int = 128) -> Tensor:
    """Return the codes uint8 [R, C] nearest to `weight` float32 [R, C], saturated at +-448.

    With the scales of `scales` the bytes are those of block_fp8.quantize. Finite weights only.
    Raises ValueError where `scale_inv` has another shape than the blocks.
    """
    _check_grid(weight, scale_inv, block_size)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    for block, (top, slab) in enumerate(_slabs(weight, block_size)):
        scale_C = _spread(scale_inv[block], block_size, weight.shape[1])
        codes[top : top + len(slab)] = _codes(slab / scale_C)
    return codes


def restore(codes: Tensor, scale_inv: Tensor, block_size: int = 128) -> Tensor:
    """Return float32(code) * scale_inv [R, C] for `codes` uint8 [R, C], not rounded to BF16.

    Raises ValueError where `scale_inv` has another shape than the blocks.
    """
    _check_grid(codes, scale_inv, block_size)
    weight = torch.empty_like(codes, dtype=torch.float32)
    for block, (top, slab) in enumerate(_slabs(codes, block_size)):
        scale_C = _spread(scale_inv[block], block_size, codes.shape[1])
        weight[top : top + len(slab)] = slab.view(torch.float8_e4m3fn).float() * scale_C
    return weight


def factorize(hessian: Tensor) -> Factor:
    """Return the Cholesky factor of `hessian` float32 [C, C], columns sorted, diagonal damped.

    DAMPING times the mean of the diagonal is added to the diagonal; where that is not positive
    definite in float32, ten times as much, and so on up to DAMPING_LIMIT. An input never seen (zero
    row and column) is not correlated with others, and its weights are rounded to nearest; GPTQ
    makes them zero, which would break the first token that does use it.

    The hessian is not changed, and one more [C, C] is made, nothing else of that size: a process
    that also holds a weight [7168, 18432] peaks at 3.4 GiB here, at 4.7 in `gptq`. Raises
    ValueError where the hessian is zero, not finite, or not positive definite: use `nearest`.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    if not mean.isfinite() or mean <= 0:
        raise ValueError(f"the Hessian's diagonal must have a positive mean, got {mean.item()}")
    order = diagonal.argsort(stable=True)  # the input with the most power goes first, see gptq
    info = torch.zeros((), dtype=torch.int32, device=hessian.device)
    damping = DAMPING
    while damping <= DAMPING_LIMIT:
        lower = hessian[order]
        for _, rows in _slabs(lower, SLAB_ROWS):
            rows.copy_(rows[:, order])
        lower.diagonal().add_(damping * mean)
        # by columns, a symmetric matrix is its own transpose: so LAPACK gets what it would copy
        lower = lower.mT
        torch.linalg.cholesky_ex(lower, out=(lower, info))
        if info == 0:
            lower.div_(lower.diagonal().clone())
            return Factor(order, lower)
        del lower
        damping *= 10
    raise ValueError("the Hessian is not positive definite, whatever the damping")


def gptq(weight: Tensor, factor: Factor, scale_inv: Tensor, block_size: int = 128) -> Tensor:
    """Return codes uint8 [R, C] that nearly keep the outputs of `weight` float32 [R, C].

    Every element has the scale of its block, for any order of columns. No code is NaN; a weight of
    -0 may get the code of +0. Holds two more float32 [R, C] beside the weight, and the codes twice.

    Raises ValueError where shapes do not fit, and where the weight is so large that float32
    overflows on the way.
    """
    rows, cols = weight.shape
    _check_grid(weight, scale_inv, block_size)
    if factor.lower.shape != (cols, cols):
        raise ValueError(f"the factor must be for {cols} inputs, got {len(factor.order)}")
    weight_CR = weight.T.contiguous()[factor.order]
    carried_CR = weight_CR.clone()  # the target of a column, then its error
    codes_CR = torch.empty_like(weight_CR, dtype=torch.uint8)
    scale_BR = _spread(scale_inv.T, block_size, rows)
    for done, stop in enumerate(range(cols, 0, -LEAF_COLUMNS), start=1):
        start = max(stop - LEAF_COLUMNS, 0)
        columns = factor.order[start:stop]
        with _one_thread():
            codes_CR[columns] = _round_columns(
                carried_CR[start:stop],
                weight_CR[start:stop],
                factor.lower[start:stop, start:stop],
                scale_BR[columns // block_size],
            )
        # Recursive halves: after leaf 1, 2, 3, 4, ... the last 1, 2, 1, 4, ... leaves pass their
        # errors to as many before them, so that most of the work is products of large matrices.
        span = (done & -done) * LEAF_COLUMNS
        before, last = slice(max(start - span, 0), start), slice(start, start + span)
        carried_CR[before].addmm_(factor.lower[last, before].T, carried_CR[last])
    return codes_CR.T.contiguous()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch's CPU work on one thread: a column is too short to share.

    On a busy machine each operation on two threads waits for the second thread: [2048, 2048] took
    75 s instead of 8 s, docs/log.md 2026-11-22.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _round_columns(
    carried_NR: Tensor, weight_NR: Tensor, lower_NN: Tensor, scale_NR: Tensor
) -> Tensor:
    """Return the codes [N, R] of N columns, the last first; errors overwrite the targets."""
    quotient_NR = torch.empty_like(carried_NR)
    for j in reversed(range(len(carried_NR))):
        carried_R, quotient_R = carried_NR[j], quotient_NR[j]
        carried_R.addmv_(carried_NR[j + 1 :].T, lower_NN[j + 1 :, j])
        torch.div(carried_R, scale_NR[j], out=quotient_R).clamp_(-E4M3_MAX, E4M3_MAX)
        torch.sub(weight_NR[j], _round_e4m3(quotient_R).mul_(scale_NR[j]), out=carried_R)
    if quotient_NR.isnan().any():
        raise ValueError("the weight overflows float32 when errors are added")
    return _codes(quotient_NR)


def _round_e4m3(x: Tensor) -> Tensor:
    """Return float32 |x| <= 448 rounded to E4M3, as casts there and back would; -0 becomes +0.

    In torch the cast back alone takes longer. Codes are 2^-3 of x's power of two apart, at least
    2^-9; the last bit of 1.5 * 2^20 times that power has this value, so adding and subtracting that
    rounds, nearest even.
    """
    power = (x.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0**-6)
    anchor = power.mul_(1.5 * 2**20)
    return (x + anchor).sub_(anchor)


def output_power(weight: Tensor, hessian: Tensor) -> float:
    """Return tr(W H W^T), the sum of the squared outputs of W; for W - Q, the squared output error.

    `weight` is float32 [R, C], `hessian` float32 [C, C]. Products in float32, sums in float64; some
    rows at a time.
    """
    power = 0.0
    for _, rows in _slabs(weight, SLAB_ROWS):
        power += _quadratic(rows, hessian)
    return power


def _quadratic(x_RC: Tensor, hessian: Tensor) -> float:
    """Return tr(X H X^T); H is symmetric, so blocks left of the diagonal count twice."""
    total = 0.0
    for start in range(0, x_RC.shape[1], SLAB_ROWS):
        part = slice(start, start + SLAB_ROWS)
        product = x_RC[:, part] @ hessian[part, part]
        product.addmm_(x_RC[:, :start], hessian[:start, part], alpha=2)
        total += product.mul_(x_RC[:, part]).sum(dtype=torch.float64).item()
    return total


def search_scales(
    weight: Tensor, input_power: Tensor | None, scale_format: ScaleFormat, block_size: int = 128
) -> Tensor:
    """Return the scale_inv of least squared rounding error, block by block.

    Tries multiples of the scale of `scales`: 0.7 to 1.3 in steps of 0.05, for ue8m0 1/2, 1 and 2.
    `input_power` float32 [C], the mean square of each input, weights the columns. The first of
    equals wins; the scale of `scales` is tried first.
    """
    start = scales(weight, scale_format, block_size)
    floor = scales(weight.new_zeros(1, 1), scale_format)  # a block of zeros keeps its scale
    best, least = start, torch.full_like(start, torch.inf, dtype=torch.float64)
    for factor in SEARCHED[scale_format]:
        candidate = torch.maximum(start * factor, floor)
        error = _squared_error(weight, input_power, candidate, block_size)
        best = torch.where(error < least, candidate, best)
        least = torch.minimum(error, least)
    return best


def steps_apart(a_codes: Tensor, b_codes: Tensor) -> Tensor:
    """Return int16, of any shape: the number of FP8 steps from code a to code b; +0 equals -0."""
    return (_ordinal(a_codes) - _ordinal(b_codes)).abs()


def _ordinal(codes: Tensor) -> Tensor:
    magnitude = (codes & 0x7F).short()
    return torch.where(codes > 0x7F, -magnitude, magnitude)


def _codes(quotient: Tensor) -> Tensor:
    """Return the codes uint8 nearest to float32; the cast alone would not clamp."""
    return quotient.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def _squared_error(
    weight: Tensor, input_power: Tensor | None, scale_inv: Tensor, block_size: int
) -> Tensor:
    """Return float64 [blocks, blocks]: the squared error of rounding to nearest, weighted."""
    sums = []
    for block, (_, slab) in enumerate(_slabs(weight, block_size)):
        scale_C = _spread(scale_inv[block], block_size, weight.shape[1])
        error = slab - _codes(slab / scale_C).view(torch.float8_e4m3fn).float() * scale_C
        square = error.square_()
        if input_power is not None:
            square *= input_power
        sums.append(_block_sums(square, block_size, "sum"))
    return torch.stack(sums)


def _block_sums(slab: Tensor, block_size: int, how: str) -> Tensor:
    """Return [blocks of cols]: "amax" float32 or "sum" float64 over each block of one block row."""
    by_col = slab.amax(0) if how == "amax" else slab.sum(0, dtype=torch.float64)
    by_col = torch.nn.functional.pad(by_col, (0, -len(by_col) % block_size))
    blocks = by_col.view(-1, block_size)
    return blocks.amax(1) if how == "amax" else blocks.sum(1)


def _slabs(matrix: Tensor, block_size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) for each row of blocks."""
    for top in range(0, len(matrix), block_size):
        yield top, matrix[top : top + block_size]


def _spread(per_block: Tensor, block_size: int, count: int) -> Tensor:
    """Repeat the last dimension, one number a block, to one number for each of `count` elements."""
    return per_block.repeat_interleave(block_size, -1)[..., :count]


def _check_grid(matrix: Tensor, scale_inv: Tensor, block_size: int) -> None:
    wanted = [-(-side // block_size) for side in matrix.shape]
    if list(scale_inv.shape) != wanted:
        raise ValueError(f"scale_inv must be {wanted}, got {list(scale_inv.shape)}")
