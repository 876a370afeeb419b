"""scripts/bench_kernel.py: one object of figures, and an exit code for a missed bar."""

import json
from typing import Any

from dstools_kernels.cpu import native

SMALLEST = ("--mib", 1, "--repeat", 1)


def test_every_kernel_is_measured_at_every_level_and_number_of_threads(run_script: Any) -> None:
    levels = native.levels()[:2]
    done = run_script("bench_kernel", *SMALLEST, "--levels", *levels)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) >= {"date", "machine", "rows", "cols", "repeat"}
    # whole blocks of 128 rows for each of two threads: 7168 x 2 bytes x 256 rows are 3.5 MiB
    assert (figures["rows"], figures["mib"]) == (256, 3.5)
    measured = {(row["level"], row["kernel"], row["threads"]) for row in figures["gb_per_second"]}
    kernels = ("quantize", "dequantize", "recover")
    assert measured == {("", "memcpy", threads) for threads in (1, 2)} | {
        (level, kernel, threads) for level in levels for kernel in kernels for threads in (1, 2)
    }
    assert set(figures["refused_us"]) == set(levels)
    for row in figures["gb_per_second"]:
        assert row["best"] == row["median"] >= 0  # of one repetition
        if row["kernel"] == "memcpy":
            assert row["ratio_best"] == 1


def test_a_ratio_below_the_bar_exits_with_3(run_script: Any) -> None:
    done = run_script("bench_kernel", *SMALLEST, "--at-least", 1000)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["gb_per_second"]
