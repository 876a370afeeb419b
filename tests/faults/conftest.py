"""`dstools` in a process whose system calls can be made to kill it or to fail.

run = commands(below)            below: count and act on calls on paths that begin so
run(args)                        an Outcome: exit code or -9, calls counted, output
run(args, at=k, mode="kill")     see faults.c for the modes
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
MODES = {"count": 0, "kill": 1, "tear": 2, "fail": 3}  # of faults.c


class Outcome(NamedTuple):
    """What became of a command."""

    code: int  # exit code, or the negative number of the signal
    calls: int  # that change what is below the path; 0 if it was killed
    output: str  # stdout and stderr


@pytest.fixture(scope="session")
def faults_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """faults.c, compiled."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    compiler = os.environ.get("CC", "cc")
    source = str(HERE / "faults.c")
    built = subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", source, "-o", library, "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return library


@pytest.fixture
def commands(faults_library: Path, fork_server: Any) -> Callable[[Path], Callable[..., Outcome]]:
    """Start a runner; it ends with the test."""
    ask = fork_server(LD_PRELOAD=str(faults_library))

    def bind(below: Path) -> Callable[..., Outcome]:
        def run(args: list[str], at: int = 0, mode: str = "count") -> Outcome:
            answer = ask(args=args, below=str(below), at=at, mode=MODES[mode])
            code = os.waitstatus_to_exitcode(answer["status"])
            return Outcome(code, answer["calls"], answer["output"])

        return run

    return bind


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty folder, in memory where there is a place: thousands of fsyncs take minutes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="dstools-faults-", dir=memory) as folder:
        yield Path(folder)
