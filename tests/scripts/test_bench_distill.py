"""scripts/bench_distill.py: the rows that it makes, and the figures of each stage."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(load_script: Any) -> Any:
    return load_script("bench_distill")


@pytest.mark.parametrize("kind", ["prose", "sums"])
def test_every_stage_is_measured(kind: str, run_script: Any, tmp_path: Path) -> None:
    words = ("--kind", kind, "--rows", 80, "--workers", 1, "--folder", tmp_path)
    done = run_script("bench_distill", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"date", "machine", "results"}
    (result,) = report["results"]
    assert (result["kind"], result["rows"], result["workers"]) == (kind, 80, 1)
    stages = result["stages"]
    assert list(stages) == ["verify", "decontaminate", "select", "render"]
    assert stages["verify"]["rows_in"] == 80
    rows = [stage["rows_in"] for stage in stages.values()]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] >= 40  # some are wrong or cut off, most are not
    assert result["peak_mib"] == max(stage["peak_mib"] for stage in stages.values()) > 10
    cpu = sum(stage["cpu_seconds"] for stage in stages.values())
    assert result["rows_per_minute_by_cpu"] == pytest.approx(80 / cpu * 60, abs=1)
    assert list(tmp_path.iterdir()) == []


def test_sampling_is_measured_three_ways(run_script: Any) -> None:
    done = run_script("bench_distill", "--sample", 4)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout)["sampling"]
    assert list(rates) == ["generate", "loop", "loop with MTP"]
    assert min(rates.values()) > 0


@pytest.mark.slow
def test_answers_of_grpo_are_measured_two_ways(run_script: Any) -> None:
    done = run_script("bench_distill", "--rollouts", 2)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout)["rollouts"]
    assert rates.keys() == {"model", "llama"}
    assert all(rate.keys() == {"TRL", "loop"} and min(rate.values()) > 0 for rate in rates.values())


@pytest.mark.parametrize("bar", [("--at-least", 10**9), ("--at-most-mib", 1)])
def test_a_missed_bar_exits_with_3(bar: tuple[str, int], run_script: Any, tmp_path: Path) -> None:
    words = ("--kind", "sums", "--rows", 8, "--workers", 1, "--folder", tmp_path)
    assert run_script("bench_distill", *words, *bar).returncode == 3


def test_a_tenth_of_the_samples_is_wrong_and_one_in_fifty_cut_off(script: Any) -> None:
    """Of 4000 draws: shares of 0.02 and 0.1 are off by 0.0022 and 0.0047 (one sigma)."""
    rng = random.Random(0)
    problems = script.prose(rng)
    benchmark = [next(problems)]
    samples = list(itertools.islice(script.samples(problems, benchmark, rng), 4000))
    cut = [sample for sample in samples if sample["finish_reason"] == "length"]
    assert abs(len(cut) / 4000 - 0.02) < 4 * 0.0022
    assert all(sample["reasoning"] is None and "</think>" not in sample["raw"] for sample in cut)
    finished = [sample for sample in samples if sample["finish_reason"] == "stop"]
    wrong = [s for s in finished if rf"\boxed{{{s['gold']}}}" not in s["answer"]]
    assert abs(len(wrong) / 4000 - 0.1) < 4 * 0.0047
    assert all(sample["raw"].startswith("<think>\n") for sample in samples)
    counts = Counter(sample["id"] for sample in samples)
    assert {count % 4 for count in counts.values()} == {0}


def test_the_traces_of_sums_end_in_their_answers(script: Any) -> None:
    problems = list(script.sums(20))
    assert len({problem["id"] for problem in problems}) == 20
    for problem in problems:
        assert problem["trace"].rsplit("|", 1)[1] == problem["gold"] == problem["right"]
        assert problem["wrong"] != problem["gold"]
