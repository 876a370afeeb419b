#!/usr/bin/env python3
"""Benchmark of SHA256SUMS: `dstools quantize` with and without it, in turn.

    bench_sums.py --gb 4                          warm without fsync, cold with fsync
    bench_sums.py --gb 4 --at-most 1.1            exit 3 if the latter takes over 1.1 x its time

Prints JSON. Figures are of whole processes; a ratio is the median of those of the pairs, each run
right after the other. "warm": the input was read just before, and the output stays in the page
cache. "cold": its pages were dropped, and the output is flushed to disk.

A shard is hashed when it is complete, so the last one of each worker is hashed when nothing else is
left to do: of 40 shards, as --gb 4 makes, as little counts as of the 163 of DeepSeek-V3.

"sha256": hashing the shards of one output, in the page cache: GB/s of `sha256sum`, one process, and
of hashlib in as many threads as quantize has. Its seconds are the least that the sums can cost when
nothing else is the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_quantize import DSTOOLS, MAKE, drop, remove, run, warm
from machine import machine

from dstools_converters.sidefiles.sums import sums_of


def compare(source: Path, out: Path, is_cold: bool, runs: int, workers: int) -> dict[str, Any]:
    """Return the figures of both commands, run `runs` times in turn; the output is left."""
    words = ["quantize", str(source), str(out), "--workers", str(workers)]
    words.append("--fsync" if is_cold else "--no-fsync")
    seconds: dict[str, list[float]] = {"--no-sums": [], "--sums": []}
    cpu: dict[str, list[float]] = {"--no-sums": [], "--sums": []}
    for number in range(runs):
        for option in sorted(seconds, reverse=bool(number % 2)):
            remove(out)
            drop(source) if is_cold else warm(source)
            wall, used, _ = run([*DSTOOLS, *words, option])
            seconds[option].append(wall)
            cpu[option].append(used)
    ratios = [a / b for a, b in zip(seconds["--sums"], seconds["--no-sums"], strict=True)]
    return {
        "cache": "cold" if is_cold else "warm",
        "fsync": is_cold,
        "times_without": round(statistics.median(ratios), 3),
        "times_without_each": [round(ratio, 3) for ratio in ratios],
        **{
            f"seconds_{'with' if option == '--sums' else 'without'}": {
                "median": round(statistics.median(seconds[option]), 3),
                "min": round(min(seconds[option]), 3),
                "max": round(max(seconds[option]), 3),
                "cpu": round(statistics.median(cpu[option]), 3),
            }
            for option in seconds
        },
    }


def speed(out: Path, runs: int, workers: int) -> dict[str, Any]:
    """Return how fast the shards of an output, read just before, are hashed."""
    shards = sorted(out.glob("*.safetensors"))
    nbytes = sum(path.stat().st_size for path in shards)
    warm(out)
    theirs = min(run(["sha256sum", *map(str, shards)])[0] for _ in range(runs))
    ours = []
    for _ in range(runs):
        start = time.perf_counter()
        sums_of(shards, workers)
        ours.append(time.perf_counter() - start)
    return {
        "output_gb": round(nbytes / 1e9, 3),
        "shards": len(shards),
        "sha256sum_gb_per_second": round(nbytes / theirs / 1e9, 2),
        "hashlib_gb_per_second": round(nbytes / min(ours) / 1e9, 2),
        "hashlib_seconds": round(min(ours), 3),
    }


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=4, help="size of the made checkpoint")
    parser.add_argument("--shard-mb", type=int, default=100, help="size of its shards")
    parser.add_argument("--checkpoint", type=Path, help="use this folder instead")
    parser.add_argument("--folder", type=Path, help="where to put input and outputs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at-most", type=float, help="times the seconds without, cold")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = args.checkpoint or Path(name) / "in", Path(name) / "out"
        if args.checkpoint is None:
            make = [sys.executable, MAKE, "v3-layer", source, "--gb", str(args.gb)]
            make += ["--shard-size", str(args.shard_mb * 10**6)]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        results = []
        for is_cold in (False, True):
            results.append(compare(source, out, is_cold, args.runs, args.workers))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        report = machine() | {"workers": args.workers, "results": results}
        print(json.dumps(report | {"sha256": speed(out, args.runs, args.workers)}, indent=1))
    if args.at_most and results[-1]["times_without"] > args.at_most:
        sys.exit(3)


if __name__ == "__main__":
    main()
