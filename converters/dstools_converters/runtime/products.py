"""Weights of the serving form and their products by the ops: in the model's dtype, or block FP8."""

import torch.nn.functional as F
from torch import Tensor, nn

from dstools_kernels.fp8 import ScaleFormat
from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.swiglu_quant import swiglu_quant


class Weight(nn.Module):
    """A weight, or those of all experts: in the model's dtype, or FP8 codes where it has scales."""

    scales: Tensor | None  # [..., ceil(N / 128), ceil(K / 128)] float32

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)  # [..., N, K]
        self.register_buffer("scales", None)
        self.scale_format: ScaleFormat = "float32"  # of the inputs of an FP8 product

    @property
    def quantized(self) -> Quantized | None:
        """Return codes and scales; None for a weight in the model's dtype."""
        return None if self.scales is None else Quantized(self.weight, self.scales)


class Stack(Weight):
    """The linear maps of all experts."""

    def forward(self, rows: Tensor | Quantized, offsets: Tensor) -> Tensor:
        """Return [R, N] of `rows` [R, K], sorted by expert; of codes, it is BF16."""
        return moe_gemm(rows, self.quantized or self.weight, offsets)


class Product(Weight):
    """A linear map: by `gemm`, or for FP8 by `act_quant` and `fp8_gemm`."""

    bias: Tensor | None  # [N]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., N] of x [..., K], in its dtype."""
        flat, weight = x.flatten(0, -2), self.quantized
        if weight is None:
            y = gemm(flat, self.weight)
        else:
            y = fp8_gemm(_coded(flat, self.scale_format), weight, x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], len(self.weight))


def use_ops(decoder: nn.Module) -> None:
    """Replace every nn.Linear of a decoder by a `Product` with its weight."""
    for path, module in list(decoder.named_modules()):
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            setattr(decoder.get_submodule(parent), name, Product(module))


def swiglu(x: Tensor, rows: Tensor, offsets: Tensor, gate: Stack, up: Stack, down: Stack) -> Tensor:
    """Return what each expert gives for its rows of x [T, D], [R, D], as `permute` sorts them.

    Weights are all of x's dtype, or all FP8; then the results of all products are BF16.
    """
    if gate.quantized is None or up.quantized is None or down.quantized is None:
        picked = x.index_select(0, rows)
        y: Tensor = down(F.silu(gate(picked, offsets)) * up(picked, offsets), offsets)
        return y
    codes = _coded(x, gate.scale_format, rows)
    sides = [side(codes, offsets) for side in (gate, up)]
    if down.scale_format == "float32":
        codes = swiglu_quant(*sides)
    else:
        wide = F.silu(sides[0].float()) * sides[1].float()
        codes = _coded(wide.to(sides[0].dtype), down.scale_format)
    y = down(codes, offsets)
    return y.to(x.dtype)


def _coded(x: Tensor, scale_format: ScaleFormat, rows: Tensor | None = None) -> Quantized:
    """Return act_quant(x), its scales in the order of memory in which the products read them."""
    return act_quant(x, scale_format, rows=rows, is_transposed=True)
