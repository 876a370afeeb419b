"""What a machine lacks is known before a stage runs, and only for what the stage asks for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dstools_distill import machine
from dstools_distill.machine import lack, lack_of_device
from dstools_distill.recipe.settings import Eval, Generate, Kd, Render, Sft, Source

Gpus = Callable[[int], None]
EXAM = (Source("rg:chain_sum"),)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Return a function that gives this machine so many GPUs."""

    def give(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    for name in ("LOCAL_RANK", "WORLD_SIZE", "DSTOOLS_DISTILL_LOCKED"):
        monkeypatch.delenv(name, raising=False)
    return give


@pytest.mark.parametrize(
    ("settings", "count", "problem", "advice"),
    [
        (Sft(parallel="fsdp2"), 0, "fsdp2 needs GPUs", '"single", "zero2"'),
        (Sft(parallel="fsdp2", processes=2), 0, "fsdp2 needs GPUs", '"ddp", "zero2"'),
        (Kd(parallel="ddp", processes=8), 2, "processes = 8, and this machine has 2", "2 proc"),
        (Sft(parallel="zero3", processes=2), 1, "processes = 2, and this machine", "1 process,"),
        (Eval(EXAM, device="cuda"), 0, "device cuda: this machine has none", '"cpu"'),
        (Generate("hf", device="cuda"), 0, "device cuda: this machine has none", '"cpu"'),
    ],
)
def test_too_few_gpus_are_told_with_what_runs_here(
    settings: Any, count: int, problem: str, advice: str, gpus: Gpus
) -> None:
    gpus(count)
    fault = lack(settings)
    assert fault is not None
    assert (problem in fault[0], advice in fault[1]) == (True, True), fault


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (Sft(), 0),
        (Sft(parallel="ddp", processes=8), 0),  # gloo, on CPUs
        (Sft(parallel="zero2", processes=8), 0),
        (Sft(parallel="fsdp2", processes=2), 2),
        (Sft(parallel="ddp", processes=2), 8),
        (Eval(EXAM, device="cuda"), 1),
        (Eval(EXAM), 0),
        (Generate("openai", device="cuda"), 0),  # of hf alone
        (Render(), 0),
    ],
)
def test_what_this_machine_can_run_lacks_nothing(settings: Any, count: int, gpus: Gpus) -> None:
    gpus(count)
    assert lack(settings) is None


def test_under_a_launcher_gpus_are_not_counted(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(4)
    monkeypatch.setenv("WORLD_SIZE", "8")  # on two machines
    assert lack(Sft(parallel="ddp", processes=8)) is None


def test_zero_needs_deepspeed_on_any_machine(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    for count in (0, 8):
        gpus(count)
        for parallel in ("zero2", "zero3"):
            settings = Sft(parallel=parallel, processes=8)  # type: ignore[arg-type]
            assert lack(settings) == (f"{parallel} needs DeepSpeed", "pip install deepspeed")
        assert lack(Sft(parallel="ddp", processes=8)) is None


def test_a_cpu_is_everywhere(gpus: Gpus) -> None:
    gpus(0)
    assert lack_of_device("cpu") is None
