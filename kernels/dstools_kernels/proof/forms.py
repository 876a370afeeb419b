"""Other forms of ops, that only a card can rank: of `mla_decode`, and vendors' kernels.

A form that is wrong, cannot be imported or cannot be executed stays off: that is a result, too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.dispatch import kernels
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.proof import roofline
from dstools_kernels.proof.cases import Case
from dstools_kernels.proof.comparisons import near_attention, near_sum
from dstools_kernels.proof.inputs import decode_inputs, product_inputs

OF_DECODE = ("bf16.64x64", "bf16.128x32", "fp8.32x32", "fp8.128x16", "bf16.gluon")  # it may hang


def decode_forms(lengths: list[int], heads: int = roofline.HEADS) -> list[Case]:
    """Return a case for each form of `mla_decode`, of one new token a row."""
    return [_decode_form(form, lengths, heads) for form in OF_DECODE]


def vendor_forms(m: int, n: int, k: int) -> list[Case]:
    """Return a case for each vendor's product of block FP8."""
    forms = {"torch scaled_mm": _scaled_mm, "deep_gemm": _deep_gemm}
    return [_product_form(name, product, m, n, k) for name, product in forms.items()]


def _decode_form(form: str, lengths: list[int], heads: int) -> Case:
    is_fp8 = form.startswith("fp8")

    def make(device: torch.device) -> Callable[[], Any]:
        from dstools_kernels.ops.triton import mla_decode_triton

        inputs = decode_inputs(device, lengths, heads, is_fp8=is_fp8)
        split_tokens = mla_decode_triton.SPLIT_TOKENS[heads]

        def call() -> Any:
            if kernels() == "reference":
                return mla_decode(*inputs)
            return mla_decode_triton.decode(*inputs, split_tokens, form)

        return call

    token_bytes = (
        roofline.FP8_LATENT if is_fp8 else roofline.BF16 * (roofline.LATENT + roofline.ROPE)
    )
    work = roofline.mla_decode(len(lengths), max(lengths), token_bytes, heads)
    return Case(replace(work, shape=f"{work.shape}, {form}"), make, near_attention)


def _product_form(
    name: str, product: Callable[[Quantized, Quantized], Tensor], m: int, n: int, k: int
) -> Case:
    def make(device: torch.device) -> Callable[[], Any]:
        x, w = product_inputs(device, m, n, k)

        def call() -> Any:
            return fp8_gemm(x, w) if kernels() == "reference" else product(x, w)

        return call

    work = roofline.fp8_gemm(m, n, k)
    return Case(replace(work, shape=f"{work.shape}, {name}"), make, near_sum)


def _scaled_mm(x: Quantized, w: Quantized) -> Tensor:
    """Return x w' by cuBLASLt, which has block scales from CUDA 12.9 on."""
    rows, blocks = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
    return scaled_mm(x.codes, w.codes.T, x.scales, rows, w.scales.T, blocks)


def _deep_gemm(x: Quantized, w: Quantized) -> Tensor:
    """Return x w' by DeepGEMM. Source: deepseek-ai/DeepGEMM, README.md, fp8_gemm_nt."""
    from importlib import import_module

    y = x.scales.new_empty(len(x.codes), len(w.codes), dtype=torch.bfloat16)
    import_module("deep_gemm").fp8_gemm_nt(tuple(x), tuple(w), y)
    return y
