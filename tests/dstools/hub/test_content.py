"""What a folder says of itself, for the front matter of its card."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools.hub.card import model_card
from dstools.hub.content import content_of
from dstools.hub.frontmatter import read_card
from dstools_converters.errors import DstoolsError

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


@pytest.fixture
def folder(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """The sample model, exported."""
    return shutil.copytree(exported(SAMPLE), tmp_path / "out")


def change(folder: Path, **keys: object) -> None:
    table = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(table | keys))


def test_an_exported_folder_is_made_from_a_base_and_runs_in_genai(folder: Path) -> None:
    content = content_of(folder, ())
    assert content.is_made_here
    assert not content.is_foreign
    assert content.relation == "quantized"
    assert content.facts == {
        "library_name": "onnxruntime-genai",
        "tags": ["onnx", "onnxruntime-genai", "dstools"],
    }
    readme = (SAMPLE / "README.md").read_bytes()
    assert content.source_card == hashlib.sha256(readme).hexdigest()


def test_codes_and_ranks_are_in_the_tags(folder: Path) -> None:
    table = json.loads((folder / "export.json").read_text())
    del table["files"]["genai_config.json"]
    change(folder, files=table["files"], has_codes=True)
    facts = content_of(folder, ()).facts
    assert facts == {
        "library_name": "onnxruntime",
        "tags": ["onnx", "onnxruntime", "fp8", "dstools"],
    }


def test_shards_for_deepseeks_code_are_not_of_onnx(folder: Path) -> None:
    change(folder, kind="deepseek-inference")
    assert content_of(folder, ()).facts["tags"] == ["deepseek-inference", "dstools"]


def test_a_checkpoint_says_what_it_said_before(tiny_fp8: Path) -> None:
    content = content_of(tiny_fp8, ())
    assert not content.is_made_here
    assert not content.is_foreign
    assert content.facts == {"tags": ["fp8"]}
    assert content.relation == "quantized"
    assert content_of(SAMPLE, ()).is_foreign


def test_a_card_of_an_export_wants_a_base_and_keeps_the_licence_of_the_copied_card(
    folder: Path,
) -> None:
    base = b"---\nlicense: mit\nlibrary_name: transformers\n---\n# The base\n"
    (folder / "README.md").write_bytes(base)
    table = json.loads((folder / "export.json").read_text())
    change(folder, files=table["files"] | {"README.md": hashlib.sha256(base).hexdigest()})
    files = {path.name for path in folder.iterdir()} | {"SHA256SUMS"}
    with pytest.raises(DstoolsError, match="the model that this one was made from is not known"):
        model_card(folder, base=None, local=base, remote=None, files=files)
    made = model_card(folder, base="org/base", local=base, remote=None, files=files, repo="me/x")
    card = read_card(made.text)
    assert card.metadata == {
        "license": "mit",
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "library_name": "onnxruntime-genai",
        "tags": ["onnx", "onnxruntime-genai", "dstools"],
        "pipeline_tag": "text-generation",
    }
    assert "# The base" not in card.body
    assert "# x" in card.body
    assert made.warnings == []
    again = model_card(
        folder, base="org/base", local=base, remote=made.text, files=files, repo="me/x"
    )
    assert again.text == made.text
