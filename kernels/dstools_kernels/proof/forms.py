"""The forms of `mla_decode` side by side at shapes of DeepSeek-V3: only a card ranks them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.proof import roofline
from dstools_kernels.proof.cases import FP8_BYTES, Case, decode_inputs, near_attention

# Gluon last: its barriers were never executed, and what waits for ever takes the rest with it
FORMS = ("bf16.64x64", "bf16.128x32", "fp8.32x32", "fp8.128x16", "bf16.gluon")


def forms(lengths: list[int], heads: int = roofline.HEADS) -> list[Case]:
    """Return a case for each form, of one new token a row; they need Triton and a card."""
    return [_case(form, lengths, heads) for form in FORMS]


def _case(form: str, lengths: list[int], heads: int) -> Case:
    is_fp8 = form.startswith("fp8")

    def make(device: torch.device) -> Callable[[], Any]:
        from dstools_kernels.ops.dispatch import uses_triton
        from dstools_kernels.ops.triton import mla_decode_triton

        inputs = decode_inputs(device, lengths, heads, is_fp8=is_fp8)
        split_tokens = mla_decode_triton.SPLIT_TOKENS[heads]

        def call() -> Any:
            if not uses_triton(inputs[0]):  # as the definition
                return mla_decode(*inputs)
            return mla_decode_triton.decode(*inputs, split_tokens, form)

        return call

    token_bytes = FP8_BYTES if is_fp8 else roofline.BF16 * (roofline.LATENT + roofline.ROPE)
    work = roofline.mla_decode(len(lengths), max(lengths), token_bytes, heads)
    return Case(replace(work, shape=f"{work.shape}, {form}"), make, near_attention)
