"""Repositories and revisions are found in the Hub cache; nothing is downloaded."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from dstools.cli import main
from dstools.source import resolve
from dstools_converters.errors import DstoolsError

OLD, NEW = "a" * 40, "b" * 40  # commits
REPO = "deep-org/Tiny-V3.1"


def lay_out(cache: Path, revisions: dict[str, Path], refs: dict[str, str]) -> None:
    """Write blobs, snapshots of links to them, and refs, as in huggingface_hub's cache guide."""
    storage = cache / f"models--{REPO.replace('/', '--')}"
    (storage / "blobs").mkdir(parents=True)
    for commit, folder in revisions.items():
        snapshot = storage / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            content = file.read_bytes()
            blob = storage / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    for ref, commit in refs.items():
        path = storage / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)


@pytest.fixture
def cache(tiny: Path, tiny_aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache: `main` is tiny; the older commit, with a tag and a branch, is tiny-aligned."""
    cache = tmp_path / "hub"
    refs = {"main": NEW, "v1.0": OLD, "refs/pr/1": OLD}
    lay_out(cache, {NEW: tiny, OLD: tiny_aligned}, refs)
    monkeypatch.setattr(
        constants, "HF_HUB_CACHE", str(cache)
    )  # read from the environment at import
    monkeypatch.chdir(tmp_path)
    return cache


@pytest.mark.parametrize(
    ("source", "commit"),
    [
        (REPO, NEW),
        (f"{REPO}@main", NEW),
        (f"{REPO}@v1.0", OLD),
        (f"{REPO}@refs/pr/1", OLD),
        (f"{REPO}@{OLD}", OLD),
        (f"{REPO}@", NEW),
    ],
)
def test_a_repository_and_its_revisions_are_found(source: str, commit: str, cache: Path) -> None:
    assert resolve(source) == cache / "models--deep-org--Tiny-V3.1" / "snapshots" / commit


def test_a_folder_of_that_name_goes_first(cache: Path, tmp_path: Path) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    assert resolve(REPO) == Path(REPO)
    assert resolve(f"{REPO}@v1.0").name == OLD


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("deep-org/Other", "hf download deep-org/Other"),
        (f"{REPO}@v2.0", f"hf download {REPO} --revision v2.0"),
        (f"{REPO}@{'c' * 40}", f"hf download {REPO} --revision {'c' * 40}"),
    ],
)
def test_what_is_not_in_the_cache_names_the_download(
    source: str, command: str, cache: Path
) -> None:
    result = CliRunner().invoke(main, ["inspect", source])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"error: {source}: no such folder, and not in the Hub cache",
        f"hint: download it first: {command}",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "./deep-org/Other",
        "/deep-org/Other",
        "../x/y",
        "Other",
        "a/b/c",
        "a/b c",
        "",
        "a/b\n",
        "x/y..",
    ],
)
def test_what_cannot_be_a_repository_is_no_such_folder(source: str, cache: Path) -> None:
    with pytest.raises(DstoolsError, match="no such folder") as caught:
        resolve(source)
    assert caught.value.hint


def test_a_file_is_no_folder(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").write_text("")
    with pytest.raises(DstoolsError, match="x/y: no such folder"):
        resolve("x/y")


def test_the_commands_work_on_a_repository_through_its_links(cache: Path, tmp_path: Path) -> None:
    def dstools(*args: str) -> str:
        result = CliRunner().invoke(main, [*args, "--json"])
        assert result.exit_code == 0, result.output
        return result.stdout

    inspected = json.loads(dstools("inspect", REPO))
    assert inspected["model_type"] == "deepseek_v3"
    dstools("quantize", REPO, "fp8")
    dstools("verify", "fp8", "--source", REPO)
    dstools("quantize", f"{REPO}@v1.0", "aligned")
    dstools("verify", "aligned", "--source", f"{REPO}@{OLD}")
    dstools("compare", REPO, "fp8")
    dstools("dequantize", "fp8", "bf16")
    dstools("quantize", "bf16", "again", "--base", "fp8")
    made = sorted((tmp_path / "fp8").iterdir())
    assert not any(path.is_symlink() for path in made)
    # the output is files of its own: the cache may be deleted
    assert (tmp_path / "fp8" / "tokenizer.json").stat().st_nlink == 1
    assert json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]


def test_a_download_that_is_not_complete_names_the_missing_shard(cache: Path) -> None:
    snapshot = resolve(REPO)
    shard = sorted(snapshot.glob("*.safetensors"))[2]
    shard.unlink()
    result = CliRunner().invoke(main, ["quantize", REPO, "out"])
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: {shard.name}: is missing")
    assert hint.startswith("hint: download")
    shard.symlink_to("../../blobs/gone")  # a link whose blob was deleted
    assert CliRunner().invoke(main, ["inspect", REPO]).stderr.startswith(f"error: {shard.name}")


@pytest.mark.parametrize("offline", ["1", "0"])
def test_nothing_reaches_for_the_network(offline: str, cache: Path, tiny: Path) -> None:
    """In a process whose sockets raise, with the cache given by the environment alone."""
    code = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from dstools.cli import main\n"
        "main(sys.argv[1:], prog_name='dstools')\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    found: Callable[..., subprocess.CompletedProcess[str]] = run
    assert found("inspect", REPO).returncode == 0
    missing = found("inspect", "deep-org/Other")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: deep-org/Other: no such folder")
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize("command", ["inspect", "quantize", "dequantize", "compare", "report"])
def test_every_command_warns_of_weights_that_it_does_not_read(
    command: str, tiny: Path, tiny_fp8: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    is_fp8_needed = command in ("dequantize", "report")
    shutil.copytree(tiny_fp8 if is_fp8_needed else tiny, folder)
    folder.chmod(0o755)
    (folder / "stray.safetensors").write_bytes(b"")
    words = {
        "quantize": [folder, tmp_path / "out"],
        "dequantize": [folder, tmp_path / "out"],
        "compare": [folder, folder],
    }
    result = CliRunner().invoke(main, [command, *map(str, words.get(command, [folder]))])
    assert result.exit_code == 0, result.output
    assert "warning: stray.safetensors: is not part of the checkpoint" in result.stderr
