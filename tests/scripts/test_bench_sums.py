"""scripts/bench_sums.py: what SHA256SUMS costs, beside the speed of sha256 itself."""

import json
from pathlib import Path
from typing import Any


def test_one_run_gives_ratios_and_the_speed_of_sha256(
    tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    words = ("--checkpoint", tiny_aligned, "--runs", 1, "--folder", tmp_path, "--workers", 1)
    done = run_script("bench_sums", *words, "--at-most", 0.01)
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    warm, cold = report["results"]
    assert (warm["cache"], warm["fsync"], cold["cache"], cold["fsync"]) == (
        "warm", False, "cold", True,
    )  # fmt: skip
    for result in (warm, cold):
        ratio = result["seconds_with"]["median"] / result["seconds_without"]["median"]
        assert abs(result["times_without"] - ratio) < 0.02  # of figures that are rounded
    hashed = report["sha256"]
    assert hashed["shards"] > 0
    assert 0.01 < hashed["hashlib_gb_per_second"] < 100
    assert list(tmp_path.iterdir()) == []
