"""The steps of the ladder and their times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dstools_kernels.proof import ladder


@pytest.mark.parametrize(
    ("file", "test", "calls", "step"),
    [
        ("test_interpreter.py", "test_a_probe_that_passes", (), "L0 interpreter"),
        ("test_interpreter.py", "test_casts_to_fp8[x]", ("cast",), "L1 casts"),
        ("test_gemm_triton.py", "test_outputs_are_float64_rounded_once", (), "L2 float64"),
        ("test_sanitizer.py", "test_overlapping_tiles_are_a_race", (), "L3 sanitizer"),
        ("test_accumulate.py", "test_truncation_by_hand", (), "L4 emulated accumulator"),
        ("test_compile.py", "test_sizes_of_1_compile", (), "L5 compilation"),
        ("test_compile.py", "test_a_gate_names", ("mutate", "gate"), "L6 mutants"),
        ("test_gemm_triton.py", "test_the_sanitizer_catches", ("mutate",), "L6 mutants"),
    ],
)
def test_a_test_has_a_step(file: str, test: str, calls: tuple[str, ...], step: str) -> None:
    assert ladder.step_of(file, test, calls).startswith(step)


def test_the_report_adds_up_processes_and_counts_the_time_of_the_cpu() -> None:
    records = [("L5 b", (60, 61)), ("L0 a", (3, 2)), ("start-up, collection", (4, 3))]
    records.append(("L5 b", (1, 1)))
    text = ladder.report([json.dumps(record) for record in records])
    assert text.splitlines() == [
        "== ladder: L0 a: 3 s, 2 s of CPU",
        "== ladder: L5 b: 61 s, 62 s of CPU",
        "== ladder: start-up, collection: 4 s, 3 s of CPU",
        "== ladder: all: 68 s, 67 s of CPU",
    ]


def test_the_plugin_times_what_pytest_runs_child_processes_included(tmp_path: Path) -> None:
    test, times = tmp_path / "test_sanitizer.py", tmp_path / "times"
    test.write_text(
        "import subprocess, sys\n"
        "def test_x():\n"
        "    burn = 'import time\\nwhile time.process_time() < 0.4: pass'\n"
        "    subprocess.run([sys.executable, '-c', burn], check=True)\n"
        "def test_fails(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "dstools_kernels.proof.ladder"]
    options = ["--times", str(times), "-c", os.devnull, str(test)]
    assert subprocess.run([*command, *options], capture_output=True, check=False).returncode == 1
    steps = dict(map(json.loads, times.read_text().splitlines()))
    assert steps.keys() == {"L3 sanitizer", ladder.START}
    assert min(steps["L3 sanitizer"]) >= 0.3
