import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools import machine
from dstools.cli import main
from dstools_converters.errors import ShortfallError
from dstools_converters.export.folder import PLUGINS, Export, require_export
from dstools_converters.export.trt import check, engine
from dstools_kernels import plugin

SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"


def run(*args: str | Path) -> Result:
    options = ("--onnx", "--context", "128", "--no-mtp")
    return CliRunner().invoke(main, ["export", str(SAMPLE), *map(str, (*args, *options))])


def a_library(out: Path) -> None:
    out.write_bytes(b"library")


@pytest.fixture(autouse=True)
def quick_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "build", a_library)


def test_the_library_of_plugins_is_listed(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--plugins")
    assert result.exit_code == 0, result.output
    assert require_export(tmp_path / "out").files[PLUGINS] == sha256(b"library").hexdigest()


def test_a_library_that_does_not_compile_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(out: Path) -> None:
        raise FileNotFoundError("g++ is not installed: install g++, or set CXX")

    monkeypatch.setattr(plugin, "build", fail)
    result = run(tmp_path / "out", "--plugins")
    assert result.exit_code == 1
    assert "g++ is not installed" in result.stderr
    assert "graph and weights are complete without it" in result.stderr
    assert PLUGINS not in require_export(tmp_path / "out").files


def test_verdicts_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(folder: Path, export: Export, job: Any, library: Path, free: int) -> Export:
        assert library.read_bytes() == b"library"
        assert free > 0
        return replace(export, checks={"graph": "passed"})

    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr(check, "check", passes)
    result = run(tmp_path / "out", "--check")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\ngraph: passed\n")


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
    monkeypatch.setattr(engine, "lacking", lambda: ["a GPU of compute capability 9.0"])
    result = run(tmp_path / "out", "--trt")
    assert result.exit_code == 3
    assert "are ready; an engine needs a GPU of compute capability 9.0" in result.stderr
    assert "run there: dstools " in result.stderr
    written = require_export(tmp_path / "out")
    assert written.dtype == "bfloat16"
    assert written.files[PLUGINS] == sha256(b"library").hexdigest()
    assert written.engines == {}


def test_a_tensor_too_large_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_ELEMENTS", 1000)
    result = run(tmp_path / "out", "--trt", "--json")
    assert result.exit_code == 1
    assert "elements; more than 1,000 are not tried on Hopper yet" in result.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(result.stdout or "{}").get("out") is None
