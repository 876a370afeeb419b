"""The environment chooses the form of an op; what it cannot mean is refused."""

import logging
import subprocess
import sys

import pytest
import torch

from dstools_kernels.ops import dispatch

CPU = torch.zeros(1)


class OnGPU:
    """Takes the place of a tensor of which only the device is read, so that no GPU is needed."""

    device = torch.device("cuda", 0)


def test_without_a_choice_a_cpu_runs_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTOOLS_KERNELS", raising=False)
    assert dispatch.kernels() == "auto"
    assert not dispatch.runs_twin("gemm", CPU)


@pytest.mark.parametrize("choice", ["auto", "vendor", "reference"])
def test_these_choices_run_the_definition_on_a_cpu(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", choice)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.kernels() == choice
    assert not dispatch.runs_twin("gemm", CPU)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.is_interpreted()
    assert dispatch.runs_twin("gemm", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not dispatch.is_interpreted()
    with pytest.raises(ValueError, match="only with TRITON_INTERPRET=1"):
        dispatch.runs_twin("gemm", CPU)


@pytest.mark.parametrize(
    ("choice", "capability", "is_twin"),
    [
        ("auto", (9, 0), True),
        ("auto", (10, 0), True),
        ("auto", (8, 9), False),
        ("vendor", (9, 0), True),
        ("reference", (9, 0), False),
        ("triton", (8, 0), True),
    ],
)
def test_a_gpu_runs_twins_from_hopper_on(
    choice: str, capability: tuple[int, int], is_twin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", choice)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    assert dispatch.runs_twin("gemm", OnGPU()) is is_twin  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)  # without Triton
    assert dispatch.runs_twin("gemm", OnGPU()) is (choice == "triton")  # type: ignore[arg-type]


def test_a_wrong_choice_names_the_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match=r"one of \['auto', 'triton', 'vendor', 'reference'\], got"
    ):
        dispatch.runs_twin("gemm", CPU)


def test_a_form_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTOOLS_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    reasons = [dispatch.form("cpu"), dispatch.form("cuda", (8, 9)), dispatch.form("cuda", (9, 0))]
    assert [form.name for form in reasons] == ["reference", "reference", "triton"]
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    reasons.append(dispatch.form("cuda", (9, 0)))
    monkeypatch.setenv("DSTOOLS_KERNELS", "reference")
    reasons.append(dispatch.form("cuda", (9, 0)))
    assert len({form.why for form in reasons}) == 5
    assert dispatch.form("cpu") == ("reference", "DSTOOLS_KERNELS=reference")


def test_an_op_logs_its_form_once_for_each_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DSTOOLS_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    caplog.set_level(logging.INFO, dispatch.__name__)
    dispatch._log_once.cache_clear()
    on_gpu: torch.Tensor = OnGPU()  # type: ignore[assignment]
    for _ in range(2):
        assert dispatch.runs_twin("gemm", on_gpu)
        assert not dispatch.runs_twin("gemm", on_gpu, False, "K divisible by 8")
        assert not dispatch.runs_twin("gemm", CPU)
        assert not dispatch.runs_twin("permute", CPU, False, "what a CPU is not asked for")
    assert caplog.messages == [
        "gemm runs as its Triton twin: the GPU is of Hopper or later",
        "gemm runs as its torch definition: the twin needs K divisible by 8",
        "gemm runs as its torch definition: there are kernels for GPUs alone",
        "permute runs as its torch definition: there are kernels for GPUs alone",
    ]


def test_tma_takes_rows_of_multiples_of_16_bytes() -> None:
    assert dispatch.is_aligned(0, 16, 576)
    assert not dispatch.is_aligned(16, 584)


def test_the_form_is_known_without_torch() -> None:
    code = "import sys; from dstools_kernels.ops.dispatch import form; form('cpu');"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
