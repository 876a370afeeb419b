import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.export.deepseek import Job, Options
from dstools_converters.export.folder import Port, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.trt import check as check_module
from dstools_converters.export.trt.check import (
    baked_bytes,
    check,
    require_built,
    require_memory,
    require_network,
)
from dstools_converters.export.trt.graphs import read_graph
from dstools_converters.export.trt.nodes import types_of
from dstools_converters.export.trt.rtx import Built, Layer, Request
from dstools_converters.runtime.weights import held_bytes

SHORT = Options(context=128)


@pytest.fixture
def folder(exported: Callable[..., Path], tiny_fp8: Path, tmp_path: Path) -> Path:
    """A copy of an exported folder, whose export.json a check rewrites."""
    return Path(shutil.copytree(exported(tiny_fp8, SHORT), tmp_path / "copy"))


@pytest.fixture
def library_file(tmp_path: Path) -> Path:
    (tmp_path / "libdstools_trt.so").write_bytes(b"")
    return tmp_path / "libdstools_trt.so"


def built_from(folder: Path, number: int = 0) -> Built:
    """Return what a builder says that took every node as it is."""
    note = require_export(folder).graphs[number]
    model = read_graph(folder / note.file)
    types = types_of(model.graph)

    def port(name: str) -> Port:
        shape = (str(size) if isinstance(size, int) else "-1" for size in types[name].shape)
        return Port(name, types[name].dtype, tuple(shape))

    layers = tuple(
        Layer(
            node.name,
            "DIST_COLLECTIVE" if node.op_type == "DistCollective" else "PLUGIN_V3",
            tuple(map(port, node.output)),
        )
        for node in model.graph.node
        if node.domain == "dstools"
    )
    inputs, outputs = (tuple(port(p.name) for p in ports) for ports in (note.inputs, note.outputs))
    engines = {"SM89": 1, "SM120": 1}
    return Built("1.7", True, 100, layers, inputs, outputs, engines)


def refusal(folder: Path, built: Built) -> str:
    note = require_export(folder).graphs[0]
    with pytest.raises(ShortfallError) as caught:
        require_network(folder / note.file, read_graph(folder / note.file), note, built)
    return str(caught.value)


def test_a_check_needs_half_of_the_free_memory_at_most(
    job: Callable[..., Job], tiny_fp8: Path
) -> None:
    planned = job(tiny_fp8)
    # logits need twice the FP32 weights, which is more than twice the codes
    held = held_bytes(planned.inventory, torch.float32, False)
    require_memory(planned, 4 * held)
    with pytest.raises(DstoolsError, match=r"more than half of the .* that are free"):
        require_memory(planned, 4 * held - 1)
    # without them, RTX: twice the weights of a rank
    ranks = job(tiny_fp8, replace(SHORT, ranks=Ranks(ep=2)))
    baked = baked_bytes(ranks)
    require_memory(ranks, 4 * baked)
    with pytest.raises(DstoolsError, match=r"TensorRT-RTX takes twice the .* of weights"):
        require_memory(ranks, 4 * baked - 1)


@pytest.mark.parametrize(
    "options", [SHORT, Options("bfloat16", 128, mtp=False, ranks=Ranks(ep=2), expert_inputs=True)]
)
def test_the_bytes_that_a_builder_takes_are_known_before_they_are_written(
    exported: Callable[..., Path], job: Callable[..., Job], tiny_fp8: Path, options: Options
) -> None:
    weights = require_export(exported(tiny_fp8, options)).weights
    for path, tensors in weights.items():
        if path.endswith("model.data"):
            assert sum(tensor.nbytes for tensor in tensors) == baked_bytes(job(tiny_fp8, options))


def test_a_library_that_is_missing_is_told_before_anything_runs(
    folder: Path, job: Callable[..., Job], tiny_fp8: Path
) -> None:
    with pytest.raises(DstoolsError, match=r"libdstools_trt.so: is missing"):
        check(folder, require_export(folder), job(tiny_fp8), folder / "libdstools_trt.so")
    assert require_export(folder).checks == {}


def test_the_verdict_of_a_check_that_fails_is_kept(
    folder: Path, job: Callable[..., Job], tiny_fp8: Path, library_file: Path
) -> None:
    os.truncate(folder / "model.data", 5)
    with pytest.raises(ShortfallError, match="has 5 bytes"):
        check(folder, require_export(folder), job(tiny_fp8), library_file)
    assert require_export(folder).checks == {
        "graph": "failed",
        "tensorrt-rtx": "not run",
        "without plugins": "not run",
        "onnxruntime": "not run",
    }


