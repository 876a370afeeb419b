#!/usr/bin/env python3
"""Benchmark of calibration: one layer with DeepSeek-V3's dimensions, and an estimate for 671B.

    bench_calibrate.py [--experts 8] [--samples 9] [--seq-len 2048] [--folder DIR] [--device cuda]

Prints peak memory and the time of each matrix. Weights and tokens are random: times and memory are
realistic, errors mean nothing. Hidden states are spilled to the disk: --ram of a real run comes on
top. Every expert sees every token, so each is rounded by its own Hessian, as in a run of a million
tokens. On a GPU the first matrix after a Hessian also waits for it. The figures for 671B are
computed from FLOPs and labelled so.
"""

import argparse
import functools
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

SCRIPTS = Path(__file__).parent
LINE = re.compile(r"calibrate: (\S+) \[(\d+), (\d+)\]: (\w+), .*, ([\d.]+) s$")

# arXiv 2412.19437: 3 dense layers, 58 with 256 routed experts and a shared one, one such MTP layer
DENSE_LAYERS, MOE_LAYERS, EXPERTS = 3, 59, 256
ATTENTION = {  # matrix: [out, in]
    "q_a_proj": (1536, 7168),
    "kv_a_proj_with_mqa": (576, 7168),
    "q_b_proj": (24576, 1536),
    "kv_b_proj": (32768, 512),
    "o_proj": (7168, 16384),
}
EXPERT = {"gate_proj": (2048, 7168), "up_proj": (2048, 7168), "down_proj": (7168, 2048)}
DENSE = {"gate_proj": (18432, 7168), "up_proj": (18432, 7168), "down_proj": (7168, 18432)}


