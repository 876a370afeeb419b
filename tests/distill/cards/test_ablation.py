"""Tests of the comparison of runs: by seed, by problem, and not at all."""

from typing import Any

import pytest

from dstools_distill.cards.markdown import points
from dstools_distill.evaluation.statistics import over_seeds, paired_difference


def test_arms_are_compared_seed_by_seed(made: Any) -> None:
    readme = made.cards(made.arms())["README.md"]
    # t = 4.3027 with two degrees. verified: s = 1/6; unfiltered: mean 1/2, s = 0.5 / sqrt(3);
    # differences -1/6, -1/3, 0: mean -1/6, s = 1/6
    assert over_seeds([-1 / 6, -1 / 3, 0]).low == pytest.approx(
        -1 / 6 - 4.3027 / 6 / 3**0.5, abs=1e-5
    )
    rows = [
        line for line in readme.split("\n") if line.startswith(("| verified |", "| unfiltered |"))
    ]
    assert rows == [
        "| verified | 66.7 % | 25.3 % to 108.1 % | 0: 50.0 %, 1: 66.7 %, 2: 83.3 % |  |  |",
        "| unfiltered | 50.0 % | -21.7 % to 121.7 % | 0: 33.3 %, 1: 33.3 %, 2: 83.3 % "
        "| -16.7 | -58.1 to +24.7 |",
    ]
    assert "| seeds | 0, 1, 2 |" in readme
    assert "differ between seeds" not in readme


def test_runs_without_seeds_are_compared_problem_by_problem(made: Any) -> None:
    runs = {
        "cold-start": {"eval": made.eval([1, 0, 0, 0])},
        "rl": {"eval": made.eval([1, 1, 1, 0])},
    }
    runs["other"] = {"eval": made.eval([1, 1])}
    readme = made.cards(runs)["README.md"]
    gain = paired_difference([1, 0, 0, 0], [1, 1, 1, 0])
    assert f"| rl | +50.0 | {points(gain.low)} to {points(gain.high)} |" in readme
    assert "| other | \u2013 | other problems |" in readme
    assert "pass@1 against cold-start, points" in readme


def test_only_seeds_that_both_arms_have_are_compared(made: Any) -> None:
    runs = made.arms()
    del runs["unfiltered-0"]  # left are differences of -2 and 0 of 6 problems
    readme = made.cards(runs)["README.md"]
    assert "1: 33.3 %, 2: 83.3 % | -16.7 |" in readme
    for name in ("unfiltered-1", "unfiltered-2"):
        del runs[name]
    runs["other-9"] = {"sft": made.sft(9), "eval": made.eval([1, 0, 0, 0, 0, 0])}
    readme = made.cards(runs, out="again")["README.md"]
    assert "| other | 16.7 % | \u2013 | 9: 16.7 % | \u2013 | no common seed |" in readme


def test_one_seed_leaves_the_spread_unknown(made: Any) -> None:
    runs = {f"{arm}-7": {"sft": made.sft(7), "eval": made.eval(right)}
            for arm, right in (("a", [1, 0, 1]), ("b", [1, 1, 1]))}  # fmt: skip
    readme = made.cards(runs)["README.md"]
    gain = paired_difference([1, 0, 1], [1, 1, 1])
    between = f"{points(gain.low)} to {points(gain.high)}"
    assert f"| b | 100.0 % | \u2013 | 7: 100.0 % | +33.3 | {between} |" in readme
    assert "- How much results differ between seeds." in readme