@pytest.mark.parametrize("error", [DstoolsError("RTX was killed"), KeyboardInterrupt()])
def test_a_check_that_could_not_be_made_has_not_failed(
    folder: Path,
    job: Callable[..., Job],
    tiny_fp8: Path,
    library_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def dies(*_: object) -> None:
        raise error

    monkeypatch.setattr(check_module, "build", dies)
    with pytest.raises(type(error)):
        check(folder, require_export(folder), job(tiny_fp8), library_file)
    verdicts = require_export(folder).checks
    assert (verdicts["graph"], verdicts["tensorrt-rtx"]) == ("passed", "not run")


def test_a_network_of_the_nodes_as_they_are_passes(folder: Path) -> None:
    for number, note in enumerate(require_export(folder).graphs):
        file = folder / note.file
        require_network(file, read_graph(file), note, built_from(folder, number))


def test_a_node_that_was_inlined_is_named(folder: Path) -> None:
    built = built_from(folder)
    name = built.layers[3].name
    said = refusal(folder, replace(built, layers=built.layers[:3] + built.layers[4:]))
    assert f"node {name} (" in said
    assert said.endswith("TensorRT took its function for it, no PLUGIN_V3 of that name")


def test_a_plugin_that_no_node_asked_for_is_counted(folder: Path) -> None:
    built = built_from(folder)
    more = replace(built.layers[0], name="another")
    count = len(built.layers)
    said = refusal(folder, replace(built, layers=(*built.layers, more)))
    assert f"TensorRT has {count + 1} plugins and 0 collectives; export.json says {count}" in said


def test_a_plugin_that_gives_another_shape_or_dtype_is_named(folder: Path) -> None:
    built = built_from(folder)
    first, *rest = built.layers
    port = first.outputs[0]
    for other in (replace(port, dtype="FLOAT16"), replace(port, shape=("-1", "7"))):
        layers = (replace(first, outputs=(other, *first.outputs[1:])), *rest)
        assert f"the plugin gives {other.dtype} [" in refusal(folder, replace(built, layers=layers))


def test_an_output_of_another_shape_is_named(folder: Path) -> None:
    built = built_from(folder)
    logits, *rest = built.outputs
    other = replace(logits, shape=("-1", "9"))
    said = refusal(folder, replace(built, outputs=(other, *rest)))
    assert "output logits is FLOAT [-1, 9]; export.json says FLOAT [num_tokens, " in said


def test_what_did_not_build_is_told_in_our_words_and_then_its() -> None:
    file, said = Path("model.onnx"), ("Failed to find any supported format",)
    for built, words in (
        (Built("1.7", is_registered=False), "TensorRT-RTX 1.7 takes no plugin from it"),
        (Built("1.7", errors=said), "does not parse it with the plugins: Failed to find"),
        (
            Built("1.7", layer_count=3, engines={"SM89": 0, "SM120": 5}, errors=said),
            "does not build it for SM89 with the plugins: Failed to find",
        ),
    ):
        with pytest.raises(ShortfallError, match=words):
            require_built(file, built, "lib.so")
    with pytest.raises(ShortfallError, match="with its functions inlined"):
        require_built(file, Built("1.7"), "")


def test_one_graph_of_a_folder_is_asked_whether_it_aliases_its_caches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = []

    def build(request: Request) -> Built:
        requests.append(request)
        built = built_from(folder, ["model.onnx", "mtp.onnx"].index(Path(request.graph).name))
        warnings = ("DsMoE: a sentence", "a sentence of before")
        errors = () if request.is_aliasing else ("Aliased I/O used by plugin",)
        return replace(built, warnings=warnings, errors=errors)

    monkeypatch.setattr(check_module, "build", build)
    notes = ["a sentence of before"]
    check_module._require_builds(folder, require_export(folder), Path("lib.so"), notes)
    asked = [(Path(request.graph).name, request.is_aliasing) for request in requests]
    assert asked == [("model.onnx", True), ("model.onnx", False), ("mtp.onnx", True)]
    assert notes == ["a sentence of before", "DsMoE: a sentence"]


@pytest.mark.slow
def test_a_whole_folder_passes_all_checks_and_keeps_no_engine(
    folder: Path, job: Callable[..., Job], tiny_fp8: Path, library: Path, one_thread: None
) -> None:
    before = {path.name for path in folder.iterdir()}
    checked = check(folder, require_export(folder), job(tiny_fp8), library)
    assert set(checked.checks.values()) == {"passed"}
    assert require_export(folder) == checked
    assert {path.name for path in folder.iterdir()} == before
    bf16 = "there are kernels for BF16 alone; the engine will build and not run"
    assert {f"DsMlaAttention: {bf16}", f"DsFp8BlockMoE: {bf16}"} <= set(checked.notes)


@pytest.mark.slow
def test_ranks_build_and_their_logits_are_not_run(
    exported: Callable[..., Path],
    job: Callable[..., Job],
    tiny_fp8: Path,
    library: Path,
    tmp_path: Path,
) -> None:
    options = Options(context=128, mtp=False, ranks=Ranks(ep=2), expert_inputs=True)
    folder = Path(shutil.copytree(exported(tiny_fp8, options), tmp_path / "copy"))
    checked = check(folder, require_export(folder), job(tiny_fp8, options), library)
    assert checked.checks == {
        "graph": "passed",
        "tensorrt-rtx": "passed",
        "without plugins": "passed",
        "onnxruntime": "not run",
    }
