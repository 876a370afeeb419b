"""A tied head is compared with the embeddings, to the last byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint import tied
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.checkpoint.tied import check_tied, require_tied
from dstools_converters.errors import DstoolsError

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
Make = Callable[..., Path]


@pytest.fixture
def make(checkpoint: Make, tmp_path: Path) -> Make:
    """make(change=0, tied=True, dtype=None): a Llama whose head is the embeddings, with changes."""
    import torch
    from safetensors.torch import load_file, save_file

    def get(change: int | None, *, is_tied: bool = True, dtype: torch.dtype | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(checkpoint("tiny-llama", shard_bytes=1 << 30), folder, dirs_exist_ok=True)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": is_tied}))
        shard = folder / "model.safetensors"
        tensors = load_file(shard)
        head = tensors[EMBEDDINGS].clone().to(dtype or tensors[EMBEDDINGS].dtype)
        if change is not None:
            head.view(-1)[change] += 1
        save_file(tensors | {HEAD: head}, shard, {"format": "pt"})
        return folder

    return get


def found(folder: Path) -> list[tuple[str, str]]:
    with open_checkpoint(folder) as opened:
        return [(f.level, f.where) for f in check_tied(take_inventory(opened))]


@pytest.mark.parametrize("change", [0, 1000, -1])
@pytest.mark.parametrize("step", [1 << 20, 2048])
def test_one_element_that_differs_is_a_warning_with_both_names(
    make: Make, change: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tied, "STEP_BYTES", step)
    folder = make(change)
    with open_checkpoint(folder) as opened:
        (finding,) = check_tied(take_inventory(opened))
    assert (finding.level, finding.where) == ("warning", f"model.safetensors: {HEAD}")
    assert EMBEDDINGS in finding.message


def test_a_head_in_another_dtype_differs(make: Make) -> None:
    import torch

    assert found(make(None, dtype=torch.float32)) == [("warning", f"model.safetensors: {HEAD}")]


def test_equal_bytes_and_heads_that_are_not_tied_are_no_finding(
    make: Make, checkpoint: Make, tmp_path: Path
) -> None:
    assert found(make(None)) == []
    shutil.rmtree(tmp_path / "model")
    assert found(make(5, is_tied=False)) == []
    assert found(checkpoint("tiny-qwen2")) == []  # tied, without a head


def test_quantize_and_verify_say_it_and_the_hint_ends_it(make: Make, tmp_path: Path) -> None:
    folder = make(7)

    def output(*words: str | Path) -> str:
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    warning = f"warning: model.safetensors: {HEAD}: differs from"
    assert warning in output("quantize", folder, tmp_path / "out")
    assert warning in output("verify", folder)
    assert warning in output("verify", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert warning not in output("quantize", folder, tmp_path / "again")
    assert warning not in output("verify", tmp_path / "again")


def test_what_needs_logits_refuses_it_with_the_tensor_of_the_folder(make: Make) -> None:
    folder = make(7)
    with open_checkpoint(folder) as opened, pytest.raises(DstoolsError) as raised:
        require_tied(take_inventory(opened))
    assert str(raised.value).startswith(f"{folder}/model.safetensors: {HEAD}: differs from ")
    assert "tie_word_embeddings to false in config.json to use lm_head.weight" in raised.value.hint
    with open_checkpoint(make(None)) as opened:
        require_tied(take_inventory(opened))
