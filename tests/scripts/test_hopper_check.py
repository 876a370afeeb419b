"""scripts/hopper_check.py: what it would run exists, and a failure is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(load_script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as when it is run
    return load_script("hopper_check")


@pytest.fixture
def short(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script with two cases and without a model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script.cases, "SMALL", script.cases.SMALL[:2])
    monkeypatch.setattr(script, "answers", lambda record, device: [])
    return script


def test_the_tests_and_scripts_that_it_names_exist(script: Any) -> None:
    for name in script.MODULES:
        assert (ROOT / "tests" / "distill" / name).is_file(), name
    for name, *_ in script.BENCHES:
        assert (ROOT / "scripts" / name).is_file(), name


def test_without_a_gpu_it_stops_with_a_hint(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"error: torch finds no CUDA device\nhint: nvidia-smi"):
        script.training([])


def test_every_command_runs_and_those_that_fail_are_named(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> int:
        commands.append(command)
        return int("bench_sft" in command[1])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "facts", dict)
    monkeypatch.setattr(script, "run", run)
    with pytest.raises(SystemExit) as stopped:
        script.training([])
    assert len(commands) == 2 + len(script.BENCHES)
    named = "scripts/bench_sft.py --device cuda --steps 100 --rounds 3"
    assert stopped.value.code == f"\nerror: failed: {named}"


def test_a_command_runs_at_the_root_of_the_repository(script: Any) -> None:
    code = "import pathlib, sys; sys.exit(not pathlib.Path('pyproject.toml').exists())"
    assert script.run([script.sys.executable, "-c", code]) == 0
    assert script.run([script.sys.executable, "-c", "raise SystemExit(7)"]) == 7


# ------------------------------------------------------------------------------------- the kernels


def test_without_a_gpu_the_definitions_run_and_what_is_left_out_is_said(
    short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hopper.json"
    short.kernels(out, 60)
    printed = capsys.readouterr().out
    assert "left out: everything on a card: torch finds no CUDA device" in printed
    results = json.loads(out.read_text())
    assert [check["is_right"] for check in results["checks"]] == [True, True, True]
    assert [len(results[part]) for part in ("ceilings", "times")] == [3, 2]
    assert results["left_out"] == ["everything on a card: torch finds no CUDA device"]
    assert results["torch"] == torch.__version__


def test_a_wrong_kernel_is_named_and_the_rest_still_runs(
    short: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = short.cases.SMALL
    wrong = first._replace(compare=lambda result, wanted: (False, "off by one"))
    monkeypatch.setattr(short.cases, "SMALL", (wrong, second))
    out = tmp_path / "hopper.json"
    with pytest.raises(SystemExit, match=r"error: wrong: act_quant \[0, 256\]\nhint: .*how far"):
        short.kernels(out, 60)
    assert json.loads(out.read_text())["checks"][0]["how"] == "off by one"


def test_a_run_that_is_cut_off_leaves_what_it_had(
    short: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(record: Any, case: Any, device: torch.device) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(short, "measure", cut)
    out = tmp_path / "hopper.json"
    with pytest.raises(KeyboardInterrupt):
        short.kernels(out, 60)
    assert len(json.loads(out.read_text())["checks"]) == 2


def test_what_there_is_no_time_for_is_left_out_by_name(short: Any, tmp_path: Path) -> None:
    out = tmp_path / "hopper.json"
    short.kernels(out, 0)
    results = json.loads(out.read_text())
    assert "checks" not in results
    assert "check of act_quant [0, 256]: the time is over" in results["left_out"]
    assert "answers of the sample model: the time is over" in results["left_out"]


def test_the_padded_sample_model_answers_as_on_the_cpu(script: Any, tmp_path: Path) -> None:
    record = script.Record(tmp_path / "hopper.json", 60)
    assert script.answers(record, torch.device("cpu")) == []
    assert record.results["answers"] == [{"same": script.PROMPTS, "of": script.PROMPTS}]


def test_other_answers_are_wrong(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([[[1]] * script.PROMPTS, [[2], *[[1]] * (script.PROMPTS - 1)]])
    monkeypatch.setattr(script, "greedy", lambda *arguments: next(drawn))
    record = script.Record(tmp_path / "hopper.json", 60)
    assert script.answers(record, torch.device("cpu")) == [
        "padded sample model: 7 of 8 greedy answers as on the CPU"
    ]


def test_words_for_pytest_go_to_training_alone(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(script, "training", given.append)
    monkeypatch.setattr("sys.argv", ["hopper_check.py", "training", "-n", "8"])
    script.main()
    assert given == [["-n", "8"]]
    monkeypatch.setattr("sys.argv", ["hopper_check.py", "kernels", "-n", "8"])
    with pytest.raises(SystemExit):
        script.main()
