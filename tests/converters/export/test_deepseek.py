import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError, UnsupportedError
from dstools_converters.export.deepseek import Job, Options, plan, pool, weight_bytes
from dstools_converters.export.folder import EXPORT, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.runtime.weights import sound_inventory

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def planned(options: Options, folder: Path = SAMPLE) -> Job:
    return plan(sound_inventory(open_checkpoint(folder), options.mtp), options, "dstools test")


def changed(tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "changed"
    shutil.copytree(SAMPLE, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_folder_is_what_its_list_says(exported: Callable[..., Path]) -> None:
    folder, written = exported(), require_export(exported())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {EXPORT, *written.files, *written.weights}
    for name, digest in written.files.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    data = (folder / "model.data").read_bytes()
    for weight in written.weights["model.data"]:
        own = data[weight.offset : weight.offset + weight.nbytes]
        assert sha256(own).hexdigest() == weight.sha256
    last = written.weights["model.data"][-1]
    assert len(data) == last.offset + last.nbytes


def test_what_is_copied_converted_and_made_is_told_apart(exported: Callable[..., Path]) -> None:
    folder = exported(options=Options("bfloat16", 512))
    making = {w.name: w.making for w in require_export(folder).weights["model.data"]}
    assert making["lm_head.weight"] == "copy"
    assert making["model.layers.1.mlp.experts.up_proj.weight"] == "copy"
    assert making["model.layers.0.self_attn.w_k"] == "copy"
    assert making["model.layers.1.mlp.gate.weight"] == "convert"
    assert making["rotary.cos"] == "make"


def test_each_rank_has_a_folder_of_its_own(exported: Callable[..., Path]) -> None:
    folder = exported(options=Options(context=128, ranks=Ranks(ep=2), mtp=False))
    written = require_export(folder)
    assert [note.file for note in written.graphs] == ["rank0/model.onnx", "rank1/model.onnx"]
    assert [note.collectives for note in written.graphs] == [3, 3]  # one a layer with experts
    assert (folder / "rank0/model.onnx").read_bytes() == (folder / "rank1/model.onnx").read_bytes()
    assert (folder / "rank0/model.data").read_bytes() != (folder / "rank1/model.data").read_bytes()
    assert not (folder / "genai_config.json").exists()  # its Engine runs one rank


def test_experts_can_be_inputs(exported: Callable[..., Path]) -> None:
    options = Options(context=128, ranks=Ranks(tp=2), expert_inputs=True, mtp=False)
    written = require_export(exported(options=options))
    fed = [weight.name for weight in written.weights["rank1/experts.safetensors"]]
    assert "model.layers.1.mlp.experts.map" in fed
    inputs = [port.name for port in written.graphs[1].inputs]
    assert inputs[-len(fed) :] == fed
    assert not {w.name for w in written.weights["rank1/model.data"]} & set(fed)
    assert written.graphs[0].collectives == 2 * 4  # after attention and after the MLP


@pytest.mark.parametrize(
    "options",
    [
        Options(context=512),
        Options(context=128, ranks=Ranks(ep=2), mtp=False),
        Options(context=128, ranks=Ranks(tp=2), expert_inputs=True, mtp=False),
    ],
)
def test_the_bytes_of_all_ranks_are_known_before_anything_is_written(
    options: Options, exported: Callable[..., Path]
) -> None:
    written = require_export(exported(options=options)).weights.values()
    assert weight_bytes(planned(options)) == sum(w.nbytes for file in written for w in file)


def test_the_pool_is_known_before_anything_is_written() -> None:
    job = planned(Options(context=500, max_batch=3))
    assert pool(job).num_blocks == 2 * 3 * 8
    assert planned(Options("float16", 500)).settings != job.settings


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (Options(context=4096), {}, "--context 4096: the model has 512 positions"),
        (Options(page=16), {}, "--page-size 16: the kernels read pages of 64"),
        (Options(ranks=Ranks(tp=3), mtp=False), {}, "--tp 3: does not divide"),
        (Options(), {"model_type": "deepseek_v9"}, "model_type 'deepseek_v9' is not supported"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, options: Options, changes: dict[str, object], words: str
) -> None:
    folder = changed(tmp_path, **changes) if changes else SAMPLE
    with pytest.raises(DstoolsError, match=words):
        planned(options, folder)


def test_a_model_of_another_family_is_refused(dense_source: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="model_type 'llama' does not use MLA") as caught:
        planned(Options(mtp=False), dense_source("tiny-llama"))
    assert "onnxruntime-genai's builder" in caught.value.hint


def test_a_model_without_an_mtp_layer_does_not_draft(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("tiny-v2")
    with pytest.raises(DstoolsError, match="has no MTP layer"):
        planned(Options(), folder)
    planned(Options(mtp=False), folder)


def test_dense_models_are_left_to_their_own_builder(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(DstoolsError, match="does not use MLA"):
        planned(Options(mtp=False), checkpoint("tiny-llama"))
