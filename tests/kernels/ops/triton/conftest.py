"""Twins run in Triton's interpreter, mended, in a process of their own."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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
    """Check every access of kernels, and fill new tensors with NaN, so that gaps are seen.

    A test that expects a fault catches it within `reported()`.
    """
    from dstools_kernels.proof.sanitizer import sanitized

    torch.use_deterministic_algorithms(True)  # which fills what is allocated
    try:
        with sanitized():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def by_definition() -> Callable[..., Any]:
    """by_definition(op, *arguments): what the torch definition of a public function returns."""

    def run(op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSTOOLS_KERNELS", "reference")
            return op(*arguments, **options)

    return run


@pytest.fixture
def assert_same_bits() -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """Compare tensors bit by bit, where one NaN is as good as another: x86 has negative ones."""

    def compare(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        for a, b in zip(ours, wanted, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            is_nan = a.isnan()
            assert torch.equal(is_nan, b.isnan())
            whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
            assert torch.equal(a.view(whole)[~is_nan], b.view(whole)[~is_nan])

    return compare
