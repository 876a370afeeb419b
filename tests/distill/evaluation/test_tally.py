"""Tests of the figures of one model, from answers written down here."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dstools_distill import records
from dstools_distill.evaluation.statistics import maj_at_k, paired_difference, share
from dstools_distill.evaluation.tally import as_json, difference, language_mix, tally


def answer(
    problem: str, vote: str | None, verdict: str = "incorrect", reason: str = "differs", **more: Any
) -> records.Record:
    return {
        "id": problem,
        "raw": "<think>1+1</think>2",
        "prefilled_think": False,
        "usage": {"completion_tokens": 10},
        "verdict": verdict,
        "verdict_reason": reason,
        "lenient": verdict == "correct",
        "vote": vote,
    } | more


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Two problems, four answers each: two right ones in two spellings, and one only in passing.

    A fourth answer to b cannot be judged.
    """
    path = tmp_path / "answers.jsonl"
    rows = [
        answer("a", "1/2", "correct", "equal"),
        answer("a", "0.5", "correct", "equal"),
        answer("a", "3"),
        answer("a", "3"),
        answer("b", "7", usage={"completion_tokens": 30}),
        answer("b", None, reason="unfinished: length", lenient=True),
        answer("b", None, reason="think-block", raw="Die Zahl und das Ergebnis: 9"),
        answer("b", "8", "unverifiable", "disagree: numeric, math-verify"),
    ]
    records.write(path, rows)
    return path


def test_the_figures_of_two_problems_by_hand(answers: Path) -> None:
    figures, scores = tally(answers, (1, 4))
    assert scores == {"a": (2, 4), "b": (0, 3)}
    assert (figures["problems"], figures["answers"]) == (2, 8)
    assert figures["pass@1"] == as_json(share([0.5, 0.0], 7))
    assert figures["lenient"] == as_json(share([0.5, 1 / 3], 7))
    assert figures["pass@k"]["1"] == figures["pass@1"]
    # of a alone, as b has three judged answers
    assert figures["pass@k"]["4"]["value"] == 1.0
    # of a's four: two for the right answer, two for 3
    assert figures["maj@k"]["4"]["value"] == maj_at_k(2, [2], 0, 4) == 0.5
    assert figures["unverifiable"] == 1 / 8
    assert (figures["truncated"], figures["not_well_formed"]) == (1 / 8, 1 / 8)
    assert figures["mean_tokens"] == 12.5
    assert figures["reasons"] == {
        "correct: equal": 2,
        "incorrect: differs": 3,
        "incorrect: think-block": 1,
        "incorrect: unfinished": 1,
        "unverifiable: disagree": 1,
    }
    assert figures["language_mix"] == {"de": 1.0}


def test_where_nobody_can_judge_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    records.write(path, [answer("a", "1", "unverifiable", "gold-not-read")])
    figures, scores = tally(path, (1,))
    assert figures["pass@1"] == figures["pass@k"]["1"] == {"value": 0.0, "low": 0.0, "high": 1.0}
    assert (figures["problems"], figures["unverifiable"], scores) == (1, 1.0, {"a": (0, 0)})


def test_a_difference_is_over_the_problems_that_both_have_judged_answers_to() -> None:
    first = {"a": (1, 2), "b": (0, 0), "c": (1, 1)}
    last = {"a": (2, 2), "b": (1, 1), "c": (1, 4)}
    assert difference(first, last) == paired_difference([0.5, 1.0], [1.0, 0.25])
    assert difference({"a": (0, 0)}, {"a": (1, 1)}) is None


def test_languages_are_counted_by_word() -> None:
    text = "So we have the sum.\nWir haben die Summe und das\n你好 12 + 3\n" + "\u0434\u0438"
    assert language_mix(text) == Counter(en=5, de=6, zh=2, ru=1)


def test_words_of_no_language_in_particular_are_latin() -> None:
    assert language_mix("Pythagoras, Euler\nque") == Counter(
        latin=3
    )  # `que` is French and Portuguese


def test_formulas_and_code_are_no_words() -> None:
    assert language_mix(r"$the sum$ \[of the\] `for x in y` 12+5|2+5+0=07") == Counter()


def test_a_script_without_a_list_is_other() -> None:
    assert language_mix("გამარჯობა") == Counter(other=1)
