"""What people met when they published models: each case of tests/cases/push ends as it should."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
CASES = TESTS / "cases/push/push_cases.py"
NAMES = re.findall(r"^@case\ndef (\w+)", CASES.read_text(), re.MULTILINE)
SLOW = {"stranger", "rate_limit_header"}  # they wait between the attempts at a call
REFUSALS = {  # case -> what its `error:` line has to name, if it is refused
    "stale": r"model\.safetensors",
    "no_pull_requests": "pull request",
    "private_quota": "storage",
    "odd_names": r"acc\[fp8\]\.png|n\[12\]\.txt",
    "gitignore": r"\.gitignore",
    "offline": "HF_HUB_OFFLINE",
    "local_paths": r"config\.json",
    "base_card": "made from",  # the model that is to be named with --base
    "trainer_folder": r"manifest\.json",  # SHA256SUMS lists it, and the case removes it
}
CARD = """---
license: mit
base_model: deepseek-ai/DeepSeek-V2-Lite
base_model_relation: quantized
---
"""


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the cases publish: quantized, with a licence and a short card."""
    folder = tmp_path_factory.mktemp("push")
    build = "import sys, pathlib, push_cases; push_cases.build(pathlib.Path(sys.argv[1]))"
    for command in (["-c", build, folder / "in"], ["-m", "dstools", "quantize", "in", "out"]):
        environment = os.environ | {"PYTHONPATH": path_with(CASES.parent)}
        subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)
    (folder / "out" / "LICENSE").write_text("MIT License\n")
    (folder / "out" / "README.md").write_text(CARD)
    return folder / "out"


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def bench(leg: str, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Bench of push_cases.py: a Hub, a copy of the folder, and what went wrong in `fails`."""
    monkeypatch.setenv("DSTOOLS", f"{sys.executable} -m dstools")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(leg == "lfs")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(sys, "path", [str(TESTS / "hub"), str(CASES.parent), *sys.path])
    bench = importlib.import_module("push_cases").Bench(tmp_path, quantized)
    yield bench
    bench.hub.close()


def run(bench: Any, case: str) -> None:
    """Run a case; AssertionError if it fails, or is refused for another reason than its own."""
    function: Callable[[Any], None] = sys.modules["push_cases"].CASES[case]
    function(bench)
    output = getattr(bench, "out", "")
    assert not bench.fails, output
    if getattr(bench, "rc", 0) != 0:
        assert bench.rc == 1
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, output
        assert re.search(REFUSALS[case], errors[0], re.IGNORECASE), output


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES]
)
def test_a_case_of_publishing_has_a_right_outcome(bench: Any, case: str) -> None:
    run(bench, case)


def test_a_folder_of_a_trainer_without_sums_is_published_without_what_a_trainer_keeps(
    bench: Any,
) -> None:
    (bench.dir / "SHA256SUMS").unlink()
    run(bench, "trainer_folder")
    assert bench.rc == 0
