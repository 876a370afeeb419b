"""`dstools env`: what it says is true of this process, and has no token in it."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools import machine
from dstools.cli import main
from dstools.commands.env import NEEDS
from dstools_kernels.cpu import native

Run = Callable[..., Result]
TOKEN = "hf_MARKEDxxx"
GPU = machine.Cuda(True, "", "570.86.15", "13.0", [machine.Gpu("NVIDIA H200", "9.0", 150 * 10**9)])


def run(*options: str, **environment: str) -> str:
    """Return what a process of its own prints."""
    command = [sys.executable, "-m", "dstools", *options]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def shown() -> tuple[dict[str, Any], str]:
    """Return the object and the text of this process."""
    results = [CliRunner().invoke(main, ["env", *options]) for options in (["--json"], [])]
    assert [result.exit_code for result in results] == [0, 0]
    return json.loads(results[0].stdout), results[1].stdout


@pytest.mark.parametrize("is_native", [True, False])
def test_env_says_which_kernels_are_in_use(is_native: bool) -> None:
    environment = {} if is_native else {"DSTOOLS_NATIVE": "0"}
    report = json.loads(run("env", "--json", **environment))
    levels = native.levels() if is_native else ["numpy"]
    assert report["cpu"] == {
        "cores": len(os.sched_getaffinity(0)),
        "kernels": levels[0],
        "levels": levels,
    }
    note = "" if levels[0] != "numpy" else "slowly: without the compiled kernels"
    assert report["commands"]["quantize"]["note"] == note
    assert report["commands"]["inspect"]["note"] == ""
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_keys_are_those_that_the_docstring_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda", lambda: GPU)
    report, _ = shown()
    (device,) = report["cuda"]["devices"]
    assert {key: list(value) for key, value in report.items() if type(value) is dict} == {
        "packages": list(machine.PACKAGES),
        "cpu": ["cores", "kernels", "levels"],
        "memory": ["total", "available", "limit"],
        "disk": ["here", "temporary"],
        "cuda": ["available", "reason", "driver", "runtime", "devices"],
        "ops": ["form", "why"],
        "hub": ["login", "endpoint", "is_default_endpoint", "is_offline", "uses_xet"],
        "commands": list(NEEDS),
    }
    assert list(device) == ["name", "capability", "memory_bytes"]
    for ability in report["commands"].values():
        assert list(ability) == ["runs", "note", "install"]
        assert ability["runs"] == (ability["install"] == "")


def test_every_command_of_the_help_is_in_the_list() -> None:
    assert set(main.commands) <= {name.partition(" ")[0] for name in NEEDS}


def test_every_extra_of_the_package_has_a_command() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert set(NEEDS.values()) - {""} == project["optional-dependencies"].keys() - {"dev"}


def test_the_text_has_every_package_and_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda", lambda: GPU)
    report, text = shown()
    lines = {line[2:23].strip(): line[24:] for line in text.splitlines() if line[:2] == "  "}
    for name, version in report["packages"].items():
        assert lines[name] == version if version else name in lines["not installed"]
    for name, ability in report["commands"].items():
        assert lines[name].startswith("runs" if ability["runs"] else "does not run: ")
        assert lines[name].endswith(ability["install"])
    assert lines["GPU 0"] == "NVIDIA H200, 150 GB, capability 9.0"
    assert lines["driver"] == "570.86.15"
    assert max(map(len, lines)) <= 21


def test_without_a_gpu_it_says_so_and_what_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    none = machine.Cuda(False, "this machine has no GPU", None, None, [])
    monkeypatch.setattr(machine, "cuda", lambda: none)
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    report, text = shown()
    assert "not available: this machine has no GPU" in text
    notes = {name: ability["note"] for name, ability in report["commands"].items()}
    assert notes["eval"] == notes["quantize --calibrate"] == notes["generate"] == "on the CPU"
    assert notes["distill --lm-eval"] == "on the CPU"
    assert notes["verify"] == notes["quantize --sign"] == notes["verify --signed-by"] == ""


@pytest.mark.parametrize(
    ("choice", "gpu", "ops"),
    [
        ("auto", True, {"form": "triton", "why": "the GPU is of Hopper or later"}),
        ("auto", False, {"form": "reference", "why": "there are kernels for GPUs alone"}),
        ("reference", True, {"form": "reference", "why": "DSTOOLS_KERNELS=reference"}),
    ],
)
def test_it_says_which_form_of_the_ops_of_a_model_runs_and_why(
    choice: str, gpu: bool, ops: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = machine.Cuda(False, "this machine has no GPU", None, None, [])
    monkeypatch.setattr(machine, "cuda", lambda: GPU if gpu else none)
    monkeypatch.setattr("dstools_kernels.ops.dispatch.find_spec", lambda name: name)
    monkeypatch.setenv("DSTOOLS_KERNELS", choice)
    report, text = shown()
    assert report["ops"] == ops
    shown_form = {"triton": "Triton kernels, which have not been run on a GPU yet"}
    assert f"{shown_form.get(ops['form'], 'torch')}: {ops['why']}" in text


@pytest.mark.parametrize("choice", ["triton", "cutlass", ""])
def test_a_choice_of_ops_that_cannot_run_is_shown_and_no_failure(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = machine.Cuda(False, "this machine has no GPU", None, None, [])
    monkeypatch.setattr(machine, "cuda", lambda: none)
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setenv("DSTOOLS_KERNELS", choice)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report, text = shown()
    assert report["ops"]["form"] == "none"
    assert f"do not run: {report['ops']['why']}" in text
    assert "DSTOOLS_KERNELS" in report["ops"]["why"]
    refused = {name for name, ability in report["commands"].items() if not ability["runs"]}
    assert refused - {"push"} == {"quantize --calibrate", "eval", "generate"}
    assert text.count("does not run: needs the ops of a model; unset DSTOOLS_KERNELS") == 3
    assert "samples from endpoints alone" in report["commands"]["distill"]["note"]


@pytest.mark.parametrize(
    ("wanted", "note"),
    [
        (["torch>=2.10"], "needs torch>=2.10"),
        (["torch>=2.10", "trl", "peft"], "needs torch>=2.10 and 2 more packages"),
    ],
)
def test_a_command_that_lacks_packages_says_what_to_install(
    wanted: list[str], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "missing", lambda extra: wanted)
    report, text = shown()
    install = 'pip install "dstools-llm[torch]"'
    assert report["commands"]["eval"] == {"runs": False, "note": note, "install": install}
    assert report["commands"]["verify"]["runs"]
    assert f"does not run: {note}; {install}" in text


@pytest.mark.parametrize(
    ("changes", "ability"),
    [
        ({"login": None}, (False, "needs a login to the Hub", "hf auth login")),
        ({"is_offline": True}, (False, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")),
        ({}, (True, "", "")),
    ],
)
def test_push_needs_a_login_and_the_network(
    changes: dict[str, Any], ability: tuple[bool, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"login": "HF_TOKEN", "endpoint": "https://mirror", "is_default_endpoint": False}
    settings |= {"is_offline": False, "uses_xet": True} | changes
    monkeypatch.setattr(machine, "hub", lambda: machine.Hub(**settings))
    report, text = shown()
    assert tuple(report["commands"]["push"].values()) == ability
    assert "https://mirror" in text


@pytest.mark.parametrize(
    ("capability", "tensorrt", "note"),
    [
        ("", None, "builds no engine: this machine has no GPU"),
        ("8.0", "11.4.0", "builds no engine: the plugins are for GPUs of Hopper"),
        (
            "9.0",
            None,
            'builds no engine: TensorRT is not installed (pip install "tensorrt-cu13>=11")',
        ),
        (
            "9.0",
            "10.14.1",
            'builds no engine: TensorRT 10.14.1 is older than 11 (pip install "tensorrt-cu13>=11")',
        ),
        ("9.0", "11.4.0", ""),
    ],
)
def test_it_says_why_an_export_gets_no_engine_here(
    capability: str, tensorrt: str | None, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = machine.Gpu("NVIDIA", capability, 80 * 10**9)
    none = machine.Cuda(False, "this machine has no GPU", None, None, [])
    cuda = machine.Cuda(True, "", "570", "13.0", [gpu]) if capability else none
    packages = dict.fromkeys(machine.PACKAGES) | {"tensorrt": tensorrt, "triton": "3.9.0"}
    monkeypatch.setattr(machine, "cuda", lambda: cuda)
    monkeypatch.setattr(machine, "installed", lambda: packages)
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setenv("CXX", sys.executable)
    report, _ = shown()
    assert report["commands"]["export"] == {"runs": True, "note": note, "install": ""}
    assert report["commands"]["export --check"]["note"] == ""  # needs no GPU
    assert report["commands"]["bench"]["note"] == ("" if capability else "on the CPU")


@pytest.mark.parametrize(
    ("compiler", "name"), [("no-such-g++ -m64", "no-such-g++"), ("", "CXX"), (None, "g++")]
)
def test_it_says_why_an_export_gets_no_plugins_here(
    compiler: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setattr("shutil.which", lambda command: None)
    monkeypatch.delenv("CXX", raising=False)
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    report, _ = shown()
    note = report["commands"]["export"]["note"]
    assert note.endswith(f"builds no plugins: {name} is not installed")


def test_plugins_are_not_built_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the extra `export` has not."""
    monkeypatch.setattr(machine, "installed", lambda: dict.fromkeys(machine.PACKAGES))
    monkeypatch.setattr(machine, "missing", lambda extra: [])
    monkeypatch.setenv("CXX", sys.executable)
    report, _ = shown()
    note = report["commands"]["export"]["note"]
    assert note.endswith("builds no plugins: triton is not installed (pip install triton)")


@pytest.mark.parametrize("in_file", [True, False])
def test_a_token_is_in_no_output(in_file: bool, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": f"https://me:{TOKEN}@mirror.example", "HF_TOKEN": ""}
    environment |= {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_OFFLINE": ""}
    if in_file:
        (tmp_path / "token").write_text(TOKEN)
    else:
        environment["HF_TOKEN"] = TOKEN
    for options in ((), ("--json",)):
        text = run("--debug", "env", *options, **environment)
        assert ("hf auth login" if in_file else "HF_TOKEN") in text
        assert "https://mirror.example" in text
        assert TOKEN not in text
