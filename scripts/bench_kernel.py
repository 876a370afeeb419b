"""Benchmark of the FP8 kernels against a copy of the same bytes.

    python scripts/bench_kernel.py --mib 512 --repeat 7 --levels avx512vbmi avx512

Prints one JSON object. Each repetition runs every measurement once, so a busy machine slows all of
them. Figures are GB/s of BF16: read by `quantize` and `recover`, written by `dequantize`, copied by
`memcpy`; half as many elements a second. `recover` gets the output of `dequantize`; an ordinary
weight it refuses within `refused_us`, whatever its size. `ratio` divides by memcpy with the same
number of threads: best by best, median by median. Buffers are aligned to a page, as in a streaming
job: unaligned stores run at half the speed.
"""

import argparse
import ctypes
import json
import mmap
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray

from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8, lattice

BLOCK = 128
COLS = 7168  # of DeepSeek-V3
THREADS = (1, 2)


def main() -> None:
    """Parse the arguments, measure, print."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="BF16 input; more than the cache")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--levels", nargs="+", choices=native.levels(), help="default: compiled")
    parser.add_argument(
        "--at-least", type=float, default=0, help="exit 3 if quantize's best ratio is lower"
    )
    arguments = parser.parse_args()
    levels = arguments.levels or native.levels()[:-1] or native.levels()

    step = 2 * COLS * BLOCK * max(THREADS)  # so that every thread gets whole blocks
    rows = max(1, (arguments.mib << 20) // step) * BLOCK * max(THREADS)
    bytes_in = 2 * rows * COLS
    seconds = measure(rows, levels, arguments.repeat)
    speeds = {key: [bytes_in / 1e9 / time for time in times] for key, times in seconds.items()}
    figures = {
        "rows": rows,
        "cols": COLS,
        "mib": bytes_in / 2**20,
        "repeat": arguments.repeat,
        "gb_per_second": [report(key, speeds) for key in speeds],
        "refused_us": refused_us(levels, arguments.repeat),
    }
    print(json.dumps(machine() | figures, indent=2))
    if report((levels[0], "quantize", max(THREADS)), speeds)["ratio_best"] < arguments.at_least:
        sys.exit(3)


def measure(rows: int, levels: list[str], repeat: int) -> dict[tuple[str, str, int], list[float]]:
    """Return the seconds of each repetition by (level, kernel, threads)."""
    weight, back = pages(2 * rows * COLS), pages(2 * rows * COLS)
    codes, scale = pages(rows * COLS), pages(4 * rows * COLS // BLOCK**2)
    normal = np.random.default_rng(0).normal(scale=0.02, size=(BLOCK, COLS)).astype(np.float32)
    block_fp8.narrow(normal, weight)
    weight.reshape(rows // BLOCK, -1)[1:] = weight[: 2 * BLOCK * COLS]

    def part(buffer: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
        bytes_per_block_row = buffer.nbytes // (rows // BLOCK)
        return buffer[first * bytes_per_block_row : last * bytes_per_block_row]

    def copy(first: int, last: int) -> None:
        source, target = part(weight, first, last), part(back, first, last)
        ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)

    def quantize(first: int, last: int) -> None:
        source = part(weight, first, last)
        block_fp8.quantize(source, "BF16", COLS, part(codes, first, last), part(scale, first, last))

    def dequantize(first: int, last: int) -> None:
        source, scales = part(codes, first, last), part(scale, first, last)
        block_fp8.dequantize(source, COLS, scales, part(back, first, last))

    def recover(first: int, last: int) -> None:
        source = part(back, first, last)
        bad = lattice.recover(source, COLS, part(codes, first, last), part(scale, first, last))
        assert bad == -1, f"block {bad} was not recovered"

    seconds: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(repeat):
        for threads in THREADS:
            spent = run(copy, rows // BLOCK, threads)
            seconds.setdefault(("", "memcpy", threads), []).append(spent)
            for level in levels:
                native.use(level)
                for kernel in (quantize, dequantize, recover):
                    spent = run(kernel, rows // BLOCK, threads)
                    seconds.setdefault((level, kernel.__name__, threads), []).append(spent)
    return seconds


def refused_us(levels: list[str], repeat: int) -> dict[str, float]:
    """Return the best time by level to find that a weight has not been FP8, microseconds."""
    normal = np.random.default_rng(0).normal(scale=0.02, size=(BLOCK, COLS)).astype(np.float32)
    weight, codes, scale = pages(normal.nbytes // 2), pages(normal.size), pages(4 * COLS // BLOCK)
    block_fp8.narrow(normal, weight)
    best = {}
    for level in levels:
        native.use(level)
        seconds = []
        for _ in range(10 * repeat):
            start = time.perf_counter()
            bad = lattice.recover(weight, COLS, codes, scale)
            seconds.append(time.perf_counter() - start)
            assert bad == 0
        best[level] = round(min(seconds) * 1e6, 1)
    return best


def run(kernel: Callable[[int, int], None], block_rows: int, threads: int) -> float:
    """Return the seconds of `threads` threads, each with an equal share of the block rows."""
    share = block_rows // threads
    workers = [
        threading.Thread(target=kernel, args=(share * thread, share * (thread + 1)))
        for thread in range(threads)
    ]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def report(
    key: tuple[str, str, int], speeds: dict[tuple[str, str, int], list[float]]
) -> dict[str, Any]:
    """Return one entry of the result."""
    level, kernel, threads = key
    best, median = max(speeds[key]), statistics.median(speeds[key])
    copy = speeds["", "memcpy", threads]
    return {
        "level": level,
        "kernel": kernel,
        "threads": threads,
        "best": round(best, 2),
        "median": round(median, 2),
        "ratio_best": round(best / max(copy), 3),
        "ratio_median": round(median / statistics.median(copy), 3),
    }


def pages(nbytes: int) -> NDArray[np.uint8]:
    """Return zeros, aligned to a page and already touched."""
    buffer = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
    buffer[:] = 0
    return buffer


if __name__ == "__main__":
    main()
