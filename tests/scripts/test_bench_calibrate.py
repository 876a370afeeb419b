"""scripts/bench_calibrate.py: the run that it times, its log, and what it computes for 671B."""

import json
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(load_script: Any) -> Any:
    return load_script("bench_calibrate")


def test_the_child_reports_memory_and_logs_every_matrix(
    script: Any, tiny_aligned: Path, run_script: Any, tmp_path: Path
) -> None:
    """`measure` reads roles, shapes and seconds from these lines, by the same expression."""
    tokens, out = json.dumps({"samples": 8, "seq_len": 64}), tmp_path / "out"
    done = run_script("bench_calibrate", "--child", tiny_aligned, out, tokens, "cpu")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {"peak_kib", "cpu_seconds", "gpu_kib"}
    assert figures["gpu_kib"] == 0
    assert figures["peak_kib"] > 100_000  # torch alone takes more
    matches = [script.LINE.search(line) for line in done.stderr.splitlines()]
    matrices = {match[1]: (int(match[2]), int(match[3])) for match in matches if match}
    notes = json.loads((out / "calibration.json").read_text())["tensors"]
    assert matrices.keys() == notes.keys()
    assert matrices["model.layers.1.mlp.experts.0.down_proj.weight"] == (256, 128)
    assert all(re.fullmatch(r"[\d.]+", match[5]) for match in matches if match)


def test_flops_of_a_matrix_worked_by_hand(script: Any) -> None:
    # 6^3 / 3 = 72 for the factor; 2 x 36 = 72 for GPTQ and for each of three sums
    assert script.rounding_flops(2, 6) == 72 + 72 + 3 * 72


def test_the_estimate_adds_its_terms_up(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "speeds", lambda device: [("1 PFLOP/s", 1e15)])
    script.print_extrapolation("cpu")
    head, *terms, hours = capsys.readouterr().out.splitlines()
    assert "671B on 1048576 tokens, 32768 per routed expert" in head
    flops = {line.split()[0]: float(line.split()[1]) for line in terms}
    assert list(flops) == ["forward", "Hessians", "rounding"]
    # 2 FLOPs a weight and token for the 37B that a token passes, less embedding and head
    assert flops["forward"] == pytest.approx(2 * 37e9 * 1048576, rel=0.05)
    assert float(hours.split()[0]) == pytest.approx(sum(flops.values()) / 1e15 / 3600, abs=0.1)
