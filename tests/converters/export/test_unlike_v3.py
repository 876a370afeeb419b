"""Checkpoints that differ from V3's, through the command: exported right, or refused in a line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.export.deepseek import Options, plan
from dstools_converters.export.folder import require_export
from dstools_converters.export.trt.logits import require_same_logits
from dstools_converters.runtime.weights import sound_inventory
from dstools_converters.verify.folder import verify

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SHORT = ("--context", "128")
Source = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def source(make_checkpoint: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    """source("tiny", block=64, fp8=..., **config): a checkpoint of two layers with a tokenizer."""

    def make(kind: str, block: int = 128, fp8: Any = None, **config: object) -> Path:
        small = make_checkpoint.CONFIGS[kind] | {"num_hidden_layers": 2} | config
        monkeypatch.setitem(make_checkpoint.CONFIGS, "tiny-odd", small)
        monkeypatch.setattr(make_checkpoint, "BLOCK", block)
        folder: Path = make_checkpoint.make("tiny-odd", tmp_path / "in", fp8=fp8)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(SAMPLE / name, folder / name)
        return folder

    return make


def run(source: Path, *options: str) -> Result:
    words = ["export", str(source), str(source.with_name("out")), "--onnx", *options]
    return CliRunner().invoke(main, words)


def require_right(source: Path, *, mtp: bool) -> None:
    """Compare bytes with the checkpoint, and logits with those of the serving form."""
    out = source.with_name("out")
    assert verify(out, source=source).findings == []
    with open_checkpoint(source) as checkpoint:
        job = plan(sound_inventory(checkpoint, mtp), Options(context=128, mtp=mtp), "dstools test")
        require_same_logits(out, require_export(out), job)


def require_refused(result: Result, source: Path, words: str) -> None:
    """Require one line of error, at most one of advice, and that nothing was left."""
    assert result.exit_code == 1, result.output
    error, *hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert len(hint) <= 1
    assert {path.name for path in source.parent.iterdir()} == {"in"}


def test_a_tied_head_is_the_embedding_and_there_once(source: Source) -> None:
    folder = source("tiny", tie_word_embeddings=True)
    with open_checkpoint(folder) as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors
    assert run(folder, *SHORT).exit_code == 0
    names = [w.name for w in require_export(folder.with_name("out")).weights["model.data"]]
    assert "lm_head.weight" not in names
    assert names.count("model.embed_tokens.weight") == 1
    require_right(folder, mtp=True)


def test_a_head_that_is_neither_tied_nor_there_is_refused(source: Source) -> None:
    folder = source("tiny", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    require_refused(run(folder, *SHORT), folder, "lm_head.weight")


def test_codes_in_other_blocks_are_widened_and_that_is_said(source: Source) -> None:
    folder = source("tiny", block=64, fp8="float32")
    result = run(folder, *SHORT, "--no-mtp")
    assert result.exit_code == 0, result.output
    said = (
        "FP8 weights are widened to float32: their blocks are 64 x 64, and the ops take 128 x 128"
    )
    assert f"warning: {said}\n" in result.stderr
    export = require_export(folder.with_name("out"))
    assert not export.has_codes
    assert export.notes[0] == said
    require_right(folder, mtp=False)


def test_codes_in_other_blocks_are_not_for_deepseek_s_code(source: Source) -> None:
    folder = source("tiny", block=64, fp8="float32")
    words = ["export", str(folder), str(folder.with_name("out")), "--format", "deepseek-inference"]
    require_refused(CliRunner().invoke(main, words), folder, "blocks of [64, 64] are not those of")


def test_v32_is_cut_to_index_topk_and_that_is_said(source: Source) -> None:
    folder = source("tiny-v32")
    result = run(folder, "--no-mtp")
    assert result.exit_code == 0, result.output
    said = "the context is 16 tokens (index_topk) of the model's 4,096: beyond, its attention is "
    assert f"warning: {said}sparse\n" in result.stderr
    export = require_export(folder.with_name("out"))
    assert export.notes[0] == f"{said}sparse"
    assert export.pool is not None
    assert export.pool.context_length == 16


def test_v32_beyond_index_topk_is_refused(source: Source) -> None:
    folder = source("tiny-v32")
    words = "--context 17: the model's attention is dense up to index_topk only, 16 positions"
    require_refused(run(folder, "--context", "17"), folder, words)


@pytest.mark.parametrize("options", [("--onnx",), ("--format", "deepseek-inference")])
@pytest.mark.parametrize(
    ("grid", "words"),
    [((1, 1), "[1, 1]"), ((2, 2), "[2, 2]"), (None, "scale")],
    ids=["a row less", "a column more", "none"],
)
def test_scales_that_do_not_fit_their_weight_are_refused(
    grid: tuple[int, int] | None, words: str, options: tuple[str, ...], source: Source
) -> None:
    folder = source("tiny", fp8="float32")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            assert tensors.pop(name).shape == (2, 1)
            tensors |= {} if grid is None else {name: torch.ones(grid)}
            save_file(tensors, shard, metadata={"format": "pt"})
    command = ["export", str(folder), str(folder.with_name("out")), *options]
    result = CliRunner().invoke(main, command)
    require_refused(result, folder, words)
    assert name.removesuffix("_scale_inv") in result.stderr
