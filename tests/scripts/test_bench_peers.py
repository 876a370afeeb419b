"""scripts/bench_peers.py, with a stand-in for llm-compressor: what is run, measured and printed."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def script(load_script: Any) -> Any:
    return load_script("bench_peers")


STAND_IN = """#!/bin/sh
# of the environment's python: `bench_peers.py --peer SOURCE IDS OUT`; rounds to nearest instead
test "$2" = --peer || exit 9
cp "$4" {ids}
exec {python} -m dstools quantize "$3" "$5" --format compressed-tensors
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN.format(ids=tmp_path / "ids.json", python=sys.executable))
    python.chmod(0o755)
    return tmp_path / "venv"


@pytest.mark.slow
def test_both_are_run_on_the_same_tokens_and_measured_by_one_command(
    run_script: Any, venv: Path
) -> None:
    calibration, heldout = (DATA / f"sample-v3-{name}.jsonl" for name in ("calibration", "heldout"))
    words = ["--source", DATA / "sample-v3", "--calibration", calibration, "--heldout", heldout]
    words += ["--samples", 48, "--heldout-samples", 4, "--seq-len", 128, "--folder", venv.parent]
    done = run_script("bench_peers", "--venv", venv, *words, "--at-most-kl", 1)
    assert done.returncode == 0, done.stderr
    head, _, ours, peer, *_, ratio = done.stdout.splitlines()
    assert head.split("|")[4].strip() == "peak memory"
    mine, its = ([cell.strip() for cell in row.split("|")[1:-1]] for row in (ours, peer))
    assert [mine[0], its[0]] == ["dstools", "llm-compressor"]
    for cells in (mine, its):
        seconds, cpu_seconds, peak, kl, _, kl_fp8, error = cells[1:]
        assert float(seconds.removesuffix(" s")) > 0
        assert float(cpu_seconds.removesuffix(" s")) > 0
        assert float(peak.removesuffix(" MiB").replace(",", "")) > 20
        assert 0 < float(kl) < float(kl_fp8) < 1
        assert 0 < float(error.removesuffix("%")) < 10
    assert float(mine[7][:-1]) < float(its[7][:-1])  # gptq against rounding to nearest
    assert ratio.startswith("dstools / llm-compressor: CPU time ")
    ids = json.loads((venv.parent / "ids.json").read_text())
    assert [len(row) for row in ids] == [128] * 48


def test_a_missed_bound_exits_with_3(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    qualities = iter(
        [script.Quality(0.01, 0.1, 0.02, 0.02), script.Quality(0.02, 0.1, 0.02, 0.02)] * 2
    )
    monkeypatch.setattr(script, "measure", lambda command: costs[command[0]])
    monkeypatch.setattr(script, "evaluate", lambda args, out: next(qualities))
    monkeypatch.setattr(script, "peer", lambda args, folder, out: ["peer"])
    costs = {sys.executable: script.Cost(2, 2, 100, 0), "peer": script.Cost(3, 3, 100, 0)}
    words = ["--venv", "v", "--source", "m", "--calibration", "c", "--heldout", "h"]
    for bound, code in (("0.6", 3), ("0.7", 0)):  # 2 s are 0.67 times 3 s
        monkeypatch.setattr(sys, "argv", ["bench_peers.py", *words, "--at-most-time", bound])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == code


def test_memory_is_that_of_the_children_too(script: Any) -> None:
    child = "data = bytearray(64 << 20); import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}] )"
    both = "data = bytearray(64 << 20); " + parent
    cost = script.measure([sys.executable, "-c", both])
    assert 128 < cost.peak_mib < 256
    assert cost.seconds >= 1
    assert script.tree_mib(os.getpid()) > 10
    assert script.tree_mib(2**22 + 1) == 0  # no such process


def test_a_failed_run_shows_what_it_printed(script: Any) -> None:
    with pytest.raises(SystemExit, match="exited with 3:\nno wheel"):
        script.measure(["sh", "-c", "echo no wheel >&2; exit 3"])
