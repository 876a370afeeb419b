"""scripts/hopper_check.py: what it would run exists, and a failure is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("hopper_check")


def test_the_tests_and_scripts_that_it_names_exist(script: Any) -> None:
    for name in script.MODULES:
        assert (ROOT / "tests" / "distill" / name).is_file(), name
    for name, *_ in script.BENCHES:
        assert (ROOT / "scripts" / name).is_file(), name


def test_without_a_gpu_it_stops_with_a_hint(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"error: torch finds no CUDA device\nhint: nvidia-smi"):
        script.main()


def test_every_command_runs_and_those_that_fail_are_named(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> int:
        commands.append(command)
        return int("bench_sft" in command[1])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(script, "run", run)
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert len(commands) == 2 + len(script.BENCHES)
    named = "scripts/bench_sft.py --device cuda --steps 100 --rounds 3"
    assert stopped.value.code == f"\nerror: failed: {named}"


def test_a_command_runs_at_the_root_of_the_repository(script: Any) -> None:
    code = "import pathlib, sys; sys.exit(not pathlib.Path('pyproject.toml').exists())"
    assert script.run([script.sys.executable, "-c", code]) == 0
    assert script.run([script.sys.executable, "-c", "raise SystemExit(7)"]) == 7
