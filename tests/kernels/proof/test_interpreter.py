"""Step L0 and L1: the interpreter computes what torch and ml_dtypes do, bit for bit."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

import ml_dtypes
import numpy as np

from dstools_kernels.proof import interpreter

pytestmark = pytest.mark.usefixtures("interpreted")

ODD = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e9, -1e9, 448.0, 464.0, 500.0, 3e38]


def normal(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def floats() -> Tensor:
    """262,144 float32: normals, E4M3's subnormal range, its overflow, ties, and what is odd."""
    size = 1 << 16
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = codes[~codes.isnan()].sort().values
    ties = (grid[1:] + grid[:-1]) / 2
    near = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    parts = [
        normal(size),
        normal(size) * 2.0**-8,
        torch.linspace(440, 600, size),
        torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32).view(torch.float32),
    ]
    x = torch.cat(parts)
    x[: len(near)], x[-len(ODD) :] = near, torch.tensor(ODD)
    return x


def exhaustive(dtype: torch.dtype, bits: torch.dtype) -> Tensor:
    count = 256 ** torch.empty(0, dtype=dtype).element_size()
    return torch.arange(count).to(bits).view(dtype)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether all bits are equal, where one NaN is as good as another."""
    is_nan = a.isnan()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(is_nan, b.isnan()) and torch.equal(
        a.view(whole)[~is_nan], b.view(whole)[~is_nan]
    )


def test_a_probe_that_passes_leaves_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter.mend() == []  # mended by the fixture
    monkeypatch.setitem(interpreter.PROBES, "casts", lambda: False)
    with pytest.raises(RuntimeError, match=r"\['casts'\] wrongly"):
        interpreter.mend()


def test_this_release_is_wrong_in_all_three() -> None:
    """A release that is right in one of them need not be mended there: then this test changes."""
    code = "from dstools_kernels.proof import interpreter; print(interpreter.mend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['casts', 'arithmetic of BF16', 'products of BF16']"


def test_mending_needs_the_interpreter() -> None:
    code = "from dstools_kernels.proof import interpreter; interpreter.mend()"
    without = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=without)
    assert "ValueError: the interpreter is off" in done.stderr


@pytest.mark.parametrize("target", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_to_fp8_are_torchs_and_saturate(target: torch.dtype) -> None:
    """The limit is set by hand: torch's own cast to E5M2 gives infinity above 57344."""
    largest = torch.finfo(target).max
    for x in (
        floats(),
        exhaustive(torch.bfloat16, torch.int16),
        exhaustive(torch.float16, torch.int16),
    ):
        wanted = x.float().clamp(-largest, largest).to(target)
        assert equal_bits(interpreter.cast(x, target), wanted)


def test_casts_to_e4m3_are_those_of_ml_dtypes() -> None:
    x = floats()
    with np.errstate(invalid="ignore"):  # NaN among them
        codes = np.clip(x.numpy(), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    wanted = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    assert equal_bits(interpreter.cast(x, torch.float8_e4m3fn), wanted)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32])
def test_casts_between_wider_types_are_torchs(target: torch.dtype) -> None:
    for x in (
        floats(),
        exhaustive(torch.bfloat16, torch.int16),
        exhaustive(torch.float16, torch.int16),
        exhaustive(torch.float8_e4m3fn, torch.uint8),
        exhaustive(torch.float8_e5m2, torch.uint8),
    ):
        assert equal_bits(interpreter.cast(x, target), x.to(target))


def test_casts_of_integers_to_bf16_are_torchs() -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    assert equal_bits(interpreter.cast(x, torch.bfloat16), x.bfloat16())
