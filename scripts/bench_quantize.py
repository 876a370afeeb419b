#!/usr/bin/env python3
"""Benchmark of `dstools quantize`, file to file, against `cp` of the same input.

    bench_quantize.py --gb 4                       warm and cold, with and without fsync
    bench_quantize.py --sweep 0.5 1 2 4 8          cost per byte by size, warm, no fsync
    bench_quantize.py --checkpoint FOLDER          your own checkpoint as the input
    bench_quantize.py --warm --at-least 1.5 --at-most-mib 128      exit 3 if it falls short

Prints JSON. Both run in turn. Every figure is of a whole process, start-up included, as accounted
by the operating system. "warm": the input was read just before. "cold": its pages were dropped.
With fsync, `cp` is followed by a sync of each file. Earlier writes are flushed before each run.
Ratios are of the medians, and of the fastest runs, which are less noisy; --at-least checks the
latter. --or-floor is for CPUs on which `cp` is nearly as fast as the floor. Input and outputs are
on one filesystem, --folder.

"floor" is the minimum for any converter through the page cache: the same number of threads reads
each byte of the input once and writes half as many bytes from a cached buffer, one file per thread.
"""

import argparse
import itertools
import json
import math
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from machine import machine

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compile modules once, as when installed
MAKE = Path(__file__).with_name("make_checkpoint.py")
DSTOOLS = [sys.executable, "-m", "dstools"]


def run(
    command: list[str],
    stdout: int | IO[str] = subprocess.DEVNULL,
    environment: dict[str, str] | None = None,
) -> tuple[float, float, float]:
    """Return (wall seconds, CPU seconds, peak RSS in MiB) of a command; its stderr is dropped."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} exited with {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def drop(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    """Read a folder's files into the page cache."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def remove(path: Path) -> None:
    """Remove an output and wait for pending writes."""
    shutil.rmtree(path, ignore_errors=True)
    os.sync()


def floor(source: Path, out: Path, workers: int) -> None:
    """Read the input and write half as much without converting; print the seconds.

    It runs in its own process: a child's peak RSS includes what its parent held when it forked.
    """
    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_kernels.formats import block_fp8

    checkpoint = open_checkpoint(source)
    tensors = [info for info in checkpoint.tensors.values() if info.dtype == "BF16"]
    tensors.sort(key=lambda info: -info.nbytes)
    piece = 4 << 20
    out.mkdir()

    def work(share: int) -> None:
        buffer, at = memoryview(mmap.mmap(-1, piece)), 0
        file = os.open(out / str(share), os.O_RDWR | os.O_CREAT)
        mine = tensors[share::workers]
        os.posix_fallocate(file, 0, sum(info.nbytes for info in mine) // 2 + 1)
        for info in mine:
            for begin in range(0, info.nbytes, 2 * piece):
                data = checkpoint.read(info, begin, min(begin + 2 * piece, info.nbytes))
                block_fp8.first_non_finite(data, "BF16")
                at += os.pwrite(file, buffer[: len(data) // 2], at)
        os.close(file)

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for job in [pool.submit(work, share) for share in range(workers)]:
            job.result()
    print(time.perf_counter() - start)


def compare(
    source: Path, out: Path, cold: bool, fsync: bool, runs: int, workers: int
) -> dict[str, Any]:
    """Return the figures of both commands, run `runs` times in turn."""
    figures: dict[str, list[tuple[float, float, float]]] = {"cp": [], "quantize": []}
    floors = []
    copy = ["cp", "-r", str(source), str(out)]
    if fsync:
        copy = ["sh", "-c", f"cp -r '{source}' '{out}' && sync '{out}'/* '{out}'"]
    quantize = [*DSTOOLS, "quantize", str(source), str(out), "--workers", str(workers)]
    quantize.append("--no-sums")  # bench_sums.py has what they cost
    quantize.append("--fsync" if fsync else "--no-fsync")
    for _ in range(runs):
        for name, command in (("cp", copy), ("quantize", quantize)):
            remove(out)
            drop(source) if cold else warm(source)
            figures[name].append(run(command))
        if not cold and not fsync:
            remove(out)
            command = [sys.executable, __file__, "--floor", str(source), str(out), str(workers)]
            floors.append(float(subprocess.check_output(command)))
    remove(out)
    nbytes = sum(path.stat().st_size for path in source.iterdir())
    seconds = {name: [spent[0] for spent in figures[name]] for name in figures}
    best = {name: min(seconds[name]) for name in figures}
    medians = {name: statistics.median(seconds[name]) for name in figures}
    times_floor = round(medians["quantize"] / statistics.median(floors), 2) if floors else None
    return {
        "input_gb": round(nbytes / 1e9, 3),
        "cache": "cold" if cold else "warm",
        "fsync": fsync,
        "workers": workers,
        "times_faster_than_cp": round(medians["cp"] / medians["quantize"], 2),
        "times_faster_than_cp_best": round(best["cp"] / best["quantize"], 2),
        "times_floor": times_floor,
        "quantize_gb_per_second": round(nbytes / medians["quantize"] / 1e9, 2),
        "peak_rss_mib": round(max(f[2] for f in figures["quantize"]), 1),
        **{
            f"{name}_seconds": {
                "median": round(medians[name], 3),
                "min": round(best[name], 3),
                "max": round(max(seconds[name]), 3),
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
    parser.add_argument("--sweep", type=float, nargs="+", help="sizes in GB; warm, no fsync")
    parser.add_argument("--checkpoint", type=Path, help="use this folder instead")
    parser.add_argument("--folder", type=Path, help="where to put input and outputs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="only warm, without fsync")
    parser.add_argument("--at-least", type=float, default=0, help="times faster than cp")
    parser.add_argument("--or-floor", type=float, default=0, help="at most times the floor instead")
    parser.add_argument("--at-most-mib", type=float, default=math.inf, help="peak RSS")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--floor", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.floor:
        return floor(Path(args.floor[0]), Path(args.floor[1]), int(args.floor[2]))
    results = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for gb in args.sweep or [args.gb]:
            source = args.checkpoint or folder / "in"
            if args.checkpoint is None:
                make = [sys.executable, MAKE, "v3-layer", source, "--gb", str(gb)]
                subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
            choices = (False,) if args.sweep or args.warm else (False, True)
            for cold, fsync in itertools.product(choices, repeat=2):
                result = compare(source, folder / "out", cold, fsync, args.runs, args.workers)
                results.append(result)
                print(json.dumps(result), file=sys.stderr, flush=True)
            if args.checkpoint is None:
                shutil.rmtree(source)
    print(json.dumps(machine() | {"results": results}, indent=1))
    for result in results:
        is_fast = result["times_faster_than_cp_best"] >= args.at_least
        is_near_floor = (result["times_floor"] or math.inf) <= args.or_floor
        if not (is_fast or is_near_floor) or result["peak_rss_mib"] > args.at_most_mib:
            sys.exit(3)


if __name__ == "__main__":
    main()
