import json
import os
import shutil
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from dstools import machine
from dstools.cli import main
from dstools_converters.errors import ShortfallError
from dstools_converters.export.folder import EXPORT, PLUGINS, Export, require_export
from dstools_converters.export.trt import check, engine
from dstools_converters.export.unfinished import lock_folder
from dstools_kernels import plugin

SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"


def run(*args: str | Path, source: Path = SAMPLE) -> Result:
    options = ("--onnx", "--context", "128", "--no-mtp")
    return CliRunner().invoke(main, ["export", str(source), *map(str, (*args, *options))])


def a_library(out: Path) -> None:
    out.write_bytes(b"library")


@pytest.fixture(autouse=True)
def quick_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "build", a_library)


def test_the_library_of_plugins_is_listed(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--plugins")
    assert result.exit_code == 0, result.output
    assert require_export(tmp_path / "out").files[PLUGINS] == sha256(b"library").hexdigest()


@pytest.mark.parametrize(
    ("dtype", "latent", "words"),
    [
        ("bfloat16", (512, 576), "latents of 128 in 192; the kernels are for 512 in 576"),
        ("float32", (128, 192), "the kernels are for BF16, not float32"),
        ("bfloat16", (128, 192), ""),
    ],
)
def test_plugins_that_no_kernel_serves_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, latent: tuple[int, int], words: str
) -> None:
    def fail(out: Path) -> None:
        raise RuntimeError("it does not compile")  # nothing needs to be written

    monkeypatch.setattr(plugin, "build", fail)
    monkeypatch.setattr(engine, "LATENT", latent)
    result = run(tmp_path / "out", "--plugins", "--dtype", dtype)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == ([f"warning: no kernel runs this graph: {words}"] if words else [])


@pytest.mark.parametrize("option", ["--plugins", "--check", "--trt"])
def test_without_triton_nothing_is_written_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr(engine, "LATENT", (128, 192))
    monkeypatch.setitem(sys.modules, "triton", None)
    result = run(tmp_path / "out", option)
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "error: triton, which compiles the kernels of the plugins, is not" in result.stderr
    assert "hint: pip install triton" in result.stderr


def test_a_library_that_does_not_compile_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(out: Path) -> None:
        raise RuntimeError("it does not compile:\nIn file included\nmoe.h:3: error: no x\nmore")

    monkeypatch.setattr(plugin, "build", fail)
    result = run(tmp_path / "out", "--plugins")
    assert result.exit_code == 1
    assert "error: the library of plugins: moe.h:3: error: no x\n" in result.stderr
    assert "hint: graph and weights need no plugins" in result.stderr
    assert not list(tmp_path.iterdir())


def test_plugins_are_added_to_a_finished_export_of_the_same_source_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(out).exit_code == 0
    plain, weights = require_export(out), (out / "model.data").stat()
    result = run(out, "--plugins")
    assert result.exit_code == 0, result.output
    files = plain.files | {PLUGINS: sha256(b"library").hexdigest()}
    assert require_export(out) == replace(plain, files=dict(sorted(files.items())))
    assert (out / "model.data").stat().st_mtime_ns == weights.st_mtime_ns


def test_another_library_takes_verdicts_and_engines_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(out, "--plugins").exit_code == 0
    (out / "model.plan").write_bytes(b"engine")
    checked = replace(
        require_export(out), checks={"graph": "passed"}, engines={"model.plan": "0" * 64}
    )
    (out / EXPORT).write_bytes(checked.to_bytes())
    assert run(out, "--plugins").exit_code == 0
    assert require_export(out) == checked
    monkeypatch.setattr(plugin, "build", lambda path: path.write_bytes(b"another"))
    assert run(out, "--plugins").exit_code == 0
    files = checked.files | {PLUGINS: sha256(b"another").hexdigest()}
    assert require_export(out) == replace(checked, checks={}, engines={}, files=files)
    assert not (out / "model.plan").exists()


def test_two_runs_do_not_add_to_a_folder_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out).exit_code == 0
    lock = lock_folder(out)
    result = run(out, "--plugins")
    os.close(lock)
    assert (result.exit_code, f"{out}: another run is writing it" in result.stderr) == (1, True)
    assert run(out, "--plugins").exit_code == 0


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (["--max-batch", "2"], "with --max-batch 4"),
        (["--dtype", "bfloat16"], "with --dtype float32"),
    ],
)
def test_plugins_are_not_added_to_an_export_with_other_options(
    tmp_path: Path, change: list[str], how: str
) -> None:
    out = tmp_path / "out"
    assert run(out).exit_code == 0
    before = require_export(out)
    result = run(out, "--plugins", *change)
    assert result.exit_code == 1
    assert f"{out}: was exported {how}\n" in result.stderr
    assert require_export(out) == before


