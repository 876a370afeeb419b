"""Scripts run as a user runs them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script(name, *arguments): the finished process of scripts/NAME.py"""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.fixture
def make_fp8(tmp_path: Path) -> Callable[[Path], Path]:
    """make_fp8(source): what `dstools quantize` makes of it."""

    def make(source: Path) -> Path:
        out = tmp_path / f"{source.name}-fp8"
        result = CliRunner().invoke(main, ["quantize", str(source), str(out)])
        assert result.exit_code == 0, result.output
        return out

    return make
