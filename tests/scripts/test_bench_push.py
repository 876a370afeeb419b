"""The benchmark of push compares both commands, and can fall short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench_push.py"


@pytest.mark.parametrize("leg", ["xet", "lfs"])
def test_it_prints_a_ratio_and_falls_short_of_what_cannot_be(leg: str, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--gb", "0.001", "--runs", "1", "--folder", tmp_path]
    command += ["--at-most", "0.0001", *(["--lfs"] if leg == "lfs" else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 3, run.stderr
    result = json.loads(run.stdout)
    assert result["leg"] == leg
    assert result["times_hf"] > 0
    for name in ("dstools", "hf"):
        assert result[name]["upload_seconds"] > 0
        assert result[name]["peak_mib"] > 10
    assert not list(tmp_path.iterdir())