def test_a_folder_that_is_no_export_is_in_the_way_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = run(tmp_path / "out", "--plugins")
    assert (result.exit_code, "out: exists" in result.stderr) == (1, True)


def test_a_check_that_memory_does_not_take_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 20, 1 << 20, None))
    result = run(tmp_path / "out", "--check")
    assert result.exit_code == 1
    assert "error: --check: " in result.stderr
    assert "more than half of the 1.049 MB that are free" in result.stderr
    assert not list(tmp_path.iterdir())


def test_verdicts_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(folder: Path, export: Export, job: Any, library: Path) -> Export:
        assert library.read_bytes() == b"library"
        return replace(export, checks={"graph": "passed"}, notes=(*export.notes, "DsMoE: for BF16"))

    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr(check, "check", passes)
    result = run(tmp_path / "out", "--check")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\ngraph: passed\n")
    assert result.stderr.splitlines()[-2] == "warning: DsMoE: for BF16"


def test_a_check_that_fails_ends_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Export:
        raise ShortfallError("model.onnx: differs")

    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr(check, "check", fails)
    assert run(tmp_path / "out", "--check").exit_code == 3


def test_what_a_check_needs_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(extra: str) -> list[str]:
        return ["tensorrt"] if extra == "check" else []

    monkeypatch.setattr(machine, "missing", lacks)
    result = run(tmp_path / "out", "--check")
    assert (result.exit_code, not (tmp_path / "out").exists()) == (1, True)
    assert "error: --check needs tensorrt" in result.stderr


def test_an_engine_has_the_dtype_of_the_checkpoint_and_elsewhere_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LATENT", (128, 192))
    monkeypatch.setattr(engine, "lacking", lambda: ["a GPU of compute capability 9.0"])
    result = run(tmp_path / "out", "--trt")
    assert result.exit_code == 3
    first, *_ = result.stderr.splitlines()
    assert first == "warning: no engine is built here: it needs a GPU of compute capability 9.0"
    assert "are ready; an engine needs a GPU of compute capability 9.0" in result.stderr
    assert "run there: dstools " in result.stderr
    written = require_export(tmp_path / "out")
    assert written.dtype == "bfloat16"
    assert written.files[PLUGINS] == sha256(b"library").hexdigest()
    assert written.engines == {}


def test_a_tensor_too_large_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LATENT", (128, 192))
    monkeypatch.setattr(engine, "MOST_ELEMENTS", 1000)
    result = run(tmp_path / "out", "--trt", "--json")
    assert result.exit_code == 1
    assert "elements; more than 1,000 are not tried on Hopper yet" in result.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(result.stdout or "{}").get("out") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--trt: latents of 128 in 192; the kernels are for 512 in 576"),
        (["--dtype", "float32"], "--trt: the kernels are for BF16, not float32"),
    ],
)
def test_an_engine_that_no_kernel_runs_is_refused_before_anything_is_written(
    tmp_path: Path, options: list[str], words: str
) -> None:
    result = run(tmp_path / "out", "--trt", *options)
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert f"error: {words}" in result.stderr


def in_float16(folder: Path) -> Path:
    """Copy the sample model in float16, with states that exceed it."""
    shutil.copytree(SAMPLE, folder)
    half = torch.float16
    tensors = {
        name: tensor.to(half) if tensor.dtype == torch.bfloat16 else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["model.layers.1.mlp.shared_experts.down_proj.weight"] *= 2**14
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_float16_of_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    source = in_float16(tmp_path / "half")
    result = run(tmp_path / "out", "--trt", source=source)
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert "error: --trt: the kernels are for BF16, not float16" in result.stderr
    assert "hint: --dtype bfloat16" in result.stderr


def test_the_float16_of_a_checkpoint_is_judged_like_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "require_kernels", lambda job: None)
    result = run(tmp_path / "out", "--trt", source=in_float16(tmp_path / "half"))
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert "error: layer 1: a number of " in result.stderr
