"""The cases of tests/cases/runtime that need neither a folder nor a kernel, on draw and loop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = HERE.parents[1] / "cases" / "runtime"


@pytest.mark.parametrize(
    ("case", "function"),
    [
        ("sampling_edges", "dstools_converters.runtime.draw:draw"),
        ("end_in_a_draft", "adapters:answer"),
        ("stalled_pool", "adapters:answers"),
    ],
)
def test_a_case_passes(case: str, function: str) -> None:
    path = os.pathsep.join([str(HERE), *sys.path])
    run = subprocess.run(
        [sys.executable, CASES / f"{case}.py", function],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PASS" in run.stdout
