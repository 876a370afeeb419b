"""SwiGLU between the projections of an FP8 MLP, and its quantization for the down projection.

    h = dtype(silu(float32(gate)) * float32(up))    rounded once, to the dtype of the two
    codes, scales = act_quant(h)

Source: deepseek-ai/DeepSeek-V3, inference/model.py, MLP, which rounds silu(gate), too.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.dispatch import runs_twin


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return h [R, I], for MLPs that are not quantized.

    Raises ValueError where `gate` and `up` are not two matrices of one shape and dtype.
    """
    _check(gate, up)
    if runs_twin("swiglu", gate, gate.dtype == torch.bfloat16, "BF16"):
        from dstools_kernels.ops.triton import swiglu_quant_triton

        return swiglu_quant_triton.swiglu(gate, up)
    return (silu(gate.float()) * up.float()).to(gate.dtype)


def swiglu_quant(gate: Tensor, up: Tensor) -> Quantized:
    """Return E4M3 codes [R, I] and float32 scales [R, I / 128], ceil, of silu(gate) x up [R, I].

    Raises ValueError where `gate` and `up` are not two matrices of one shape and dtype.
    """
    _check(gate, up)
    if runs_twin("swiglu_quant", gate, gate.dtype == torch.bfloat16, "BF16"):
        from dstools_kernels.ops.triton import swiglu_quant_triton

        return Quantized(*swiglu_quant_triton.swiglu_quant(gate, up))
    return act_quant((silu(gate.float()) * up.float()).to(gate.dtype))


def _check(gate: Tensor, up: Tensor) -> None:
    if gate.ndim != 2 or gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            "gate and up must be matrices of one shape and dtype, got "
            f"{gate.dtype} {list(gate.shape)} and {up.dtype} {list(up.shape)}"
        )
