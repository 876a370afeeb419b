"""The command line, run in this process, and copies of checkpoints to run it on.

def test_x(dstools): result = dstools("verify", folder, "--json")  # any exit code
def test_y(ok): text = ok("inspect", folder).stdout                # exit code 0
"""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main


@pytest.fixture(scope="session")
def dstools() -> Callable[..., Result]:
    """dstools(*words): the result of a command; an exception other than SystemExit is raised."""

    def run(*words: str | Path) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def ok(dstools: Callable[..., Result]) -> Callable[..., Result]:
    """ok(*words): the same of a command that must succeed."""

    def run(*words: str | Path) -> Result:
        result = dstools(*words)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], dict[str, str]]:
    """digest(folder): the sha256 of every file in it."""

    def get(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    return get


@pytest.fixture(scope="session")
def edited() -> Callable[..., Path]:
    """edited(source, folder, key=value): a copy of a checkpoint with other values in its config."""

    def copy(source: Path, folder: Path, **config: Any) -> Path:
        shutil.copytree(source, folder)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return copy
