"""Checks and times on a card, tried on the CPU."""

import os

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import VARIABLE
from dstools_kernels.proof import card, cases
from dstools_kernels.proof.comparisons import equal
from dstools_kernels.proof.roofline import Work

CPU = torch.device("cpu")
WORK = Work("double", "[3]", 24, 6)


def doubled(device: torch.device, factor: float = 2.0) -> cases.Case:
    """Return a case whose definition doubles, and whose other form multiplies by `factor`."""

    def call() -> Tensor:
        is_reference = os.environ.get(VARIABLE) == "reference"
        return torch.ones(3, device=device) * (2.0 if is_reference else factor)

    return cases.Case(WORK, lambda _: call, equal)


def test_a_case_is_compared_with_the_definition() -> None:
    assert card.check(doubled(CPU), CPU) == card.Checked("double [3]", True, "0 of 3 values differ")
    assert not card.check(doubled(CPU, 3.0), CPU).is_right


def test_a_result_is_kept_from_a_call_that_writes_in_place() -> None:
    pool = torch.zeros(3)

    def call() -> Tensor:
        pool.add_(1)
        return pool

    checked = card.check(cases.Case(WORK, lambda _: call, equal), CPU)
    assert checked.how == "3 of 3 values differ"


def test_the_form_of_ops_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vendor")
    with card.using("reference"):
        assert os.environ[VARIABLE] == "reference"
    assert os.environ[VARIABLE] == "vendor"
    monkeypatch.delenv(VARIABLE)
    with card.using("triton"):
        assert os.environ[VARIABLE] == "triton"
    assert VARIABLE not in os.environ


def test_rates_follow_from_time_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "clock", lambda call, device: 0.5)
    assert card.timed(doubled(CPU), CPU) == card.Timed("double [3]", 0.5, 48.0, 12.0, "bf16")


def test_a_call_is_timed_after_it_was_warm() -> None:
    calls: list[int] = []
    assert card.clock(lambda: calls.append(1), CPU) >= 0
    assert len(calls) == 2


def test_ceilings_count_both_directions_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "clock", lambda call, device: call() is not None and 2.0)
    measured = card.ceilings(CPU, 64)
    assert measured["copy_bytes_a_second"] == 2 * 64 * 64 * 2 / 2
    assert measured["bf16_flops"] == 2 * 64**3 / 2
