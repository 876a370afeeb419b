"""Conversions killed, or out of disk space, at every call that writes, names or removes a file.

Each such call of a run is once not made, and each write once made by half. What is left never looks
like a model, unless it is the finished one; the same command completes it, with the bytes of a run
that was left alone; the source is as it was. The same for a disk that is full from that call on,
which must be said in one line.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from dstools_converters.checkpoint.folder import INDEX, SINGLE

Commands = Callable[[Path], Callable[..., Any]]
Tree = Callable[[Path], dict[str, str]]


@pytest.fixture(params=["quantize", "quantize to one file", "dequantize"])
def command(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Path], workplace: Path
) -> list[str]:
    """A conversion of 35 weights into `out`; in several shards, but for one."""
    name = request.param.split()[0]
    workers = "2" if request.param == "quantize" else "1"
    size = {} if "one file" in request.param else {"shard_bytes": 4e5}
    fp8 = {"fp8": "float32"} if name == "dequantize" else {}
    source = checkpoint("tiny-qwen3", **size, **fp8)
    return [name, str(source), str(workplace / "out"), "--workers", workers]


def models(folder: Path) -> list[Path]:
    """Return the folders that transformers would load: a config, and all shards of the index."""
    return [path.parent for path in folder.rglob("config.json") if _is_whole(path.parent)]


def _is_whole(folder: Path) -> bool:
    if (folder / SINGLE).exists():
        return True
    if not (folder / INDEX).exists():
        return False
    try:
        shards = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
    except ValueError:
        return False  # torn; transformers refuses it
    return all((folder / name).exists() for name in set(shards))


def calls_of(run: Callable[..., Any], command: list[str], out: Path) -> int:
    """Return how many calls an undisturbed run makes; its output is moved to `wanted`."""
    done = run(command)
    assert done.code == 0, done.output
    out.rename(out.with_name("wanted"))
    return int(done.calls)


@pytest.mark.parametrize(
    "missing", ["nothing", "config.json", INDEX, "model-00002-of-00015.safetensors"]
)
def test_a_folder_is_whole_if_transformers_loads_it(
    checkpoint: Callable[..., Path], tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("tiny-qwen3", shard_bytes=4e5), folder)
    assert models(tmp_path) == [folder]
    if missing != "nothing":
        folder.chmod(0o755)
        (folder / missing).unlink()
    try:
        transformers.AutoModelForCausalLM.from_pretrained(folder)
        is_loaded = True
    except (OSError, ValueError):
        is_loaded = False
    assert is_loaded == (missing == "nothing") == bool(models(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "tear"])
def test_killed_at_any_call_the_same_command_makes_the_same_bytes(
    commands: Commands, command: list[str], mode: str, workplace: Path, tree: Tree
) -> None:
    source, out = Path(command[1]), workplace / "out"
    before, run = tree(source), commands(out)
    calls = calls_of(run, command, out)
    assert calls > 80
    wanted = tree(workplace / "wanted")
    for at in range(1, calls + 1):
        killed = run(command, at=at, mode=mode)
        if mode == "tear" and killed.code == 0:  # fewer of the calls are writes
            assert at > calls / 2
            break
        assert killed.code == -9, f"{mode} at call {at}: {killed}"
        for folder in models(workplace):
            assert tree(folder) == wanted, f"{folder} looks like a model; {mode} at call {at}"
        resumed = run(command)
        if resumed.code:  # killed after it had published and cleaned up
            assert "exists" in resumed.output, f"{mode} at call {at}: {resumed.output}"
        assert tree(out) == wanted, f"other bytes; {mode} at call {at}"
        assert not out.with_name("out.incomplete").exists(), f"left over; {mode} at call {at}"
        shutil.rmtree(out)
    assert tree(source) == before


@pytest.mark.slow
def test_a_disk_full_from_any_call_on_is_one_line_and_the_same_command_resumes(
    commands: Commands, command: list[str], workplace: Path, tree: Tree
) -> None:
    out = workplace / "out"
    run = commands(out)
    calls = calls_of(run, command, out)
    wanted = tree(workplace / "wanted")
    for at in range(1, calls + 1):
        failed = run(command, at=at, mode="fail")
        lines = [line for line in failed.output.splitlines() if line.startswith("error: ")]
        if failed.code == 0:  # only the cleaning up after publishing failed
            assert tree(out) == wanted, f"fail at call {at}"
        else:
            assert failed.code == 1, f"fail at call {at}: {failed.output}"
            assert len(lines) == 1, f"fail at call {at}: {failed.output}"
            assert "Traceback" not in failed.output
        for folder in models(workplace):
            assert tree(folder) == wanted, f"{folder} looks like a model; fail at call {at}"
        resumed = run(command)
        if resumed.code:
            assert "exists" in resumed.output, f"fail at call {at}: {resumed.output}"
        assert tree(out) == wanted, f"other bytes; fail at call {at}"
        shutil.rmtree(out)
