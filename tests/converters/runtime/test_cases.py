"""The cases of tests/cases/runtime that need no exported folder."""

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
        ("sampling_edges", "adapters:draw"),
        ("end_in_a_draft", "adapters:answer"),
        ("stalled_pool", "adapters:answers"),
    ],
)
def test_a_case_passes(case: str, function: str) -> None:
    assert_passes(case, function)


def test_offsets_past_2_to_the_31_are_read_in_64_bits() -> None:
    pytest.importorskip("triton", reason="needs triton, a development extra")
    assert_passes("wide_offsets")


def assert_passes(case: str, *arguments: str) -> None:
    path = os.pathsep.join([str(HERE), *sys.path])
    run = subprocess.run(
        [sys.executable, CASES / f"{case}.py", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PASS" in run.stdout
