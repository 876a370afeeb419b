"""Twins run in Triton's interpreter, mended, in a process of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="run by TRITON_INTERPRET=1 pytest tests/kernels/ops/triton")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def twins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mend the interpreter, and let the public functions reach the twins."""
    from dstools_kernels.proof import interpreter

    interpreter.mend()
    monkeypatch.setenv("DSTOOLS_KERNELS", "triton")
    with np.errstate(all="ignore"):  # a GPU does not warn of NaN and overflow
        yield


@pytest.fixture
def watched() -> Iterator[None]:
    """Check every access of kernels, and fill new tensors with NaN, so that gaps are seen."""
    from dstools_kernels.proof.sanitizer import sanitized

    torch.use_deterministic_algorithms(True)  # which fills what is allocated
    try:
        with sanitized():
            yield
    finally:
        torch.use_deterministic_algorithms(False)
