"""scripts/hopper_check.py: what it would run exists, and a failure is named."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
WORKER = """
import json, sys, time
first = int(sys.argv[1])
def say(**line): print(json.dumps(line), flush=True)
def say_job(i): say(job=i, name=f"case {i}")
def say_check(i, is_right, part="checks"):
    say(part=part, name=f"case {i}", is_right=is_right, how="how")
"""


@pytest.fixture
def script(load_script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as when it is run
    return load_script("hopper_check")


@pytest.fixture
def kernels(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs `kernels` with workers that do what `code` does to three jobs.

    Job 0 measures the ceilings, jobs 1 and 2 check the cases that are named so. `answers` is the
    code of the workers that answer.
    """

    def run(code: str, seconds: float = 60, answers: str = "") -> dict[str, Any]:
        for name, job in {"WORKER": code, "ANSWERS": answers}.items():
            worker = tmp_path / f"{name}.py"
            worker.write_text(WORKER + job)
            monkeypatch.setattr(script, name, [sys.executable, str(worker)])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(script.worker.cases, "SMALL", script.worker.cases.SMALL[:2])
        out = tmp_path / "hopper.json"
        try:
            script.kernels(out, seconds)
        finally:
            results = json.loads(out.read_text())
        return results

    return run


def test_the_tests_and_scripts_that_it_names_exist(script: Any) -> None:
    for name in script.MODULES:
        assert (ROOT / "tests" / "distill" / name).is_file(), name
    assert Path(script.ANSWERS[1]).is_file()
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
    kernels: Any, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import dstools_kernels.proof.cases as c\n"
    code += "c.SMALL = c.SMALL[:2]\nfrom dstools_kernels.proof.worker import main\nmain()"
    results = kernels(code)
    printed = capsys.readouterr().out
    assert "left out: everything on a card: torch finds no CUDA device" in printed
    marked = [line for line in printed.splitlines() if line.startswith("rehearsal ")]
    starts = ["ceiling", "ok", "ok", "time", "all"]  # a note of each op comes before
    assert [line.split()[1] for line in marked if "note" not in line] == starts
    assert results["is_rehearsal"]
    assert [check["is_right"] for check in results["checks"]] == [True, True]
    assert [len(results[part]) for part in ("ceilings", "times")] == [1, 1]
    assert results["left_out"] == ["everything on a card: torch finds no CUDA device"]
    assert results["versions"]["torch"] == torch.__version__


def test_a_wrong_kernel_is_named_and_the_rest_still_runs(
    kernels: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"error: wrong: case 1\nhint: .*how far off"):
        kernels("for i in (1, 2):\n say_job(i)\n say_check(i, i == 2)")
    printed = capsys.readouterr().out
    assert "WRONG     case 1: how" in printed
    assert "ok        case 2: how" in printed


@pytest.mark.parametrize(
    ("death", "why"),
    [
        (
            "raise RuntimeError('an illegal memory access')",
            "RuntimeError: an illegal memory access",
        ),
        (
            "import atexit; atexit.register(print, 'nanobind: leaked', file=sys.stderr); "
            "raise RuntimeError('no memory')",
            "RuntimeError: no memory",
        ),
        ("import os; os.kill(os.getpid(), 9)", "exit -9"),
    ],
)
def test_a_kernel_that_takes_its_process_along_is_wrong_and_a_new_one_continues(
    kernels: Any, capsys: pytest.CaptureFixture[str], death: str, why: str
) -> None:
    with pytest.raises(SystemExit, match=r"error: wrong: act_quant .0, 256."):
        kernels(f"if first == 0: say_job(1); {death}\nsay_check(first, True)")
    printed = capsys.readouterr().out
    assert f"WRONG     act_quant [0, 256]: {why}" in printed
    assert "ok        case 2" in printed


def test_a_kernel_that_hangs_is_killed_and_a_new_one_continues(
    kernels: Any, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "CASE_SECONDS", 2)
    with pytest.raises(SystemExit, match=r"error: wrong: act_quant .0, 256."):
        kernels("if first == 0: say_job(1); time.sleep(600)\nsay_check(first, True)")
    printed = capsys.readouterr().out
    assert "WRONG     act_quant [0, 256]: no result within 2 s" in printed
    assert "ok        case 2" in printed


