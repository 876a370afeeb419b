"""The process that works through the cases on a card."""

import logging

import pytest
import torch

from dstools_kernels.ops import dispatch
from dstools_kernels.proof import card, cases, worker

CPU = torch.device("cpu")


def test_forms_come_last_and_the_one_that_may_hang_after_all() -> None:
    jobs = worker.jobs(is_card=True)
    parts = [job.part for job in jobs]
    assert parts == sorted(parts)  # ceilings, checks, forms
    assert parts.count("ceilings") == 1
    assert jobs[-1].name.endswith("bf16.gluon")
    assert [job.case for job in jobs if job.is_timed and job.part == "checks"] == [*cases.V3]


def test_each_job_is_named_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SMALL", cases.SMALL[-2:])
    monkeypatch.setattr(card, "ceilings", lambda device, size: {"copy_bytes_a_second": 1.0})
    lines = list(worker.work(0, CPU))
    names = [case.name for case in cases.SMALL]
    assert [(line.get("part"), line.get("job"), line.get("name")) for line in lines] == [
        (None, 0, "ceilings"),
        ("ceilings", None, None),
        (None, 1, names[0]),
        ("checks", None, names[0]),
        (None, 2, names[1]),
        ("checks", None, names[1]),
        ("times", None, names[1]),
    ]
    assert next(worker.work(2, CPU)) == {"job": 2, "name": names[1]}


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = cases.SMALL[-1]._replace(compare=lambda result, wanted: (False, "off"))
    monkeypatch.setattr(cases, "SMALL", (wrong,))
    assert [line.get("part") for line in worker.work(1, CPU)] == [None, "checks"]


def test_what_ops_log_about_their_forms_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    worker.listen(notes.append)
    handler = dispatch.log.handlers[-1]
    try:
        dispatch.log.info("%s runs as its %s", "gemm", "Triton twin")
        with card.using("reference"):
            dispatch.log.info("%s runs as its %s", "gemm", "torch definition")
    finally:
        dispatch.log.removeHandler(handler)
        dispatch.log.setLevel(logging.NOTSET)
    assert notes == ["gemm runs as its Triton twin"]
