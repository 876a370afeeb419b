"""scripts/bench_quantize.py: figures of whole processes, and an exit code for a missed bar."""

import json
from pathlib import Path
from typing import Any

import pytest


def test_one_warm_run_gives_times_ratios_and_memory(
    tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--warm", "--folder", tmp_path)
    done = run_script("bench_quantize", *words, "--workers", 1)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"date", "machine", "results"}
    (result,) = report["results"]
    assert (result["cache"], result["fsync"], result["workers"]) == ("warm", False, 1)
    nbytes = sum(path.stat().st_size for path in tiny_aligned.iterdir())
    assert result["input_gb"] == round(nbytes / 1e9, 3)
    seconds = {name: result[f"{name}_seconds"] for name in ("cp", "quantize")}
    for times in seconds.values():
        assert times["min"] == times["median"] == times["max"] > 0  # of one run
    # a Python process takes some 0.2 s to start, cp of 17 MB some 0.01 s
    assert result["times_faster_than_cp"] == result["times_faster_than_cp_best"] < 1
    assert result["times_floor"] > 1
    assert 10 < result["peak_rss_mib"] < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bar", [("--at-least", 1000), ("--at-most-mib", 1)])
def test_a_missed_bar_exits_with_3(
    bar: tuple[str, int], tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--warm", "--folder", tmp_path, *bar)
    assert run_script("bench_quantize", *words).returncode == 3


def test_a_run_near_the_floor_need_not_beat_cp(
    tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--warm", "--folder", tmp_path)
    bars = ("--at-least", 1000, "--or-floor", 1000)
    assert run_script("bench_quantize", *words, *bars).returncode == 0


def test_a_checkpoint_that_cannot_be_quantized_stops_it_with_the_command(
    run_script: Any, tmp_path: Path
) -> None:
    empty, work = tmp_path / "empty", tmp_path / "work"
    empty.mkdir()
    work.mkdir()
    words = ("--checkpoint", empty, "--runs", 1, "--warm", "--folder", work)
    done = run_script("bench_quantize", *words)
    assert done.returncode == 1
    assert " -m dstools quantize " in done.stderr
    assert done.stderr.endswith("exited with 1\n")
