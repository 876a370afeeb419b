#!/usr/bin/env python3
"""Benchmark of `dstools verify`, which reads every byte, against `cat` of the same shards.

    bench_verify.py --gb 4                          a made checkpoint, warm
    bench_verify.py --checkpoint FOLDER             your own
    bench_verify.py --at-least 0.8                  exit 3 if it falls short

Prints JSON. The shards are read into the page cache first; then `cat SHARDS > /dev/null`, `verify`
and `verify` of a tiny checkpoint run in turn. The last is the start-up: Python, imports and the
checks of names and shapes. `times_cat` is the speed of `verify` without it, over that of cat;
`times_cat_with_start_up` is of the whole process. Both are of the fastest runs, which are the least
noisy, and --at-least checks the former. Medians are beside them.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_quantize import DSTOOLS, MAKE, run, warm
from machine import machine


def compare(source: Path, tiny: Path, runs: int, workers: int) -> dict[str, Any]:
    """Return the figures of the three commands, run `runs` times in turn."""
    shards = sorted(source.glob("*.safetensors"))
    names = " ".join(shlex.quote(str(shard)) for shard in shards)
    verify = [*DSTOOLS, "verify", "--workers", str(workers)]
    commands = {
        "cat": ["sh", "-c", f"cat {names} > /dev/null"],
        "verify": [*verify, str(source)],
        "start_up": [*verify, str(tiny)],
    }
    warm(source)
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            figures[name].append(run(command))
    nbytes = sum(shard.stat().st_size for shard in shards)
    best = {name: min(spent[0] for spent in figures[name]) for name in figures}
    reading = max(best["verify"] - best["start_up"], 1e-3)
    return {
        "gb": round(nbytes / 1e9, 3),
        "workers": workers,
        "times_cat": round(best["cat"] / reading, 2),
        "times_cat_with_start_up": round(best["cat"] / best["verify"], 2),
        "peak_rss_mib": round(max(spent[2] for spent in figures["verify"]), 1),
        **{
            f"{name}_seconds": {
                "best": round(best[name], 3),
                "median": round(statistics.median(spent[0] for spent in figures[name]), 3),
                "cpu": round(statistics.median(spent[1] for spent in figures[name]), 3),
            }
            for name in figures
        },
    }


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=4, help="size of the made checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="use this folder instead")
    parser.add_argument("--folder", type=Path, help="where to make checkpoints")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--at-least", type=float, default=0, help="times the speed of cat")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, tiny = args.checkpoint or Path(name, "large"), Path(name, "tiny")
        wanted = {tiny: ["tiny"]}
        if args.checkpoint is None:
            wanted[source] = ["v3-layer", "--gb", str(args.gb)]
        for folder, (kind, *options) in wanted.items():
            make = [sys.executable, MAKE, kind, folder, *options]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        result = compare(source, tiny, args.runs, args.workers)
    print(json.dumps(machine() | result, indent=1))
    if result["times_cat"] < args.at_least:
        sys.exit(3)


if __name__ == "__main__":
    main()
