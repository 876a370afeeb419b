"""Fixtures of teachers' tests."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.teacher import Ask, Outcome, Teacher


@pytest.fixture
def outcomes(tmp_path: Path) -> Callable[..., dict[int, Outcome]]:
    """outcomes(teacher, asks, logged=()): what a teacher yields beside the samples in the log."""

    def start(
        teacher: Teacher, asks: list[Ask], logged: tuple[int, ...] = ()
    ) -> dict[int, Outcome]:
        path = tmp_path / "samples.jsonl"
        path.unlink(missing_ok=True)
        with closing(SampleLog(path, len(asks))) as log:
            for number in logged:
                log.add(number, {})
            return dict(teacher(iter(asks), log))

    return start
