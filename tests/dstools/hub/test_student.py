"""The card of a student is found beside its stage."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub.student import card_of

if TYPE_CHECKING:
    from fakehub import FakeHub

CARD = {
    "README.md": b"---\nlicense: mit\nbase_model: a/b\n---\n# Student\n",
    "DATA.md": b"# Data\n",
    "loss.svg": b"<svg/>",
}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder of a finished stage in a store."""
    folder = tmp_path / "store/sft-1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"stage": "sft", "outputs": {}}))
    return folder


def add_card(stage: Path, name: str, inputs: dict[str, str]) -> Path:
    folder = stage.parent / name
    folder.mkdir()
    for file in CARD:
        (folder / file).write_bytes(CARD[file])
    outputs = {
        file: {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        for file, content in CARD.items()
    }
    manifest = {"stage": "card", "inputs": inputs, "outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def digest(stage: Path) -> str:
    return sha256((stage / "manifest.json").read_bytes()).hexdigest()


def test_the_card_is_the_one_that_was_made_of_the_stage(stage: Path) -> None:
    add_card(stage, "card-of-another", {"sft": "0" * 64})
    card = add_card(stage, "card-1", {"sft": digest(stage)})
    assert card_of(stage) == {
        name: (card / name, sha256(content).hexdigest()) for name, content in CARD.items()
    }


def test_it_is_found_through_a_link_to_the_stage(stage: Path, tmp_path: Path) -> None:
    card = add_card(stage, "card-1", {"sft": digest(stage)})
    (tmp_path / "sft").symlink_to(stage)
    assert card_of(tmp_path / "sft")["README.md"][0].parent == card.resolve()


def test_of_several_it_is_the_one_of_most_stages(stage: Path) -> None:
    card = add_card(stage, "card-1", {"sft": digest(stage), "eval": "0" * 64})
    add_card(stage, "card-2", {"sft": digest(stage)})
    assert card_of(stage)["README.md"][0].parent == card


def test_without_a_card_and_beside_damaged_ones_there_is_none(stage: Path) -> None:
    assert card_of(stage) == {}
    (stage.parent / "card-x").mkdir()
    (add_card(stage, "card-y", {}) / "manifest.json").write_text("{")
    assert card_of(stage) == {}


def test_a_student_is_published_with_its_card_and_loaded_by_name(
    checkpoint: Callable[..., Path], stage: Path, push: Callable[..., Any], hub: "FakeHub"
) -> None:
    for path in checkpoint("tiny-qwen2").iterdir():
        shutil.copy(path, stage / path.name)
    (stage / "timing.json").write_text("{}")
    outputs = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        for path in stage.iterdir()
        if path.name not in ("manifest.json", "timing.json")
    }
    (stage / "manifest.json").write_text(json.dumps({"stage": "sft", "outputs": outputs}))
    card = add_card(stage, "card-1", {"sft": digest(stage)})
    (card / "DATA.md").write_text("changed since")
    run = push(stage, "alice/student", "--yes")
    assert "DATA.md: is not the file that manifest.json lists" in run.stderr
    (card / "DATA.md").write_bytes(CARD["DATA.md"])
    run = push(stage, "alice/student", "--yes")
    assert run.code == 0, run.stderr
    published = set(hub.head("alice/student")[1]) - {".gitattributes"}
    assert published == {*outputs, "README.md", "DATA.md", "loss.svg", "SHA256SUMS"}
    assert b"# Student" in hub.content("alice/student", "README.md")
    code = "import sys, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
    code += "print(type(m).__name__, len(t.AutoTokenizer.from_pretrained(sys.argv[1])))"
    command = [sys.executable, "-c", code, "alice/student"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Qwen2ForCausalLM")
