"""Run what the plugins launch in Triton's interpreter, and compare it with the ops in Python.

    TRITON_INTERPRET=1 python replay.py HOST [HOST_OF_SMALL_PARTS]

HOST is the program of host.cpp. Its launches go to the kernels themselves, on real tensors: every
pointer is checked to stay in its tensor or its piece of the workspace, which begins as NaN. Prints
a line for each case; exits 1 where one differs.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstools_kernels.ops.act_quant import Quantized, act_quant
from dstools_kernels.ops.combine import combine
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.latent_pages import row_lengths, token_slots, write_latents
from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.ops.moe_gemm import moe_gemm
from dstools_kernels.ops.permute import gather, permute
from dstools_kernels.ops.swiglu_quant import swiglu, swiglu_quant
from dstools_kernels.ops.weight_quant import weight_quant
from dstools_kernels.plugin import embedded_configs
from dstools_kernels.proof.comparisons import near_attention, near_sum
from dstools_kernels.proof.interpreter import mend
from dstools_kernels.proof.sanitizer import sanitized

TYPES = {"*bf16": torch.bfloat16, "*fp32": torch.float32, "*i32": torch.int32, "*i64": torch.int64}
TYPES |= {"*fp8e4nv": torch.float8_e4m3fn}
NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}
SCALE = 192**-0.5
CONFIGS = embedded_configs()
failures = 0


def replay(
    host: str, op: str, tactic: int, inputs: list[Tensor], outputs: list[Tensor], rank: int = 0
) -> None:
    """Do what the plugin of `op` launches; output 1 of attention is its input 2."""
    shapes = ["x".join(map(str, x.shape)) for x in inputs]
    dtype = NAMES[inputs[0].dtype]
    size = int(run(host, "workspace", op, dtype, str(rank), *shapes))
    lines = run(host, "launches", op, dtype, str(tactic), str(SCALE), str(rank), *shapes)
    launches = [line.split() for line in lines.splitlines()]
    regions = [*inputs, *outputs]
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
    words = {word for launch in launches for word in launch[3:]}
    cuts = sorted({int(word[3:]) for word in words if word.startswith("ws+")} | {size})

    def tensor(word: str, dtype: torch.dtype) -> Tensor:
        where, _, offset = word.partition("+")
        if where == "ws":  # up to the next piece
            end = cuts[cuts.index(int(offset)) + 1]
            return workspace[int(offset) : end].view(dtype)
        region = regions[int(where[1:])]
        assert region.dtype == dtype, (op, word, dtype)
        return region.view(-1)[int(offset) // region.itemsize :]

    for name, grid, kinds, *arguments in launches:
        x, y = map(int, grid.split("x"))
        if name == "zero":
            dtype = torch.uint8 if arguments[0].startswith("ws+") else torch.bfloat16
            tensor(arguments[0], dtype).view(torch.uint8)[:x] = 0
            continue
        config = CONFIGS[name]
        given = [
            tensor(word, TYPES[dtype]) if kind in "pP" else (float if kind == "f" else int)(word)
            for kind, word, dtype in zip(kinds, arguments, config.signature.values(), strict=False)
        ]
        config.launch((x, y), *given)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def say(name: str, is_right: bool, how: str = "") -> None:
    global failures
    failures += not is_right
    sys.stdout.write(f"{'same' if is_right else 'OTHER'} {name} {how}\n")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def int32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# ---------------------------------------------------------------------------------------- the cases


def attention(host: str, heads: int, tactic: int, name: str, is_empty: bool = False) -> None:
    """Two, no and three new tokens of rows with 130, 5 and no tokens before, and a table entry that
    is out of range; token 5 belongs to no row. Pages that no one wrote are NaN."""
    torch.manual_seed(0)
    table = int32([[4, 1, 7], [0, 9, 9], [3, 2, 6]])
    past, cumulative = int32([130, 5, 0]), int32([0, 2, 2, 5])
    cache = torch.full((9, 64, 1, 576), torch.nan, dtype=torch.bfloat16)
    for page, count in ((4, 64), (1, 64), (7, 2), (0, 5)):
        cache[page, :count] = normal(count, 1, 576)
    q, latent = normal(6, heads, 576), normal(6, 576)
    if is_empty:
        table = table[:, :0]
    wanted_cache = cache.clone()[:, :, 0]
    lengths = row_lengths(past, cumulative)
    slots = token_slots(table, lengths, cumulative, 9, 64) if table.shape[1] else int32([-1] * 5)
    write_latents(latent[:5], wanted_cache, slots)
    wanted = mla_decode(q[:5], wanted_cache, table, lengths, cumulative, SCALE)
    out = torch.full((6, heads, 512), torch.nan, dtype=torch.bfloat16)
    inputs = [q, latent, cache, cumulative, past, table]
    with sanitized():
        replay(host, "DsMlaAttention", tactic, inputs, [out], 512)
    say(
        f"{name}: cache",
        torch.equal(cache[:, :, 0].view(torch.int16), wanted_cache.view(torch.int16)),
    )
    say(f"{name}: output", *near_attention(out[:5], wanted))
    say(f"{name}: token of no row", not out[5].any())


def experts(host: str, is_fp8: bool, hidden: int, inner: int, tactic: int, slots: int = 2) -> None:
    """Experts of two ranks, ids and entries of the map out of range, an expert without tokens."""
    torch.manual_seed(0)
    tokens, count, local = 24, 9, 4
    x, ids = normal(tokens, hidden), torch.randint(count, (tokens, slots), dtype=torch.int32)
    ids[3, 0], ids[4, 0], ids[5] = -1, 2**31 - 1, 8
    places = int32([2, -1, 0, 5, 1, -1, -2, 0, -1])
    weights = torch.rand(tokens, slots)
    shapes = ((local, inner, hidden), (local, inner, hidden), (local, hidden, inner))
    stacks: list[Any] = [normal(*shape) / 8 for shape in shapes]
    if is_fp8:
        stacks = [[weight_quant(w) for w in stack] for stack in stacks]
        stacks = [Quantized(*map(torch.stack, zip(*s, strict=True))) for s in stacks]
    rows, destination, offsets = permute(ids, places, local)
    if is_fp8:
        picked = act_quant(x, rows=rows, is_transposed=True)
        gate, up = (moe_gemm(picked, w, offsets) for w in stacks[:2])
        y = moe_gemm(swiglu_quant(gate, up), stacks[2], offsets)
    else:
        gate, up = (moe_gemm(gather(x, rows), w, offsets) for w in stacks[:2])
        y = moe_gemm(swiglu(gate, up), stacks[2], offsets)
    wanted = combine(y, destination, weights, None)
    out = torch.full((tokens, hidden), torch.nan, dtype=torch.bfloat16)
    flat = [part for w in stacks for part in (w if is_fp8 else (w,))]
    op = "DsFp8BlockMoE" if is_fp8 else "DsMoE"
    with sanitized():
        replay(host, op, tactic, [x, ids, weights, places, *flat], [out])
    name = f"{op} {hidden} {inner} k{slots} tactic {tactic}"
    say(f"{name}: output", torch.equal(out, wanted))
    say(f"{name}: a token of other ranks gives 0", not out[5].any() and bool(out[6].any()))


def product(host: str, dtype: torch.dtype, n: int, k: int, tactic: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(70, k).to(dtype), weight_quant(torch.randn(n, k).bfloat16())
    wanted = fp8_gemm(act_quant(x, is_transposed=True), Quantized(*w), dtype)
    out = torch.full((70, n), torch.nan, dtype=dtype)
    with sanitized():
        replay(host, "DsFp8BlockLinear", tactic, [x, *w], [out])
    # numpy adds the products of another tile in another order, which float32 shows
    say(f"DsFp8BlockLinear {dtype} {n} {k} tactic {tactic}", *near_sum(out, wanted))


def garbage(host: str) -> None:
    """Time on arbitrary numbers, as TensorRT may: what is read and written stays inside."""
    draw = torch.Generator().manual_seed(0)

    def any_int32(*shape: int) -> Tensor:
        wide = torch.randint(-(2**31), 2**31, shape, generator=draw)
        small = torch.randint(-2, 12, shape, generator=draw)
        return torch.where(torch.rand(shape, generator=draw) < 0.5, wide, small).int()

    for _ in range(4):
        cache, out = normal(9, 64, 1, 576), normal(6, 2, 512)
        integers = any_int32(4), any_int32(3), any_int32(3, 3)
        tokens = [normal(6, 2, 576), normal(6, 576), cache, *integers]
        weights = [normal(4, 32, 32) for _ in range(3)]
        chosen = [normal(24, 32), any_int32(24, 2), torch.rand(24, 2), any_int32(9), *weights]
        with sanitized():
            replay(host, "DsMlaAttention", 0, tokens, [out], 512)
            replay(host, "DsMoE", 0, chosen, [normal(24, 32)])
    say("garbage in bounds", True)


def main(host: str, small: str) -> int:
    """Run all cases: by twins, where the bits have to be the same, and by definitions."""
    mend()
    cases: list[Callable[[], None]] = [
        lambda: attention(host, 4, 0, "attention"),
        lambda: attention(host, 20, 2, "attention of 20 heads in blocks of 16"),
        lambda: attention(small, 4, 1, "attention, a token at a time"),
        lambda: attention(host, 4, 0, "attention without pages", is_empty=True),
        lambda: garbage(host),
        lambda: experts(host, False, 264, 136, 2, 3),
        lambda: experts(host, True, 272, 144, 2, 8),
        lambda: product(host, torch.bfloat16, 256, 272, 1),
        lambda: product(host, torch.float32, 200, 144, 2),
    ]
    with np.errstate(all="ignore"):  # a GPU does not warn of NaN and overflow
        for kernels in ("triton", "reference"):
            os.environ["DSTOOLS_KERNELS"] = kernels
            if kernels == "triton":
                for case in cases:
                    case()
            else:
                cases[0]()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
