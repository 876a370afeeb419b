"""A disk that is too small: said before the work where it can be known, and resumable where not."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Tree = Callable[[Path], dict[str, str]]
Done = subprocess.CompletedProcess[str]
FILE_LIMIT = 300_000  # bytes; less than a shard


def dstools(*arguments: object, file_limit: int | None = None) -> Done:
    """Run the command; `file_limit`: bytes that a file may grow to."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [sys.executable, "-m", "dstools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


def test_a_disk_too_small_is_said_before_a_byte_is_written(
    small_disk: Path, checkpoint: Callable[..., Path]
) -> None:
    source = checkpoint("tiny", fp8="float32")
    done = dstools("dequantize", source, small_disk / "out")
    assert done.returncode == 1
    assert f"error: {small_disk / 'out'}: needs 11.05 MB, the disk has 8.389 MB free" in done.stderr
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_a_file_that_may_not_grow_leaves_a_run_that_resumes(
    command: str, checkpoint: Callable[..., Path], tmp_path: Path, tree: Tree
) -> None:
    fp8 = {"fp8": "float32"} if command == "dequantize" else {}
    source, out = checkpoint("tiny-qwen3", shard_bytes=4e5, **fp8), tmp_path / "out"
    assert dstools(command, source, tmp_path / "wanted").returncode == 0
    failed = dstools(command, source, out, file_limit=FILE_LIMIT)
    assert failed.returncode == 1
    [error] = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert error.endswith(".safetensors.partial: File too large")
    assert "the same command resumes" in failed.stderr
    assert not out.exists()
    assert dstools(command, source, out).returncode == 0
    assert tree(out) == tree(tmp_path / "wanted")
