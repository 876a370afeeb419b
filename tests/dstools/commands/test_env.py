"""`dstools env`: what it says is true of this process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


@pytest.mark.parametrize("is_native", [True, False])
def test_env_says_which_kernels_are_in_use(is_native: bool) -> None:
    environment = os.environ | ({} if is_native else {"DSTOOLS_NATIVE": "0"})
    command = [sys.executable, "-m", "dstools", "env"]
    shown = [
        subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for options in (["--json"], [])
    ]
    report = json.loads(shown[0])
    assert shown[1].split() == " ".join(f"{k} {v}" for k, v in report.items()).split()
    from dstools_kernels.cpu import native

    assert report["cpu_kernels"] == (native.instruction_set() if is_native else "numpy")
    levels = list(native.levels()) if is_native else ["numpy"]
    assert report["cpu_levels"].split(", ") == levels
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cpus"] == len(os.sched_getaffinity(0))
