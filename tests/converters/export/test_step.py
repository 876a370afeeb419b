"""What a step computes and allocates, by the profile that ONNX Runtime writes of every node."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Weight, require_export

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
OPTIONS = Options(context=512)  # of the exports of test_numerics.py
HIDDEN = 256  # of all models here
LAYERS, CHOSEN = 3, 4  # of tiny; experts of a token


class Event(NamedTuple):
    """A node that ran."""

    op: str
    shape: tuple[int, ...]  # of its first output
    allocated: int  # bytes that ONNX Runtime's allocator has given out and not got back


@pytest.fixture
def profiled(onnx_runner: Any, tmp_path: Path) -> Callable[..., list[Event]]:
    """profiled(folder, name, pages): the nodes of a step of one token, after 70 in two pages"""

    def run(folder: Path, name: str = "model.onnx", pages: int = 2) -> list[Event]:
        runner = onnx_runner(folder, name, pages, profile=tmp_path / "profile")
        hidden = np.ones((1, HIDDEN), np.float32) if name == "mtp.onnx" else None
        runner.step([5], [[1, 0]], [1], [70], hidden)
        events = json.loads(Path(runner.session.end_profiling()).read_text())
        nodes = [each["args"] for each in events if each["name"].endswith("_kernel_time")]
        return [event_of(node) for node in nodes]

    return run


def event_of(node: dict[str, Any]) -> Event:
    (shape,) = node["output_type_shape"][0].values() if node["output_type_shape"] else [[]]
    return Event(node["op_name"], tuple(shape), int(node["mem_bytes_requested_in_use"]))


def codes_of(folder: Path) -> list[Weight]:
    """Return the codes of model.onnx."""
    weights = require_export(folder).weights["model.data"]
    layers = tuple(f"model.layers.{number}." for number in range(LAYERS))
    return [each for each in weights if each.dtype == "F8_E4M3" and each.name.startswith(layers)]


# -------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("kind", "name", "written", "passed_on"),
    [
        ("sample-v3", "model.onnx", 4, 0),
        ("sample-v3", "mtp.onnx", 1, 1),
        ("tiny", "model.onnx", 3, 1),  # an odd number of layers
        ("tiny in FP8", "model.onnx", 3, 1),
    ],
)
def test_a_larger_pool_costs_a_step_nothing(
    kind: str,
    name: str,
    written: int,
    passed_on: int,
    tiny: Path,
    tiny_fp8: Path,
    exported: Any,
    profiled: Any,
) -> None:
    """The same nodes, with the same memory, to the byte; nothing between a cache and its writer."""
    source = {"sample-v3": SAMPLE, "tiny": tiny, "tiny in FP8": tiny_fp8}[kind]
    folder = exported(source, OPTIONS)
    few, many = (profiled(folder, name, pages) for pages in (2, 300))
    assert [event.op for event in few] == [event.op for event in many]
    assert [event.allocated for event in few] == [event.allocated for event in many]
    of_all_pages = sorted(event.op for event in many if 300 in event.shape)
    assert of_all_pages == ["Identity"] * passed_on + ["ScatterND"] * written


# ------------------------------------------------------------------------------------------ experts


def test_only_the_experts_that_a_token_chose_are_widened(
    tiny_fp8: Path, exported: Any, profiled: Any
) -> None:
    """Four of eight, and each linear map once."""
    folder = exported(tiny_fp8, OPTIONS)
    wanted = []
    for weight in codes_of(folder):
        *count, rows, columns = weight.shape
        wanted += [(rows, columns)] * (CHOSEN if count else 1)
    widened = [event.shape for event in profiled(folder) if event.op == "DequantizeLinear"]
    assert sorted(widened) == sorted(wanted)


def test_a_session_holds_codes_as_they_are_and_widens_one_expert_at_a_time(
    tiny_fp8: Path, exported: Any, profiled: Any
) -> None:
    """ONNX Runtime would run all that depends on weights alone first, and hold it: all layers."""
    folder = exported(tiny_fp8, OPTIONS)
    codes = codes_of(folder)
    first, *events = profiled(folder)
    others = require_export(folder).weights["model.data"]
    rest = sum(weight.nbytes for weight in others if weight.dtype != "F8_E4M3")
    assert first.allocated < rest  # copies of float32 weights in the order of their products
    expert = 4 * sum(prod(w.shape[1:]) for w in codes if len(w.shape) == 3) // (LAYERS - 1)
    widest = 4 * max(prod(w.shape) for w in codes if len(w.shape) == 2)
    activations = 4 * sum(prod(event.shape) for event in events if event.op == "Gemm")
    peak = max(event.allocated for event in events)
    assert peak - first.allocated < max(expert, widest) + activations