def main() -> None:
    """Make the layer, calibrate it in its own process, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=8)
    # 9 samples are 18,432 tokens: more than o_proj has inputs
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        peak_gib, gpu_gib, seconds, cpu_seconds, matrices = measure(Path(folder), args)
    tokens = args.samples * args.seq_len
    print(f"{tokens} tokens, {args.experts} experts: {seconds:.0f} s ({cpu_seconds:.0f} CPU-s)")
    print(f"peak memory {peak_gib:.2f} GiB, hidden states on the disk (--ram 0)")
    if args.device == "cuda":
        print(f"on {torch.cuda.get_device_name()}, its peak {gpu_gib:.2f} GiB")
    for (role, rows, cols), times in sorted(matrices.items()):
        gflop = rounding_flops(rows, cols) / 1e9
        best = min(times)
        matrix, speed = f"{role:20} [{rows:5}, {cols:5}]", f"{gflop / best:6.0f} GFLOP/s"
        print(f"  {matrix}  {best:7.2f} s  {speed}  ({len(times)} of them)")
    print_extrapolation(args.device)


def measure(
    folder: Path, args: argparse.Namespace
) -> tuple[float, float, float, float, dict[tuple[str, int, int], list[float]]]:
    """Return peak GiB of process and GPU, wall and CPU seconds, and seconds by matrix."""
    source = folder / "source"
    gb = 1.196 + 0.0881 * (args.experts - 8)  # one MoE layer and so many experts
    make = [sys.executable, SCRIPTS / "make_checkpoint.py", "v3-layer", source, "--gb", f"{gb}"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    tokens = json.dumps({"samples": args.samples, "seq_len": args.seq_len})
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", source, folder / "out", tokens, args.device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    usage = json.loads(done.stdout)
    matrices: dict[tuple[str, int, int], list[float]] = {}
    for line in done.stderr.splitlines():
        if match := LINE.search(line):
            key = (match[1].split(".")[-2], int(match[2]), int(match[3]))
            matrices.setdefault(key, []).append(float(match[5]))
    peak_gib, gpu_gib = (usage[key] / (1 << 20) for key in ("peak_kib", "gpu_kib"))
    return peak_gib, gpu_gib, seconds, usage["cpu_seconds"], matrices


def child(source: str, out: str, tokens: str, device: str) -> None:
    """Calibrate with random tokens; print peak memory and CPU seconds."""
    import logging

    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.layerwise.calibrate import calibrate
    from dstools_converters.plan.plan import Calibration, plan_quantize
    from dstools_converters.plan.recipe import Recipe
    from dstools_converters.write.stream import run

    logging.basicConfig(format="calibrate: %(message)s", force=True)
    logging.getLogger("dstools_converters").setLevel(logging.DEBUG)
    size = json.loads(tokens)
    threads = torch.get_num_threads()
    with open_checkpoint(Path(source)) as checkpoint:
        inventory = require_sound(checkpoint)
        data = size | {"name": "random", "sha256": "", "seed": 0, "documents": 0}
        versions = {"torch": torch.__version__}
        calibration = Calibration("gptq", data, device, threads, versions, "", False)
        plan = plan_quantize(inventory, Recipe(), "native", None, None, calibration)
        generator, shape = torch.Generator().manual_seed(0), (size["samples"], size["seq_len"])
        ids = torch.randint(inventory.model.vocab_size, shape, generator=generator)
        fill = functools.partial(
            calibrate, ids=ids, ram_bytes=0, min_coverage=0, progress=lambda nbytes: None
        )
        run(plan, Path(out), tool="bench", workers=threads, is_synced=False, calibrate=fill)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"peak_kib": usage.ru_maxrss, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    figures["gpu_kib"] = torch.cuda.max_memory_allocated() >> 10 if device == "cuda" else 0
    sys.stdout.write(json.dumps(figures))


def rounding_flops(rows: int, cols: int) -> float:
    """Return the FLOPs to round a matrix [R, C] with a given Hessian.

    C^3/3 to factorize the Hessian (shared by weights with one input, but counted for each here),
    R C^2 for GPTQ, and R C^2 for each of three sums of errors.
    """
    return cols**3 / 3 + 4 * rows * cols**2


def print_extrapolation(device: str) -> None:
    """Print the FLOPs of 671B by term, and the hours at given speeds. Computed, not run."""
    tokens = 512 * 2048
    per_expert = tokens * 8 / EXPERTS
    terms = {"forward": 0.0, "Hessians": 0.0, "rounding": 0.0}

    def add(layers: int, shapes: dict[str, tuple[int, int]], seen: float) -> None:
        inputs = {cols for _, cols in shapes.values()}
        for rows, cols in shapes.values():
            terms["forward"] += layers * 2 * seen * rows * cols
            terms["rounding"] += layers * 4 * rows * cols**2
        for cols in inputs:
            terms["Hessians"] += layers * 2 * seen * cols**2
            terms["rounding"] += layers * cols**3 / 3

    add(DENSE_LAYERS + MOE_LAYERS, ATTENTION, tokens)
    add(DENSE_LAYERS, DENSE, tokens)
    add(MOE_LAYERS, EXPERT, tokens)  # the shared expert
    add(MOE_LAYERS * EXPERTS, EXPERT, per_expert)
    total = sum(terms.values())
    print(
        f"computed, not run, without attention scores: 671B on {tokens} tokens, "
        f"{per_expert:.0f} per routed expert"
    )
    for name, flops in terms.items():
        print(f"  {name:9} {flops:9.2e} FLOP")
    for name, speed in speeds(device):
        print(f"  {total / speed / 3600:8.1f} h at {name}")


def speeds(device: str) -> Iterator[tuple[str, float]]:
    """Yield labelled FLOP/s: of a float32 matmul on this machine, and of an H100."""
    a = torch.randn(4096, 4096, device=device)
    (a @ a).sum().item()
    start = time.perf_counter()
    (a @ a).sum().item()
    speed = 2 * 4096**3 / (time.perf_counter() - start)
    where = "this CPU" if device == "cpu" else torch.cuda.get_device_name()
    yield f"{speed / 1e9:.0f} GFLOP/s, a float32 matmul of {where}", speed
    if device == "cpu":
        yield "40 TFLOP/s, 60 % of an H100 SXM's 67 in FP32 (data sheet)", 40e12


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
