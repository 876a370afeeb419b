"""Tests of the interpreter's tools need it; they run in a process where it is on."""

import os
from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Mend the interpreter, or skip the test where kernels are compiled."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("run by TRITON_INTERPRET=1 pytest tests/kernels/proof")
    from dstools_kernels.proof import interpreter

    interpreter.mend()
    with np.errstate(all="ignore"):  # a GPU does not warn of NaN and overflow
        yield
