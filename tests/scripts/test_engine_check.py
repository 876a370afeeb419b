"""scripts/engine_check.py, without an engine: what it concludes, prints and installs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("engine_check")


def answer(**changes: Any) -> dict[str, Any]:
    """Return what an engine answers when all is right."""
    right = {
        "equal": {"a": True, "b": True},
        "tokens": [[5, 6], [7]],
        "logprobs": [[-0.5, -1.0], [-2.0]],
        "drafted": 100,
        "accepted": 99,
    }
    return right | changes


def row(script: Any, verify: str = "ok", **changes: Any) -> Any:
    reference = script.Reference([[5, 6], [7]], ["5 6", "7"], [[-0.501, -1.002], [-2.0]])
    return script.read_answer(answer(**changes), reference, {"a", "b"}, verify)


def test_an_answer_like_the_reference_is_right(script: Any) -> None:
    seen = row(script)
    assert seen[:4] == ("right", "ok", (2, 2), (2, 2))
    assert seen.difference == pytest.approx(0.001)
    assert seen.accepted == (99, 100)


@pytest.mark.parametrize(
    "changes",
    [
        {"equal": {"a": True, "b": False}},
        {"equal": {"a": True}},  # the engine never had it in memory
        {"tokens": [[5, 6], [8]]},
        {"logprobs": [[-0.5, -1.1], [-2.0]]},
        {"logprobs": [[float("nan"), -1.0], [-2.0]]},
        {"accepted": 94},
    ],
)
def test_an_answer_that_differs_is_wrong(script: Any, changes: dict[str, Any]) -> None:
    assert row(script, **changes).seen == "wrong"


def test_what_an_engine_does_not_tell_is_not_judged(script: Any) -> None:
    reference = script.Reference([[5]], ["five"], [])
    seen = script.read_answer({"texts": ["five"]}, reference, {"a"}, "no rules")
    assert seen == script.Row("right", "no rules", answers=(1, 1))
    assert script.read_answer({"texts": ["six"]}, reference, {"a"}, "no rules").seen == "wrong"


def test_verify_and_the_engine_must_agree_either_way(script: Any) -> None:
    runs, fails = script.Case("m", "native"), script.Case("m", "native", fails_in=("vllm",))
    assert script.judge(runs, "vllm", script.Row("right", "ok")) == []
    assert script.judge(fails, "vllm", script.Row("refused", "refuses")) == []
    assert script.judge(fails, "vllm", script.Row("refused", "not written")) == []
    assert script.judge(fails, "mistralrs", script.Row("right", "no rules")) == []
    for case, seen, verify in (
        (runs, "right", "refuses"),
        (fails, "wrong", "ok"),
        (runs, "wrong", "refuses"),
        (fails, "right", "ok"),
    ):
        assert len(script.judge(case, "vllm", script.Row(seen, verify))) == 1
    both = script.judge(runs, "vllm", script.Row("wrong", "ok"))
    assert both == ["is wrong in vllm, but known to run", "is wrong in vllm, but verify says: ok"]


def test_the_table_has_a_cell_for_each_heading(script: Any) -> None:
    case = script.Case("sample", "native", ("kv_b_proj",))
    line = script.table_row(case, script.Row("right", "ok", (2, 3), (8, 8), 0.00123, (99, 100)))
    assert line == (
        "| sample native keeping kv_b_proj of layer 1 | right | 2 of 3 | 8 of 8 | 0.0012 "
        "| 99 of 100 | ok |"
    )
    refused = script.Row("refused", "refuses", words="KeyError: 'a|b'")
    line = script.table_row(script.Case("m", "gptq"), refused)
    assert line == "| m gptq | refused: KeyError: 'a\\|b' | - | - | - | - | refuses |"
    assert script.HEADINGS.count("|") == line.replace("\\|", "").count("|")


def test_the_last_error_of_a_log_is_named_without_what_is_around_it(script: Any) -> None:
    log = (
        "ValueError: first\n(pid=7) INFO ok\n(pid=7) ERROR KeyError: 'w13_weight_scale_inv'\nbye\n"
    )
    assert script.last_error(log) == "KeyError: 'w13_weight_scale_inv'"
    assert script.last_error("Killed\n") == "ended without naming an error"


def test_an_engine_is_asked_in_a_process_of_its_own(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RUNNERS", tmp_path)
    code = "import json, sys\nrequest = json.load(open(sys.argv[1]))\n"
    code += "if request['fail']: raise KeyError('scale')\n"
    code += "json.dump({'equal': {}}, open(sys.argv[2], 'w'))\n"
    (tmp_path / "run_vllm.py").write_text(code)
    ask = script.ask_engine
    assert ask("vllm", sys.executable, {"fail": False}, tmp_path / "a.log") == ({"equal": {}}, "")
    assert ask("vllm", sys.executable, {"fail": True}, tmp_path / "b.log") == (
        None,
        "KeyError: 'scale'",
    )


def test_requirements_of_other_machines_extras_and_what_is_left_out_are_not_installed(
    script: Any,
) -> None:
    wanted = ["torch==2.13.0", "torchvision", 'pandas; extra == "bench"', 'a>1; python_version>"3"']
    wanted += ['b; platform_machine == "s390x"', "c[d]<2,>=1"]
    assert script.needed("vllm", wanted) == ["torch==2.13.0", "a>1", "c[d]<2,>=1"]
    assert script.needed("sglang", wanted) == ["torch==2.13.0+cpu", "a>1", "c[d]<2,>=1"]


def test_each_engine_has_its_runner_and_its_package(script: Any) -> None:
    for engine in get_args(script.Engine):
        assert (script.RUNNERS / f"run_{engine}.py").is_file()
        assert "==" in script.PACKAGES[engine]


def test_the_plugin_is_found_by_its_entry_point(script: Any) -> None:
    code = "from importlib.metadata import entry_points as e;"
    code += "print(*e(group='vllm.general_plugins')['vllm_without_amx'].load().__module__)"
    environment = {"PYTHONPATH": str(script.RUNNERS)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.replace(" ", "").strip() == "vllm_without_amx"


def test_without_an_engine_the_command_is_misused(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run_script("engine_check").returncode == 2
    done = run_script("engine_check", "--engine", "vllm", "--venv", "x", "--model", "gpt")
    assert (done.returncode, "invalid choice: 'gpt'" in done.stderr) == (2, True)


def test_mistral_rs_is_asked_of_models_that_answer(script: Any) -> None:
    models = ["sample", "tiny-llama"]
    assert {case.model for case in script.chosen("mistralrs", models)} == {"sample"}
    assert {case.model for case in script.chosen("sglang", models)} == set(models)
