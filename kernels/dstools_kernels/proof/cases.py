"""The ops at shapes to try on a card: inputs, the call, what it is compared by, its cost.

A case is checked against the op's torch definition on the same device and timed by the same call.
`SMALL` has ragged, short and empty shapes, `V3` those of DeepSeek-V3.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dstools_kernels.fp8 import ScaleFormat
from dstools_kernels.ops.act_quant import act_quant
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.gemm import gemm
from dstools_kernels.ops.latent_pages import (
    PAGE_SIZE,
    pack_fp8,
    row_lengths,
    token_slots,
    write_latents,
)
from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.ops.mla_merge import mla_merge
from dstools_kernels.ops.mla_prefill import mla_prefill
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.permute import gather, permute
from dstools_kernels.ops.router import V2, V2_LITE, Rule, router
from dstools_kernels.ops.router import V3 as ROUTER_V3
from dstools_kernels.ops.swiglu_quant import swiglu, swiglu_quant
from dstools_kernels.ops.weight_dequant import weight_dequant
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.proof import roofline
from dstools_kernels.proof.comparisons import equal, near_attention, near_sum, one_step, routed
from dstools_kernels.proof.inputs import decode_inputs, offsets, product_inputs, random, with_ties
from dstools_kernels.proof.roofline import FP8_LATENT, LATENT, ROPE, Work

BF16, F32 = torch.bfloat16, torch.float32
# Rules of the router with the number of experts
V3_RULE, V2_RULE, V2_LITE_RULE = (256, ROUTER_V3), (160, V2), (64, V2_LITE)


class Case(NamedTuple):
    """An op at one shape."""

    work: Work
    make: Callable[[torch.device], Callable[[], Any]]  # the call, its inputs on a device
    compare: Callable[[Any, Any], tuple[bool, str]]  # with the definition's: is right, how far off

    @property
    def name(self) -> str:
        """Return the op and its shape."""
        return f"{self.work.op} {self.work.shape}"


def quantize(
    rows: int,
    columns: int,
    gathered: int | None = None,
    dtype: torch.dtype = BF16,
    scale_format: ScaleFormat = "float32",
) -> Case:
    """Return activations to quantize, gathered by a list of rows or not."""

    def make(device: torch.device) -> Callable[[], Any]:
        x = with_ties(device, rows, columns).to(dtype)
        index = None
        if gathered is not None:
            index = torch.randint(rows, (gathered,), device=device, dtype=torch.int32)
        return lambda: act_quant(x, scale_format, rows=index, is_transposed=True)

    work = roofline.act_quant(rows, columns, gathered, dtype, scale_format)
    return Case(work, make, equal)


def quantized_swiglu(rows: int, columns: int) -> Case:
    """Return gate and up to multiply and quantize."""

    def make(device: torch.device) -> Callable[[], Any]:
        gate, up = random(device, rows, columns), random(device, rows, columns)
        return lambda: swiglu_quant(gate, up)

    return Case(roofline.swiglu_quant(rows, columns), make, one_step)


def plain_swiglu(rows: int, columns: int) -> Case:
    """Return gate and up to multiply."""

    def make(device: torch.device) -> Callable[[], Any]:
        gate, up = random(device, rows, columns), random(device, rows, columns)
        return lambda: swiglu(gate, up)

    return Case(roofline.swiglu(rows, columns), make, near_sum)


def quantize_weight(rows: int, columns: int, dtype: torch.dtype = BF16) -> Case:
    """Return a weight to quantize."""

    def make(device: torch.device) -> Callable[[], Any]:
        weight = random(device, rows, columns, dtype=dtype)
        return lambda: weight_quant(weight)

    return Case(roofline.weight_quant(rows, columns, dtype=dtype), make, equal)


def dequantize_weight(rows: int, columns: int, dtype: torch.dtype = BF16) -> Case:
    """Return a weight to dequantize."""

    def make(device: torch.device) -> Callable[[], Any]:
        codes, scales = weight_quant(random(device, rows, columns))
        return lambda: weight_dequant(codes, scales, dtype)

    return Case(roofline.weight_quant(rows, columns, "weight_dequant", dtype), make, equal)


def product(m: int, n: int, k: int, dtype: torch.dtype = BF16) -> Case:
    """Return an FP8 product with a result of `dtype`."""

    def make(device: torch.device) -> Callable[[], Any]:
        x, w = product_inputs(device, m, n, k)
        return lambda: fp8_gemm(x, w, dtype)

    return Case(roofline.fp8_gemm(m, n, k, dtype), make, near_sum)


def experts(rows: int, count: int, n: int, k: int) -> Case:
    """Return FP8 products of ragged groups."""

    def make(device: torch.device) -> Callable[[], Any]:
        x = act_quant(random(device, rows, k), is_transposed=True)
        each = [weight_quant(random(device, n, k)) for _ in range(count)]
        w = type(x)(*(torch.stack(parts) for parts in zip(*each, strict=True)))
        bounds = offsets(device, rows, count)
        return lambda: moe_gemm(x, w, bounds)

    return Case(roofline.moe_gemm(rows, count, n, k), make, near_sum)


def bf16_experts(rows: int, count: int, n: int, k: int) -> Case:
    """Return BF16 products of ragged groups."""

    def make(device: torch.device) -> Callable[[], Any]:
        x, w = random(device, rows, k), random(device, count, n, k)
        bounds = offsets(device, rows, count)
        return lambda: moe_gemm(x, w, bounds)

    return Case(roofline.moe_gemm(rows, count, n, k, "bf16"), make, near_sum)


def bf16_product(
    m: int, n: int, k: int, heads: int = 1, dtype: torch.dtype = BF16, is_transposed: bool = False
) -> Case:
    """Return a BF16 product, of heads or plain, with a result of `dtype`.

    is_transposed: the weight is [K, N] in memory.
    """

    def make(device: torch.device) -> Callable[[], Any]:
        batch = (heads,) if heads > 1 else ()
        x, w = random(device, *batch, m, k), random(device, *batch, n, k)
        w = w.mT.contiguous().mT if is_transposed else w
        return lambda: gemm(x, w, dtype)

    work = roofline.gemm(m, n, k, heads, dtype)
    if is_transposed:
        work = replace(work, shape=f"{work.shape}, transposed")
    return Case(work, make, near_sum)


def route(tokens: int, model: tuple[int, Rule] = V3_RULE) -> Case:
    """Return logits of a model to choose experts by."""
    count, rule = model

    def make(device: torch.device) -> Callable[[], Any]:
        logits = random(device, tokens, count, dtype=F32)
        bias = random(device, count, dtype=F32) / 10 if rule.group_score == "top2" else None
        return lambda: router(logits, bias, rule)

    return Case(roofline.router(tokens, count, rule.count), make, routed)


def sort(tokens: int) -> Case:
    """Return ids to sort by local expert, some of them on other ranks."""

    def make(device: torch.device) -> Callable[[], Any]:
        chosen, count, local = roofline.CHOSEN, roofline.EXPERTS, roofline.LOCAL
        ids = torch.rand(tokens, count, device=device).topk(chosen)[1].int()
        there = torch.arange(count, device=device, dtype=torch.int32)
        expert_map = torch.where(there < local, there, -1)
        return lambda: permute(ids, expert_map, local)

    return Case(roofline.permute(tokens), make, equal)


def pick(tokens: int, rows: int, columns: int) -> Case:
    """Return tokens to copy to rows, one of them a token that is not there."""

    def make(device: torch.device) -> Callable[[], Any]:
        x = random(device, tokens, columns)
        order = torch.randint(tokens, (rows,), device=device, dtype=torch.int32)
        order[:1] = tokens
        return lambda: gather(x, order)

    return Case(roofline.gather(tokens, rows, columns), make, equal)


def add_up(tokens: int, has_shared: bool = True, dtype: torch.dtype = BF16) -> Case:
    """Return rows of experts to add up, with those of a shared expert or not."""

    def make(device: torch.device) -> Callable[[], Any]:
        chosen, hidden = roofline.CHOSEN, roofline.HIDDEN
        y = random(device, tokens * chosen, hidden, dtype=dtype)
        shared = random(device, tokens, hidden, dtype=dtype) if has_shared else None
        order = torch.randperm(tokens * chosen, device=device).int().view(tokens, chosen)
        destination = torch.where(order % 8 == 0, -1, order)
        weights = torch.rand(tokens, chosen, device=device)
        return lambda: combine(y, destination, weights, shared)

    return Case(roofline.combine(tokens, has_shared, dtype), make, near_sum)


def decode(lengths: list[int], heads: int, new: int = 1, is_fp8: bool = False) -> Case:
    """Return the attention of `new` tokens of each row to its latents."""

    def make(device: torch.device) -> Callable[[], Any]:
        inputs = decode_inputs(device, lengths, heads, new, is_fp8)
        return lambda: mla_decode(*inputs)

    token_bytes = FP8_LATENT if is_fp8 else 2 * (LATENT + ROPE)
    longest = max(lengths, default=0)
    work = roofline.mla_decode(len(lengths), longest, token_bytes, heads, new)
    return Case(work, make, near_attention)


def merge(tokens: int, splits: int, heads: int) -> Case:
    """Return partial outputs to merge."""

    def make(device: torch.device) -> Callable[[], Any]:
        partial = random(device, tokens * splits, heads, LATENT, dtype=F32)
        lse = random(device, tokens * splits, heads, dtype=F32)
        offsets = splits * torch.arange(tokens + 1, device=device, dtype=torch.int32)
        return lambda: mla_merge(partial, lse, offsets)

    return Case(roofline.mla_merge(tokens, splits, heads), make, near_attention)


def write(tokens: int, is_fp8: bool = False) -> Case:
    """Return latents to write into shuffled pages."""

    def make(device: torch.device) -> Callable[[], Any]:
        pages = tokens // PAGE_SIZE + 2
        pool = torch.zeros(pages, PAGE_SIZE, LATENT + ROPE, device=device, dtype=BF16)
        pool = pack_fp8(pool) if is_fp8 else pool
        latents = with_ties(device, tokens, LATENT + ROPE)
        slots = torch.randperm(pages * PAGE_SIZE, device=device)[:tokens]

        def call() -> Tensor:
            write_latents(latents, pool, slots)
            return pool

        return call

    token_bytes = FP8_LATENT if is_fp8 else 2 * (LATENT + ROPE)
    return Case(roofline.latent_pages(tokens, token_bytes), make, equal)


def place(rows: int, width: int, new: int) -> Case:
    """Return rows to find the lengths and the slots of their `new` tokens of."""

    def make(device: torch.device) -> Callable[[], Any]:
        pages = rows * width + 1
        table = torch.randperm(pages, device=device)[: rows * width].int().view(rows, width)
        past = torch.arange(rows, device=device, dtype=torch.int32) % (width * PAGE_SIZE)
        starts = new * torch.arange(rows + 1, device=device, dtype=torch.int32)

        def call() -> Tensor:
            return token_slots(table, row_lengths(past, starts), starts, pages, PAGE_SIZE)

        return call

    return Case(roofline.token_slots(rows, width, rows * new), make, equal)


def prefill(new: list[int], cached: list[int], heads: int) -> Case:
    """Return the attention of `new` tokens of each row to themselves and `cached` before them."""

    def make(device: torch.device) -> Callable[[], Any]:
        nope, value = roofline.NOPE, roofline.VALUE
        counts = torch.tensor([[0, *new], [0, *cached]], device=device)
        starts_q, starts_k = (c.cumsum(-1).int() for c in (counts[0], counts.sum(0)))
        keys = sum(new) + sum(cached)
        q, k_rope = random(device, sum(new), heads, nope + ROPE), random(device, keys, ROPE)
        k_nope, v = random(device, keys, heads, nope), random(device, keys, heads, value)
        return lambda: mla_prefill(q, k_nope, k_rope, v, starts_q, starts_k, 192**-0.5)

    return Case(roofline.mla_prefill(sum(new), heads), make, near_attention)


# Together they launch every kernel that is shipped, but mla_decode/bf16.gluon, which may hang.
SMALL = (
    *(quantize(rows, 256) for rows in (0, 1, 127)),
    quantize(9, 384, 7),
    *(quantize(9, 384, 7, *form) for form in ((BF16, "ue8m0"), (F32, "float32"), (F32, "ue8m0"))),
    quantize(9, 384, dtype=F32),
    *(quantize(9, 384, dtype=dtype, scale_format="ue8m0") for dtype in (BF16, F32)),
    quantized_swiglu(0, 128),
    quantized_swiglu(33, 256),
    *(plain_swiglu(rows, 1032) for rows in (0, 3)),
    *(quantize_weight(576, 192, dtype) for dtype in (BF16, F32)),
    *(dequantize_weight(576, 192, dtype) for dtype in (BF16, F32)),
    *(product(m, 192, 384) for m in (0, 1, 129)),
    *(product(m, 192, 384, F32) for m in (1, 129)),
    product(1, 576, 2048),
    experts(0, 4, 192, 128),
    experts(1, 4, 192, 256),
    experts(130, 4, 576, 256),
    experts(260, 2, 192, 256),
    *(bf16_experts(rows, count, 192, 192) for rows, count in ((1, 4), (130, 4), (260, 2))),
    *(bf16_product(m, 192, 128) for m in (1, 129)),
    *(bf16_product(m, 192, 128, dtype=F32) for m in (1, 129)),
    *(bf16_product(m, 192, 128, is_transposed=True) for m in (1, 129)),
    *(bf16_product(m, 192, 128, dtype=F32, is_transposed=True) for m in (1, 129)),
    bf16_product(3, 64, 128, 16),
    *(route(33, model) for model in (V3_RULE, V2_RULE, V2_LITE_RULE)),
    sort(33),
    *(pick(5, rows, 1032) for rows in (0, 7)),
    *(add_up(3, has_shared, dtype) for has_shared in (True, False) for dtype in (BF16, F32)),
    *(decode([0, 1, 64, 65, 200], heads) for heads in (16, 64, 128)),
    decode([2, 65], 16, new=2),
    decode([0, 1, 64, 65, 200], 16, is_fp8=True),
    *(decode([0, 1, 65], heads, is_fp8=True) for heads in (64, 128)),
    merge(3, 2, 16),
    prefill([70, 0, 1, 130], [0, 5, 64, 33], 2),
    *(place(rows, 2, 3) for rows in (1, 65)),
    write(70),
    write(70, is_fp8=True),
)
BATCH = [4096] * 128
V3 = (
    quantize(128, roofline.HIDDEN),
    quantize(4096, roofline.HIDDEN),
    quantize(4096, roofline.HIDDEN, scale_format="ue8m0"),
    quantize(4096, roofline.HIDDEN, 4096 * roofline.CHOSEN),
    quantized_swiglu(4096 * roofline.CHOSEN, roofline.EXPERT),
    plain_swiglu(4096 * roofline.CHOSEN, roofline.EXPERT),
    quantize_weight(roofline.DENSE, roofline.HIDDEN),
    dequantize_weight(roofline.DENSE, roofline.HIDDEN),
    product(64, roofline.Q_RANK + LATENT + ROPE, roofline.HIDDEN),
    product(128, roofline.HIDDEN, roofline.HEADS * roofline.VALUE),
    product(4096, roofline.HIDDEN, roofline.HEADS * roofline.VALUE),
    product(4096, roofline.DENSE, roofline.HIDDEN),
    experts(128 * roofline.CHOSEN, roofline.LOCAL, roofline.EXPERT, roofline.HIDDEN),
    experts(4096 * roofline.CHOSEN, roofline.LOCAL, roofline.EXPERT, roofline.HIDDEN),
    experts(4096 * roofline.CHOSEN, roofline.LOCAL, roofline.HIDDEN, roofline.EXPERT),
    bf16_experts(4096 * roofline.CHOSEN, roofline.LOCAL, roofline.EXPERT, roofline.HIDDEN),
    bf16_product(128, LATENT, roofline.NOPE, roofline.HEADS),
    bf16_product(128, roofline.EXPERTS, roofline.HIDDEN, dtype=F32),
    bf16_product(128, roofline.VOCABULARY, roofline.HIDDEN),
    *(route(4096, model) for model in (V3_RULE, V2_RULE, V2_LITE_RULE)),
    sort(4096),
    pick(4096, 4096 * roofline.CHOSEN, roofline.HIDDEN),
    *(add_up(4096, has_shared) for has_shared in (True, False)),
    decode([65_536], roofline.HEADS),
    decode(BATCH, roofline.HEADS),
    *(decode(BATCH, heads) for heads in (16, 64)),
    decode(BATCH, 16, new=2),
    *(decode(BATCH, heads, is_fp8=True) for heads in (16, 64, roofline.HEADS)),
    merge(128, 4, roofline.HEADS),
    prefill([4096], [0], roofline.HEADS),
    place(128, 64, 1),
    write(4096),
    write(4096, is_fp8=True),
)
