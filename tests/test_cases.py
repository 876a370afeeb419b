"""Inputs rebuilt from public bug reports: every case's expected verdicts hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cases/quantize"
CASES = sorted(path.stem for path in FOLDER.glob("[a-z][0-9]_*.py"))


@pytest.mark.parametrize("case", CASES)
def test_a_case_has_its_expected_verdict(case: str, tmp_path: Path) -> None:
    dstools = tmp_path / "dstools"  # the installed command, from this interpreter and path
    dstools.write_text(f'#!/bin/sh\nexec {sys.executable} -m dstools "$@"\n')
    dstools.chmod(0o755)
    environment = os.environ | {"DSTOOLS": str(dstools), "LINES_SHOWN": "40"}
    run = subprocess.run(
        [sys.executable, FOLDER / f"{case}.py", tmp_path / "case"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
