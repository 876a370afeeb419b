"""Calibration in one thread; `plan_of` and the random tokens are those of the folder above.

quantize(plan, out, is_synced=False, **options)    follow a plan; options are those of `calibrate`
tree(folder)                                       the sha256 of every file
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.plan.plan import Plan
from dstools_converters.write.stream import Report, run


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine two threads take many times as long for such small matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quantize(calibrate_random: Callable[..., None]) -> Callable[..., Report]:
    """quantize(plan, out, is_synced=False, **options)"""

    def get(plan: Plan, out: Path, is_synced: bool = False, **options: Any) -> Report:
        fill = functools.partial(calibrate_random, **options)
        return run(plan, out, tool="dstools 0", workers=1, is_synced=is_synced, calibrate=fill)

    return get
