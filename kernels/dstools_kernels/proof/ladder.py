"""The time of each step of the ladder: a plugin of pytest, and the summary of its records.

    pytest -p dstools_kernels.proof.ladder --times FILE ...    add the times of this process to FILE
    python -m dstools_kernels.proof.ladder FILE                print them, a line for each step

The steps are those of docs/kernels.md. A test that makes a mutant is of L6; of L2's all run under
the sanitizer where they need it, so that L3 has only the tests of the sanitizer itself. On 2 idle
cores all are to take at most 8 minutes.
"""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

START = "start-up, collection"
STEPS = {  # test file -> its step
    "test_interpreter.py": "L1 casts",
    "test_sanitizer.py": "L3 sanitizer",
    "test_accumulate.py": "L4 emulated accumulator",
    "test_compile.py": "L5 compilation for sm_90a",
    "test_sample_answers.py": "answers",
}
PROBES = ("test_a_probe", "test_this_release", "test_mending")  # of test_interpreter.py
MUTANTS = "L6 mutants"


def step_of(file: str, test: str, calls: tuple[str, ...]) -> str:
    """Return the step of a test from its file's name, its own, and what it refers to."""
    if "mutate" in calls:
        return MUTANTS
    if test.startswith(PROBES):
        return "L0 interpreter"
    return STEPS.get(file, "L2 float64 references")


class Times:
    """Adds up seconds and CPU seconds by step, child processes included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.perf_counter(), 0.0  # CPU from the start of the process on
        self.steps: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test with its fixtures."""
        function = getattr(item, "function", None)
        calls = function.__code__.co_names if function else ()
        before = _now()
        result = yield
        name = step_of(item.path.name, item.name, calls)
        self.steps[name] = _sum(self.steps[name], _since(before))
        return result

    def pytest_sessionfinish(self) -> None:
        """Append the times to the file, a line of JSON for each step."""
        spent = _sum((0.0, 0.0), *self.steps.values())
        whole = _since(self.start)
        self.steps[START] = whole[0] - spent[0], whole[1] - spent[1]
        with self.path.open("a") as file:
            file.writelines(json.dumps(step) + "\n" for step in self.steps.items())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --times."""
    parser.addoption("--times", type=Path, required=True, help="append the steps' times to a file")


def pytest_configure(config: pytest.Config) -> None:
    """Time the tests."""
    config.pluginmanager.register(Times(config.getoption("--times")))


def report(lines: list[str]) -> str:
    """Return a line for each step and one for all."""
    steps: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, seconds in map(json.loads, lines):
        steps[name] = _sum(steps[name], seconds)
    names = [*sorted(steps.keys() - {START}), START]
    rows = [(name, *steps[name]) for name in names]
    rows.append(("all", *_sum(*steps.values())))
    return "".join(f"== ladder: {name}: {s:.0f} s, {cpu:.0f} s of CPU\n" for name, s, cpu in rows)


def _now() -> tuple[float, float]:
    return time.perf_counter(), sum(os.times()[:4])


def _since(before: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - before[0], now[1] - before[1]


def _sum(*parts: tuple[float, float]) -> tuple[float, float]:
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


if __name__ == "__main__":
    sys.stdout.write(report(Path(sys.argv[1]).read_text().splitlines()))
