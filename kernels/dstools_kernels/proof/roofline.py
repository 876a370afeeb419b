"""Bytes and FLOPs of the ops at shapes of DeepSeek-V3, and the least time that they take.

    python -m dstools_kernels.proof.roofline    print the table of docs/kernels.md

Every input is read once and every output written once, at the full bandwidth of the memory, or all
products run at the full rate of the tensor cores, whichever takes longer. These are bounds to
measure against, not measurements: the twins have never run on a GPU.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import torch

from dstools_kernels.fp8 import BLOCK, ScaleFormat

Unit = Literal["bf16", "fp8"]  # of products
BF16, F32, INT32, INT64 = 2, 4, 4, 8  # bytes
# H100 SXM and H200, dense (NVIDIA's data sheets)
TENSOR_FLOPS: dict[Unit, float] = {"bf16": 990e12, "fp8": 1979e12}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second

# DeepSeek-V3: hidden size, heads, ranks of the latents, an expert's width, experts
HIDDEN, HEADS, LATENT, ROPE, EXPERT, EXPERTS, CHOSEN = 7168, 128, 512, 64, 2048, 256, 8
LOCAL = 32  # experts of a rank of 8
DENSE, VOCABULARY = 18_432, 129_280
Q_RANK, NOPE, VALUE = 1536, 128, 128
FP8_LATENT = 656  # bytes of a token: codes, 4 scales, the rotated key in BF16


@dataclass(frozen=True)
class Work:
    """What an op moves and multiplies at one shape."""

    op: str
    shape: str
    bytes_moved: int
    flops: int = 0  # on tensor cores
    unit: Unit = "bf16"

    def seconds(self, card: str) -> float:
        """Return the least time on a card."""
        return max(self.bytes_moved / BANDWIDTH[card], self.flops / TENSOR_FLOPS[self.unit])

    def is_bound_by_memory(self, card: str) -> bool:
        """Return whether the memory takes longer than the tensor cores."""
        return self.bytes_moved / BANDWIDTH[card] >= self.flops / TENSOR_FLOPS[self.unit]


def quantized(rows: int, columns: int) -> int:
    """Return the bytes of codes and of scales for each 128 columns."""
    return rows * columns + F32 * rows * -(-columns // BLOCK)


def blocks(rows: int, columns: int) -> int:
    """Return the bytes of codes and of scales for each 128 x 128 block."""
    return rows * columns + F32 * -(-rows // BLOCK) * -(-columns // BLOCK)


def but_bf16(dtype: torch.dtype) -> str:
    """Return the part of a shape that names a dtype, "" for BF16."""
    return "" if dtype == torch.bfloat16 else f", {str(dtype).removeprefix('torch.')}"


def act_quant(
    tokens: int,
    columns: int,
    rows: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    scale_format: ScaleFormat = "float32",
) -> Work:
    """Return the work of quantizing activations of `dtype`, gathered as `rows` where given."""
    count, listed = (tokens, 0) if rows is None else (rows, INT32 * rows)
    shape = f"[{tokens}, {columns}]" + ("" if rows is None else f", {rows} rows")
    shape += but_bf16(dtype) + ("" if scale_format == "float32" else f", {scale_format}")
    moved = dtype.itemsize * tokens * columns + listed + quantized(count, columns)
    return Work("act_quant", shape, moved)


def swiglu_quant(rows: int, columns: int) -> Work:
    """Return the work of SwiGLU on BF16 and its quantization."""
    moved = 2 * BF16 * rows * columns + quantized(rows, columns)
    return Work("swiglu_quant", f"2 x [{rows}, {columns}]", moved)


def swiglu(rows: int, columns: int) -> Work:
    """Return the work of SwiGLU on BF16 alone."""
    return Work("swiglu_quant", f"2 x [{rows}, {columns}], plain", 3 * BF16 * rows * columns)


def weight_quant(
    rows: int, columns: int, op: str = "weight_quant", dtype: torch.dtype = torch.bfloat16
) -> Work:
    """Return the work of quantizing a weight of `dtype`, or of the way back."""
    moved = dtype.itemsize * rows * columns + blocks(rows, columns)
    return Work(op, f"[{rows}, {columns}]{but_bf16(dtype)}", moved)


def fp8_gemm(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Return the work of an FP8 product with output of `dtype`."""
    moved = quantized(m, k) + blocks(n, k) + dtype.itemsize * m * n
    return Work("fp8_gemm", f"{m} x {n} x {k}{but_bf16(dtype)}", moved, 2 * m * n * k, "fp8")