def test_a_worker_that_hangs_at_its_exit_is_killed(
    kernels: Any, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "CASE_SECONDS", 2)
    with pytest.raises(SystemExit, match=r"error: wrong: act_quant .1, 256."):
        kernels("import os\nsay_job(2); say_check(2, True); os.close(1); time.sleep(600)")
    assert "WRONG     act_quant [1, 256]: no result within 2 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("death", "why"),
    [("sys.exit('no memory')", "no memory"), ("time.sleep(600)", "no result within 2 s")],
)
def test_ceilings_that_are_not_measured_are_left_out_and_no_kernel_is_blamed(
    kernels: Any,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    death: str,
    why: str,
) -> None:
    monkeypatch.setattr(script, "CASE_SECONDS", 2)
    results = kernels(
        f"if first == 0: say_job(0); {death}\n"
        "say_check(first, True)\n"
        "say(part='times', name='x', seconds=2e-6, bytes_a_second=3e12, flops=5e14, unit='fp8')"
    )
    assert results["left_out"][1:] == [f"ceilings: {why}"]
    assert [check["name"] for check in results["checks"]] == ["case 1"]
    assert "time      x: 2 us, 3000 GB/s, 500 TFLOPS\n" in capsys.readouterr().out


def test_another_form_that_is_wrong_is_off_and_no_error(
    kernels: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = kernels("say_check(0, False, 'forms')")
    assert [form["is_right"] for form in results["forms"]] == [False]
    assert "off       case 0: how" in capsys.readouterr().out


def test_rates_are_shown_beside_those_of_a_copy_and_of_the_products_of_torch(
    kernels: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels(
        "say(part='ceilings', copy_bytes_a_second=4e12, bf16_flops=8e14, fp8_flops=1e15)\n"
        "def say_time(name, flops, unit='bf16'):\n"
        "  say(part='times', name=name, seconds=2e-6, bytes_a_second=3e12, "
        "flops=flops, unit=unit)\n"
        "say_time('x', 0)\nsay_time('y', 2e14)\nsay_time('z', 5e14, 'fp8')"
    )
    printed = capsys.readouterr().out
    assert "ceiling   copy_bytes_a_second 4e+12, bf16_flops 8e+14, fp8_flops 1e+15\n" in printed
    moved = "2 us, 3000 GB/s (75% of a copy)"
    assert f"time      x: {moved}\n" in printed
    assert f"time      y: {moved}, 200 TFLOPS (25% of torch's BF16 product)\n" in printed
    assert f"time      z: {moved}, 500 TFLOPS (50% of torch's FP8 product)\n" in printed


def test_a_run_that_is_cut_off_leaves_what_it_had(
    kernels: Any, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep = script.keep

    def cut(record: Any, result: Any, wrong: Any) -> None:
        keep(record, result, wrong)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "keep", cut)
    with pytest.raises(KeyboardInterrupt):
        kernels("say_check(0, True)\ntime.sleep(5)")
    assert len(json.loads((tmp_path / "hopper.json").read_text())["checks"]) == 1


def test_what_there_is_no_time_for_is_left_out_by_name(kernels: Any) -> None:
    results = kernels("say_job(first + 1)\ntime.sleep(600)", seconds=1)
    assert results["left_out"][1:] == [
        "act_quant [0, 256]: out of time",
        "act_quant [1, 256] and what follows: out of time",
        "BF16 answers of the sample model and what follows: out of time",
    ]
    assert "checks" not in results


def test_answers_that_are_wrong_are_named(kernels: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = "for i in range(2): say_job(i); say_check(i, i == 1, 'answers')"
    with pytest.raises(SystemExit, match="error: wrong: case 0\n"):
        kernels("", answers=code)
    printed = capsys.readouterr().out
    assert "WRONG     case 0: how" in printed
    assert "ok        case 1: how" in printed


def test_a_crash_while_the_model_answers_is_wrong_and_the_next_form_answers(
    kernels: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = "import os; os.kill(os.getpid(), 11)"
    with pytest.raises(SystemExit, match="error: wrong: BF16 answers of the sample model\n"):
        kernels("", answers=f"say_job(first)\nif not first: {crash}\nsay_check(1, True, 'answers')")
    printed = capsys.readouterr().out
    assert "WRONG     BF16 answers of the sample model: exit -11" in printed
    assert "ok        case 1: how" in printed


def test_answers_have_all_the_time_that_is_left_and_no_more(
    kernels: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "CASE_SECONDS", 0.1)
    wait = "say_job(first)\ntime.sleep(0.5)\nsay_check(0, True, 'answers')\nsay_job(1)\n"
    started = time.monotonic()
    results = kernels("", seconds=5, answers=wait + "time.sleep(600)")
    assert time.monotonic() - started < 60
    assert [answer["is_right"] for answer in results["answers"]] == [True]
    assert results["left_out"][1:] == ["FP8 answers of the sample model: out of time"]


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
