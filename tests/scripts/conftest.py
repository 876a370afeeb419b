"""Scripts run as a user runs them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script(name, *arguments): the finished process of scripts/NAME.py"""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    return run