def moe_gemm(rows: int, experts: int, n: int, k: int, unit: Unit = "fp8") -> Work:
    """Return the work of a product of rows sorted by expert, FP8 or BF16, with BF16 output."""
    moved = BF16 * (rows * k + experts * n * k + rows * n)
    if unit == "fp8":
        moved = quantized(rows, k) + experts * blocks(n, k) + BF16 * rows * n
    shape = f"{rows} x {n} x {k}, {experts} experts" + (", bf16" if unit == "bf16" else "")
    return Work("moe_gemm", shape, moved, 2 * rows * n * k, unit)


def gemm(m: int, n: int, k: int, heads: int = 1, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Return the work of BF16 products, one for each head, with output of `dtype`."""
    shape = f"{m} x {n} x {k}" + (f", {heads} heads" if heads > 1 else "") + but_bf16(dtype)
    moved = heads * (BF16 * (m * k + n * k) + dtype.itemsize * m * n)
    return Work("gemm", shape, moved, 2 * heads * m * n * k)


def router(tokens: int, experts: int = EXPERTS, chosen: int = CHOSEN) -> Work:
    """Return the work of choosing experts by float32 logits."""
    moved = F32 * tokens * experts + (INT32 + F32) * tokens * chosen
    return Work("router", f"[{tokens}, {experts}]", moved)


def permute(tokens: int) -> Work:
    """Return the work of sorting the copies of tokens: ids in, tokens and destinations out."""
    moved = 3 * INT32 * tokens * CHOSEN + INT32 * (EXPERTS + LOCAL + 1)
    return Work("permute", f"[{tokens}, {CHOSEN}]", moved)


def gather(tokens: int, rows: int, columns: int) -> Work:
    """Return the work of copying rows of BF16, each of a token."""
    shape = f"[{tokens}, {columns}], {rows} rows"
    return Work("permute", shape, BF16 * (tokens + rows) * columns + INT32 * rows)


def combine(tokens: int, has_shared: bool = True, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Return the work of adding up the experts' rows and the shared expert's."""
    rows = tokens * (CHOSEN + 1 + has_shared)
    moved = dtype.itemsize * HIDDEN * rows + (INT32 + F32) * tokens * CHOSEN
    shape = f"[{tokens * CHOSEN}, {HIDDEN}]" + ("" if has_shared else ", not shared")
    return Work("combine", shape + but_bf16(dtype), moved)


def latent_pages(tokens: int, token_bytes: int = BF16 * (LATENT + ROPE)) -> Work:
    """Return the work of writing new BF16 latents into pages, as `token_bytes` a token."""
    moved = tokens * (BF16 * (LATENT + ROPE) + token_bytes + INT64)
    return Work("latent_pages", f"{tokens} tokens of {token_bytes} B", moved)


def token_slots(rows: int, width: int, tokens: int) -> Work:
    """Return the work of finding the lengths of rows and the slots of their new tokens."""
    moved = INT32 * (rows * (width + 3) + 1) + INT64 * tokens
    return Work("latent_pages", f"slots of {tokens} tokens, [{rows}, {width}]", moved)


def mla_decode(
    sequences: int,
    length: int,
    token_bytes: int = BF16 * (LATENT + ROPE),
    heads: int = HEADS,
    new: int = 1,
) -> Work:
    """Return the work of `new` tokens a sequence, which share what is read of its latents.

    656 bytes a token are FP8 latents.
    """
    queries = sequences * new * heads
    moved = sequences * length * token_bytes + BF16 * queries * (2 * LATENT + ROPE)
    shape = f"{sequences} x {length} tokens of {token_bytes} B, {heads} heads"
    shape += f", {new} new" if new > 1 else ""
    return Work("mla_decode", shape, moved, 2 * queries * length * (2 * LATENT + ROPE))


def mla_merge(sequences: int, splits: int, heads: int = HEADS) -> Work:
    """Return the work of merging the float32 partials of splits."""
    queries = sequences * heads
    moved = F32 * queries * splits * (LATENT + 1) + BF16 * queries * LATENT
    return Work("mla_merge", f"{sequences} x {splits} splits, {heads} heads", moved)


def mla_prefill(tokens: int, heads: int = HEADS) -> Work:
    """Return the work of causal attention over one prompt, keys 128 + 64 wide and values 128."""
    token = heads * (NOPE + ROPE) + heads * NOPE + ROPE + 2 * heads * VALUE
    pairs = tokens * (tokens + 1) // 2
    flops = 2 * heads * pairs * (NOPE + ROPE + VALUE)
    return Work("mla_prefill", f"{tokens} tokens, {heads} heads", BF16 * tokens * token, flops)


V3 = (
    act_quant(128, HIDDEN),
    act_quant(4096, HIDDEN),
    act_quant(4096, HIDDEN, 4096 * CHOSEN),
    swiglu_quant(4096 * CHOSEN, EXPERT),
    weight_quant(DENSE, HIDDEN),
    weight_quant(DENSE, HIDDEN, "weight_dequant"),
    fp8_gemm(64, Q_RANK + LATENT + ROPE, HIDDEN),
    fp8_gemm(128, HIDDEN, HEADS * VALUE),
    fp8_gemm(4096, HIDDEN, HEADS * VALUE),
    fp8_gemm(4096, DENSE, HIDDEN),
    moe_gemm(128 * CHOSEN, LOCAL, EXPERT, HIDDEN),
    moe_gemm(4096 * CHOSEN, LOCAL, EXPERT, HIDDEN),
    moe_gemm(4096 * CHOSEN, LOCAL, HIDDEN, EXPERT),
    moe_gemm(4096 * CHOSEN, LOCAL, EXPERT, HIDDEN, "bf16"),
    gemm(128, LATENT, NOPE, HEADS),
    gemm(128, EXPERTS, HIDDEN, dtype=torch.float32),
    gemm(128, VOCABULARY, HIDDEN),
    router(4096),
    permute(4096),
    combine(4096),
    latent_pages(4096),
    latent_pages(4096, FP8_LATENT),
    mla_decode(1, 65_536),
    mla_decode(128, 4096),
    mla_decode(128, 4096, FP8_LATENT),
    mla_decode(128, 4096, heads=16),
    mla_decode(128, 4096, heads=16, new=2),
    mla_merge(128, 4),
    mla_prefill(4096),
)


def table(works: tuple[Work, ...] = V3) -> str:
    """Return the works in Markdown, a row each."""
    lines = [
        "| op | shape | MB | GFLOP | least time, H100 / H200 | bound by |",
        "|---|---|---|---|---|---|",
    ]
    for work in works:
        times = " / ".join(f"{1e6 * work.seconds(card):.3g}" for card in BANDWIDTH)
        bounds = dict.fromkeys(
            "memory" if work.is_bound_by_memory(card) else f"{work.unit} products"
            for card in BANDWIDTH
        )
        flops = f"{work.flops / 1e9:.4g}" if work.flops else ""
        cells = (work.op, work.shape, f"{work.bytes_moved / 1e6:.4g}", flops, f"{times} us")
        lines.append("| " + " | ".join((*cells, " / ".join(bounds))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
