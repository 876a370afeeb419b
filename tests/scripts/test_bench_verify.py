"""scripts/bench_verify.py: whole processes against cat, start-up apart, and a bar."""

import json
from pathlib import Path
from typing import Any


def test_one_run_gives_times_ratios_and_memory_and_leaves_nothing(
    tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--folder", tmp_path, "--workers", 1)
    done = run_script("bench_verify", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    nbytes = sum(path.stat().st_size for path in tiny_aligned.glob("*.safetensors"))
    assert report["gb"] == round(nbytes / 1e9, 3)
    seconds = {name: report[f"{name}_seconds"]["best"] for name in ("cat", "verify", "start_up")}
    # a Python process takes some 0.2 s to start, cat of 17 MB some 0.01 s
    assert min(seconds["verify"], seconds["start_up"]) > seconds["cat"] > 0
    assert report["times_cat_with_start_up"] < 1
    assert 10 < report["peak_rss_mib"] < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_missed_bar_exits_with_3(tiny_aligned: Path, run_script: Any, tmp_path: Path) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--folder", tmp_path)
    assert run_script("bench_verify", *words, "--at-least", 1e9).returncode == 3
