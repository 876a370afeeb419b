"""The card of an exported folder says what it holds, and only what was run was run."""

from dataclasses import replace
from typing import Any

import pytest

from dstools.commands.generate import generate
from dstools.hub.export_text import export_text
from dstools_converters.export.folder import Export, GraphNote, Pool, Weight

POOL = Pool(8192, 4, 64, 1024, 4608)
GRAPHS = (GraphNote("model.onnx", {"DsMlaAttention": 61, "DsMoE": 58}, 0, (), ()),)
WEIGHTS = {
    "model.data": (
        Weight("a", "F32", (500_000,), 0, 2_000_000, "copy", "0" * 64),
        Weight("b", "F32", (250_000,), 2_000_000, 1_000_000, "convert", "0" * 64),
        Weight("c", "F32", (250,), 3_000_000, 1_000, "make", "0" * 64),
    )
}
EXPORT = Export(
    "dstools 1.2",
    "onnx",
    "deepseek_v3",
    "float32",
    has_mtp=True,
    opset=21,
    bodies={"DsMlaAttention": "a loop over rows", "DsFp8BlockMoE": "a scan over experts"},
    pool=POOL,
    graphs=GRAPHS,
    files={"genai_config.json": "0" * 64},
    weights=WEIGHTS,
)
FILES = {"model.onnx", "model.data", "SHA256SUMS"}


def card(export: Export = EXPORT, **given: Any) -> str:
    options: dict[str, Any] = {"base": "org/base", "repo": "me/model", "has_title": True}
    return export_text(export, FILES, **(options | given))


@pytest.mark.parametrize(
    "line",
    [
        "# model",
        "[org/base](https://huggingface.co/org/base), exported by dstools 1.2 as ONNX graphs",
        "| Architecture | deepseek_v3 |",
        "| Activations, caches and other weights | float32 |",
        "| MTP | mtp.onnx drafts the tokens that follow |",
        "| Weights | 3.001 MB |",
        "| - copied from the checkpoint, byte by byte | 1 tensor |",
        "| Context | 8,192 tokens, prompt and answer |",
        "| Pool | 1,024 pages of 64 tokens |",
        "| Memory of the pool | 302 MB, when it runs |",  # 1024 x 64 x 4608
        "| Body of DsMlaAttention | a loop over rows |",
        "hf download me/model --local-dir DIR",
        "dstools generate DIR --prompt 'What is 17 + 25?' --mtp",
        "TensorRT builds it with the plugins of dstools (119 nodes)",
        "`dstools verify DIR --sums` compares every file and every tensor with export.json",
    ],
)
def test_a_card_says_what_the_folder_holds_and_how_it_runs(line: str) -> None:
    assert line in card()


def test_the_commands_of_a_card_have_options_that_there_are() -> None:
    for kind in ("onnx", "dense"):
        options = {opt for parameter in generate.params for opt in parameter.opts}
        (line,) = [
            line for line in card(replace(EXPORT, kind=kind)).splitlines() if "generate DIR" in line
        ]
        assert {word for word in line.split() if word.startswith("--")} <= options


def test_a_body_that_no_graph_uses_is_not_told_of() -> None:
    assert "DsFp8BlockMoE" not in card()


def test_what_was_not_run_is_said_to_be_not_run() -> None:
    assert "**This export itself was not run.**" in card()
    checked = card(replace(EXPORT, checks={"onnxruntime": "passed", "rtx": "not run"}))
    assert "| onnxruntime | passed |" in checked
    assert "| rtx | not run |" in checked
    assert "This export itself was not run" not in checked


def test_the_tokenizer_of_genai_is_compared_or_not() -> None:
    assert "was not compared with tokenizer.json" in card()
    assert "gives the ids of tokenizer.json" in card(replace(EXPORT, genai_tokenizer=True))
    assert "gives other ids than tokenizer.json" in card(replace(EXPORT, genai_tokenizer=False))


def test_bf16_on_a_cpu_is_warned_of() -> None:
    assert "--dtype float32" not in card()
    assert "ONNX Runtime has no BF16 on a CPU" in card(replace(EXPORT, dtype="bfloat16"))


def test_bf16_is_not_said_to_run_on_a_cpu() -> None:
    text = card(replace(EXPORT, dtype="bfloat16"))
    assert "dstools generate" not in text
    assert "Engine serves it on a GPU." in text


def test_ranks_are_not_said_to_run() -> None:
    text = card(replace(EXPORT, tp=1, ep=8, expert_inputs=True, files={}))
    assert "| Ranks | 8 (tp 1, ep 8); experts are inputs, from experts.safetensors |" in text
    assert "dstools generate" not in text
    assert "Nothing here does that" in text


def test_engines_are_told_of_where_they_are_published() -> None:
    export = replace(EXPORT, engines={"model.plan": "ab" * 32})
    assert "## Engines" not in card(export)
    text = export_text(export, {*FILES, "model.plan"}, base=None, repo=None, has_title=False)
    assert f"- model.plan, sha256 {'ab' * 32}" in text
    assert "load them only from people whom you trust" in text
    assert text.startswith("## About this export")
    assert "hf download ORG/NAME" in text
    export = replace(EXPORT, files={"libdstools_trt.so": "cd" * 32})
    assert "## Engines" not in card(export)
    text = export_text(export, {"libdstools_trt.so"}, base=None, repo=None, has_title=True)
    assert f"- libdstools_trt.so, sha256 {'cd' * 32}" in text


def test_a_dense_export_and_shards_have_their_own_commands() -> None:
    dense = card(replace(EXPORT, kind="dense", pool=None, weights={}, graphs=()))
    assert 'model = og.Model("DIR")' in dense
    assert "The tokenizer of onnxruntime-genai was not compared with tokenizer.json" in dense
    assert "og.Tokenizer" not in dense  # whose ids may be others
    assert "its cache is not paged" in dense
    shards = card(replace(EXPORT, kind="deepseek-inference", pool=None, graphs=()))
    assert "torchrun --nproc-per-node RANKS generate.py" in shards
    assert "| MTP | weights alone, in mtpRANK-mp1.safetensors |" in shards


def test_notes_cannot_write_markdown() -> None:
    text = card(replace(EXPORT, notes=("see [x](http://evil) <b>now</b>",)))
    assert "[x](http://evil)" not in text
    assert "<b>" not in text
