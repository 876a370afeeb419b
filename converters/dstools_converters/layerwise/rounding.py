"""Rounding of one weight by the best method that its activations allow, and a note of which.

A weight that saw at least as many tokens as it has inputs is rounded by its own Hessian: fewer
leave directions unseen. Gate and up of a routed expert that saw fewer use the Hessian of all tokens
of the layer; any other weight is rounded to nearest. So is one whose error on the data the method
does not reduce. (The policy of ModelOpt and llm-compressor, all experts on all tokens, costs a
forward pass and inflates the statistics of cold experts: NVIDIA/Model-Optimizer#1380.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple

from torch import Tensor

from dstools_converters.sidefiles.calibration import Hessian, Method, WeightNote
from dstools_kernels import gptq
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import ScaleFormat

Searching = Literal["gptq", "mse"]  # methods that use activations
BLOCK = 512  # rows of a Hessian at a time, at most


@dataclass
class Seen:
    """Activations that weights are multiplied with: X^T X of all tokens so far, float32 [D, D]."""

    total: Tensor  # of X^T X; right of the diagonal blocks it is written when it is asked for
    tokens: int = 0
    _factor: gptq.Factor | None = None

    def add(self, values_TD: Tensor) -> None:
        """Add the tokens of `values_TD`: the blocks up to the diagonal, half of the work."""
        for rows, left, _ in self._blocks():
            self.total[rows, left].addmm_(values_TD[:, rows].T, values_TD[:, left])
        self.tokens += len(values_TD)

    def hessian(self) -> Tensor:
        """Return the sum, float32 [D, D]."""
        for rows, _, right in self._blocks():
            self.total[rows, right] = self.total[right, rows].T
        return self.total

    def factor(self) -> gptq.Factor:
        """Return the factor that `gptq` takes, computed once for all weights with this input."""
        if self._factor is None:
            self._factor = gptq.factorize(self.hessian())
        return self._factor

    def _blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield the rows of each block, the columns up to its diagonal, and those right of it."""
        width = len(self.total)
        step = -(-width // -(-width // BLOCK))
        for start in range(0, width, step):
            stop = min(start + step, width)
            yield slice(start, stop), slice(0, stop), slice(stop, width)


class Rounded(NamedTuple):
    """A weight in FP8, with the method and its errors."""

    codes: Tensor  # uint8 [rows, cols]
    scale_inv: Tensor  # float32 [blocks, blocks]
    method: Method
    why: str  # the reason for "nearest" or "lossless", else empty
    error_nearest: float | None  # rms of (W - Q) x / rms of W x; None if no token was seen
    error: float | None

    def note(self, weight: Tensor, block: int, hessian: Hessian, tokens: int) -> WeightNote:
        """Return the entry of calibration.json for the float32 `weight`, which saw `tokens`."""
        plain = gptq.nearest(weight, self.scale_inv, block)
        steps = gptq.steps_apart(self.codes, plain)
        sums = block_fp8.difference(
            raw(weight), raw(gptq.restore(self.codes, self.scale_inv, block))
        )
        digest = sha256(raw(self.codes))
        digest.update(raw(self.scale_inv))
        return WeightNote(
            method=self.method,
            why=self.why,
            error_nearest=self.error_nearest,
            error=self.error,
            weight_error=math.sqrt(sums.sum_sq_diff / sums.sum_sq_a) if sums.sum_sq_a else 0.0,
            moved=int((steps > 0).sum()),
            far=int((steps > 1).sum()),
            numel=weight.numel(),
            sha256=digest.hexdigest(),
            hessian=hessian if self.method in ("gptq", "mse") else "none",
            tokens=tokens,
        )


def round_weight(
    weight: Tensor, seen: Seen | None, method: Searching, scale_format: ScaleFormat, block: int
) -> Rounded:
    """Return float32 `weight` [rows, cols] in FP8, by `method` if that lowers the error."""
    scale_inv = gptq.scales(weight, scale_format, block)
    codes = gptq.nearest(weight, scale_inv, block)
    plain = Rounded(codes, scale_inv, "nearest", "", None, None)
    if seen is None:
        return plain._replace(why=too_few(0, weight))
    hessian = seen.hessian()
    reference2 = gptq.output_power(weight, hessian)
    error = output_error(weight, codes, scale_inv, block, hessian, reference2)
    if not math.isfinite(error):
        return plain._replace(why="what it is multiplied with overflows float32")
    plain = plain._replace(error_nearest=error, error=error)
    if seen.tokens < weight.shape[1]:
        return plain._replace(why=too_few(seen.tokens, weight))
    try:
        if method == "mse":
            input_power = hessian.diagonal() / seen.tokens
            scale_inv = gptq.search_scales(weight, input_power, scale_format, block)
            codes = gptq.nearest(weight, scale_inv, block)
        else:
            codes = gptq.gptq(weight, seen.factor(), scale_inv, block)
    except ValueError as failure:  # the Hessian cannot be used; the message says why
        return plain._replace(why=str(failure))
    tuned_error = output_error(weight, codes, scale_inv, block, hessian, reference2)
    if not tuned_error < error:
        return plain._replace(why=f"{method} brings it no nearer on the data")
    return Rounded(codes, scale_inv, method, "", error, tuned_error)


def too_few(tokens: int, weight: Tensor) -> str:
    """Return the reason for rounding to nearest after `tokens` tokens."""
    return f"it saw {tokens} tokens, fewer than its {weight.shape[1]} inputs"


def output_error(
    weight: Tensor, codes: Tensor, scale_inv: Tensor, block: int, hessian: Tensor, reference2: float
) -> float:
    """Return rms of (W - Q) x over rms of W x on the tokens seen; 0 if W x is 0.

    `reference2` is the output power of W. Returns NaN if float32 overflows.
    """
    difference = gptq.restore(codes, scale_inv, block).sub_(weight)
    error2 = gptq.output_power(difference, hessian)
    return 0.0 if reference2 <= 0 else math.sqrt(max(error2, 0) / reference2)


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on any device."""
    return tensor.cpu().contiguous().numpy().data.cast("B")
