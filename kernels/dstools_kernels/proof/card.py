"""What a card computes and how fast: ceilings, cases against definitions, times.

On a CPU the same code runs and times each call once, so that minutes on a card are not spent on a
typo; its times mean nothing.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from dstools_kernels.ops.dispatch import VARIABLE, Kernels, is_interpreted
from dstools_kernels.proof.cases import Case

REPEATS = 20  # of a timed call
FLUSH_BYTES = 256 << 20  # more than the L2 cache; written between calls


@dataclass(frozen=True)
class Checked:
    """A case and whether its op gave what the definition gives."""

    name: str
    is_right: bool
    how: str  # how far off


@dataclass(frozen=True)
class Timed:
    """A case and its time."""

    name: str
    seconds: float
    bytes_a_second: float
    flops: float  # a second; 0 where the op has no products
    unit: str  # of the products: "bf16" or "fp8"


def prepare() -> torch.device:
    """Return the card, or the CPU; mend the interpreter where kernels are interpreted."""
    if is_interpreted():
        from dstools_kernels.proof.interpreter import mend  # needs Triton

        mend()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def using(value: Kernels) -> Iterator[None]:
    """Let the ops take this form."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check(case: Case, device: torch.device) -> Checked:
    """Run a case in the form that `device` has, and compare it with the definition there."""
    torch.manual_seed(0)
    call = case.make(device)
    result = _kept(call())
    with using("reference"):
        is_right, how = case.compare(result, call())
    return Checked(case.name, is_right, how)


def timed(case: Case, device: torch.device) -> Timed:
    """Return how long a case takes."""
    torch.manual_seed(0)
    seconds, work = clock(case.make(device), device), case.work
    return Timed(case.name, seconds, work.bytes_moved / seconds, work.flops / seconds, work.unit)


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """Measure what the card can do: a copy in bytes/s, products of `size` squared in FLOPS.

    A key is missing where torch cannot run it here.
    """
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    measured = {"copy_bytes_a_second": 2 * a.nbytes / clock(lambda: b.copy_(a), device)}
    flops = 2 * size**3
    measured["bf16_flops"] = flops / clock(lambda: a @ b, device)
    codes, scale = a.to(torch.float8_e4m3fn), torch.ones(1, device=device)
    whole = ScalingType.TensorWise

    def fp8_product() -> Tensor:
        return scaled_mm(codes, codes.T, scale, whole, scale, whole, output_dtype=torch.bfloat16)

    with suppress(RuntimeError, ValueError, NotImplementedError):
        measured["fp8_flops"] = flops / clock(fp8_product, device)
    return measured


def clock(call: Callable[[], Any], device: torch.device) -> float:
    """Return the median seconds of `call`, the L2 cache flushed before each.

    On a GPU it is captured in a CUDA graph where it can be, so that no launch is waited for.
    """
    call()
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    run = _graph(call)
    flushed = torch.empty(FLUSH_BYTES, device=device, dtype=torch.uint8)
    events = []
    for _ in range(REPEATS):
        flushed.zero_()
        before, after = _event(), _event()
        before.record()
        run()
        after.record()
        events.append((before, after))
    torch.cuda.synchronize(device)
    return float(statistics.median(a.elapsed_time(b) for a, b in events)) / 1e3


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of `call` as a CUDA graph, or `call` where it waits for the GPU."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def _kept(result: Any) -> Any:
    """Return a copy, as a call may return what the next one writes."""
    if isinstance(result, Tensor):
        return result.clone()
    return type(result)(*(part.clone() for part in result))
