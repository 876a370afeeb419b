"""An exported folder on the Hub and back: whole, checked, and a flipped byte named."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub.leaks import leaks
from dstools.hub.selection import is_weights, select
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
REPO = "alice/model"
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)
FILES = {
    "config.json",
    "export.json",
    "genai_config.json",
    "generation_config.json",
    "model.data",
    "model.onnx",
    "mtp.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def folder(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """The sample model, exported, and its licence."""
    out = shutil.copytree(exported(SAMPLE), tmp_path / "out")
    (out / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n")
    return out


def with_engine(folder: Path) -> None:
    """Put an engine into a folder, and list it."""
    (folder / "model.plan").write_bytes(b"an engine")
    table = json.loads((folder / "export.json").read_text())
    table["engines"] = {"model.plan": hashlib.sha256(b"an engine").hexdigest()}
    (folder / "export.json").write_text(json.dumps(table))


def with_plugins(folder: Path) -> str:
    """Put a library of plugins into a folder, and list it; return its sha256."""
    digest = hashlib.sha256(b"a library").hexdigest()
    (folder / "libdstools_trt.so").write_bytes(b"a library")
    table = json.loads((folder / "export.json").read_text())
    table["files"]["libdstools_trt.so"] = digest
    (folder / "export.json").write_text(json.dumps(table))
    return digest


def dstools(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_copy_is_whole_and_one_flipped_byte_of_it_is_named(
    push: Callable[..., Any], folder: Path, hub: "FakeHub", tmp_path: Path
) -> None:
    run = push(folder, REPO, "--yes")
    assert run.code == 0, run.stderr
    assert "98 tensors by their sha256" in run.stdout
    held = set(hub.head(REPO)[1]) - {".gitattributes"}
    assert held == {*FILES, "README.md", "SHA256SUMS"}
    card = hub.content(REPO, "README.md").decode()
    assert "library_name: onnxruntime-genai" in card
    assert "8 pages of 64" not in card
    assert "64 pages of 64 tokens" in card
    assert "**This export itself was not run.**" in card

    copy = tmp_path / "copy"
    done = dstools("huggingface_hub.cli.hf", "download", REPO, "--local-dir", copy)
    assert done.returncode == 0, done.stderr
    done = dstools("dstools", "verify", copy, "--sums", "--source", SAMPLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 tensors against the checkpoint, byte by byte" in done.stdout

    listed = json.loads((copy / "export.json").read_text())["weights"]["model.data"]
    (place,) = [weight["offset"] for weight in listed if weight["name"] == "lm_head.weight"]
    with (copy / "model.data").open("r+b") as file:
        file.seek(place + 1000)
        byte = file.read(1)[0]
        file.seek(place + 1000)
        file.write(bytes([byte ^ 4]))
    done = dstools("dstools", "verify", copy)
    assert done.returncode == 3
    assert "error: model.data: lm_head.weight: its bytes differ" in done.stdout
    assert done.stdout.count("error: ") == 1


@one_leg
def test_a_damaged_folder_is_not_published(
    push: Callable[..., Any], folder: Path, hub: "FakeHub"
) -> None:
    with (folder / "model.data").open("r+b") as file:
        file.write(b"\xff")
    run = push(folder, REPO, "--yes")
    assert run.code == 1
    assert "error: model.data: model.embed_tokens.weight: its bytes differ" in run.stderr
    assert not hub.repos


# -------------------------------------------------------------------------- what is selected


def test_what_lies_beside_the_listed_files_is_left_out(folder: Path) -> None:
    for name in ("check/fp32.data", "cache/a.rtx", "notes.md", "old.onnx", "trace.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    found = select(folder)
    assert set(found.files) == {*FILES, "README.md"}
    assert found.left_out == ["cache/a.rtx", "check/fp32.data", "notes.md", "old.onnx", "trace.log"]
    assert found.faults == []


def test_an_engine_goes_along_when_it_is_asked_for(folder: Path) -> None:
    with_engine(folder)
    found = select(folder)
    assert "model.plan" not in found.files
    assert found.left_out == ["model.plan"]
    assert "model.plan" in select(folder, takes_engines=True).files


def test_plugins_go_along_when_they_are_asked_for(folder: Path) -> None:
    with_plugins(folder)
    found = select(folder)
    assert "libdstools_trt.so" not in found.files
    assert (found.left_out, found.faults) == (["libdstools_trt.so"], [])
    assert "libdstools_trt.so" in select(folder, takes_engines=True).files


@one_leg
def test_a_copy_without_plugins_is_whole_and_a_card_names_those_that_go_along(
    push: Callable[..., Any], folder: Path, hub: "FakeHub", tmp_path: Path
) -> None:
    digest = with_plugins(folder)
    run = push(folder, REPO, "--yes")
    assert run.code == 0, run.stderr
    assert "libdstools_trt.so" not in hub.head(REPO)[1]
    assert digest not in hub.content(REPO, "README.md").decode()
    copy = tmp_path / "copy"
    for name in hub.head(REPO)[1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(hub.content(REPO, name))
    done = dstools("dstools", "verify", copy, "--sums")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "libdstools_trt.so: is listed and not here" in done.stdout + done.stderr
    run = push(folder, "alice/other", "--yes", "--engines")
    assert run.code == 0, run.stderr
    assert hub.content("alice/other", "libdstools_trt.so") == b"a library"
    assert (
        f"- libdstools_trt.so, sha256 {digest}" in hub.content("alice/other", "README.md").decode()
    )


def test_engines_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(DstoolsError, match="lists no engine"):
        select(folder, takes_engines=True)
    with pytest.raises(DstoolsError, match=r"has no export\.json"):
        select(SAMPLE, takes_engines=True)


def test_a_listed_engine_that_is_gone_is_missing_only_when_it_is_asked_for(folder: Path) -> None:
    with_engine(folder)
    (folder / "model.plan").unlink()
    assert select(folder).faults == []
    (fault,) = select(folder, takes_engines=True).faults
    assert (fault.code, fault.where) == ("missing", "model.plan")


@pytest.mark.parametrize("name", ["model.data", "mtp.onnx", "genai_config.json"])
def test_a_listed_file_that_is_gone_is_named_in_the_plan(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (fault,) = select(folder).faults
    assert (fault.code, fault.where) == ("missing", name)
    assert fault.message == "is listed in export.json and is not in the folder"


def test_a_file_of_a_model_that_is_not_listed_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x")
    (fault,) = select(folder).faults
    assert (fault.code, fault.where) == ("unlisted", "chat_template.jinja")
    assert "export.json does not list it" in fault.message


def test_a_list_that_names_a_file_elsewhere_publishes_nothing(folder: Path) -> None:
    table = json.loads((folder / "export.json").read_text())
    table["files"]["../secret"] = "0" * 64
    (folder / "export.json").write_text(json.dumps(table))
    found = select(folder)
    assert "../secret" not in found.files
    assert [fault.where for fault in found.faults] == ["../secret"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("rank1/model.data", True),
        ("model.plan", True),
        ("libdstools_trt.so", True),
        ("export.json", True),
        ("rank0/mtp.onnx", True),
        ("genai_config.json", False),
    ],
)
def test_old_files_of_an_export_contradict_a_new_model(name: str, counts: bool) -> None:
    assert is_weights(name) is counts


def test_a_path_of_this_machine_in_a_graph_is_found_and_weights_are_not_searched(
    folder: Path,
) -> None:
    (folder / "mtp.onnx").write_bytes(b"\x0a\x20" + str(folder).encode() + b"/layer.py")
    (folder / "model.data").write_bytes(str(folder).encode())
    (finding,) = leaks(select(folder).files, b"", folder, "hf_good")
    assert finding.where.startswith("mtp.onnx, line ")
    assert finding.message == "names a folder of this machine"
