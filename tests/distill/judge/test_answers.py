"""Tests of comparison by answer type: hand-labelled pairs, and properties of all numbers."""

import json
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstools_distill.judge.answers import compare, looks_like
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Verify

TESTS = Path(__file__).parents[2]
PAIRS = TESTS / "data" / "verifier-pairs.jsonl"
CASES = TESTS / "cases" / "distill"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with closing(Judge(Verify(reasoning=False))) as made:
        yield made


def judged(judge: Judge, pair: dict[str, Any]) -> dict[str, Any]:
    record = {"raw": pair["answer"], "gold": pair["gold"], "answer_type": pair["answer_type"]}
    return judge.judge(record | {"prefilled_think": False, "finish_reason": "stop", "task": None})


def pairs(path: Path = PAIRS) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"answer_type": "auto"} | row for row in rows]


@pytest.mark.slow
def test_no_wrong_answer_of_the_labelled_pairs_is_accepted_and_99_of_100_verdicts_agree(
    judge: Judge,
) -> None:
    rows = pairs()
    accepted_rows = [judged(judge, row)["verdict"] == "correct" for row in rows]
    accepted = [row for row, is_right in zip(rows, accepted_rows, strict=True) if is_right]
    assert [row for row in accepted if not row["correct"]] == []
    agreed = sum(
        row["correct"] == is_right for row, is_right in zip(rows, accepted_rows, strict=True)
    )
    assert len(rows) >= 600
    assert agreed >= 0.99 * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["verifier-pairs", "guards"])
def test_of_other_peoples_pairs_and_those_that_differ_by_little_exactly_the_right_are_accepted(
    judge: Judge, name: str
) -> None:
    rows = pairs(CASES / f"{name}.jsonl")
    accepted = [judged(judge, row)["verdict"] == "correct" for row in rows]
    wanted = [row["verdict"] == "correct" for row in rows]
    assert [row for row, a, w in zip(rows, accepted, wanted, strict=True) if a != w] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        *[("pairs", 0.85), ("mixed", 0.85), ("unseen", 0.85), ("endings", 0.85)],
        *[("broad", 0.8), ("around", 0.4)],
    ],
)
def test_of_pairs_that_others_labelled_no_wrong_one_is_accepted(
    judge: Judge, name: str, least: float
) -> None:
    """Those of `around` are about the text around an answer, of which most is not known.

    A fifth of those of `broad` need what no rule knows: abbreviations, synonyms, what was asked.
    """
    rows = pairs(CASES / "variants" / f"{name}.jsonl")
    verdicts = [judged(judge, row)["verdict"] for row in rows]
    judgements = list(zip(rows, verdicts, strict=True))
    right = [(row, verdict) for row, verdict in judgements if row["verdict"] == "correct"]
    assert [row for row, v in judgements if v == "correct" != row["verdict"]] == []
    lost = [row for row, verdict in right if verdict != "correct"]
    assert len(lost) <= (1 - least) * len(right), lost
    denied = [row for row, verdict in right if verdict == "incorrect"]
    assert len(denied) <= 0.02 * len(right), denied


def test_a_text_with_the_words_of_the_gold_and_others_is_not_known_to_be_wrong() -> None:
    for text, verdict in (("solutions", "correct"), ("points", "unverifiable"), ("", "correct")):
        answer = rf"\boxed{{\text{{infinitely many {text}}}}}"
        assert compare(answer, "infinitely many", "auto", FixedReferee(None)).verdict == verdict
    answer = r"\boxed{\text{none}}"
    assert compare(answer, "infinitely many", "auto", FixedReferee(None)).verdict == "incorrect"


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        ("The first to prove it was Marie Curie.", "Marie Curie", "correct"),
        ("Two days on from Tuesday, it is a Thursday.", "Thursday", "correct"),
        ("Oui : la suite est croissante.", "Oui", "correct"),
        (r"\boxed{\text{DNE}}", "does not exist", "correct"),
        (r"\boxed{\text{does exist}}", "does not exist", "unverifiable"),
        ("The limit does not exist.", "DNE", "correct"),
        (r"\boxed{\emptyset}", "no solution", "correct"),
        ("There are no solutions.", r"\emptyset", "correct"),
        ("There is a solution.", r"\emptyset", "unverifiable"),
        ("There are no solutions other than 1.", "no solution", "unverifiable"),
        ("There are infinitely many solutions.", "infinitely many", "correct"),
        (r"\boxed{\ce{SO4^2-}}", r"\mathrm{SO_4^{2-}}", "correct"),
        (r"\boxed{\ce{SO4^-}}", r"\mathrm{SO_4^{2-}}", "unverifiable"),
        (r"\boxed{\text{Na}^+}", "Na⁺", "correct"),
        (r"\boxed{\ce{Ca(OH)2}}", r"\mathrm{Ca(OH)_2}", "correct"),
        (r"\boxed{\mathrm{CaOH_2}}", r"\mathrm{Ca(OH)_2}", "unverifiable"),
        ("A_B", "AB", "unverifiable"),
        ("H₂SO₄", "H2SO4", "correct"),
        (r"\boxed{\mathrm{H_2SO_4}}", "H2SO4", "correct"),
        (r"\boxed{\mathrm{H_2SO_3}}", "H2SO4", "unverifiable"),
        ("『源氏物語』の作者は紫式部です。", "紫式部", "unverifiable"),
        (r"The roots are $\boxed{3}$ and $\boxed{5}$.", "5, 3", "correct"),
        (r"A root is $\boxed{3}$, another $\boxed{5}$.", "5", "unverifiable"),
        (r"A root is $\boxed{3}$, another $\boxed{5}$.", "4", "incorrect"),
        ("Roots:\n1. x = 3\n2. x = 5", "3, 5", "correct"),
        ("True", "Yes", "correct"),
        ("False", "Yes", "incorrect"),
        ("the 4th of July, 1776", "July 4, 1776", "unverifiable"),  # it is only not read
        ("July 1776", "July 1, 1776", "unverifiable"),
        ("2:30", "14:30", "unverifiable"),
        ("5 May 2024 10:00", "6 May 2024 10:00", "unverifiable"),
        ("4:51 p.m.", "16:51", "correct"),
        ("2 to 3", "2:3", "correct"),
        ("2 to 3", r"\frac{2}{3}", "unverifiable"),  # it may be a range
        ("41:1", "41", "unverifiable"),
        ("C and A", "AC", "correct"),
        ("(A) 3 (B) 4", "A", "unverifiable"),
        ("A", "(A) 3 (B) 4", "unverifiable"),
        ("Option B is correct.", "B", "correct"),
        ("Option B is not correct.", "B", "unverifiable"),
        ("The statement is false.", "False", "correct"),
        ("The statement is not false.", "False", "unverifiable"),
        ("FACE", "CAFE", "incorrect"),  # words, no letters
        ("B) 3", "B) 4", "unverifiable"),
        (r"6\sqrt{3}", r"\textbf{(D) } 6\sqrt{3}", "correct"),
    ],
)
def test_words_and_several_answers_are_compared_as_they_are_meant(
    text: str, gold: str, verdict: str
) -> None:
    assert compare(text, gold, "auto", FixedReferee(None)).verdict == verdict


@pytest.mark.slow
def test_no_answer_is_right_for_a_gold_with_another_digit(judge: Judge) -> None:
    """Raise each digit of each gold by one; not of formulas for math-verify, which is slow."""
    tried = 0
    for row in pairs():
        if not row["correct"] or judged(judge, row)["checkers"] != ["exact"]:
            continue
        for place, char in enumerate(row["gold"]):
            if char.isdigit() and char.isascii():
                other = row["gold"][:place] + str((int(char) + 1) % 10) + row["gold"][place + 1 :]
                tried += 1
                assert judged(judge, row | {"gold": other})["verdict"] != "correct", (row, other)
    assert tried > 500


class FixedReferee(Referee):
    """A referee with a fixed answer."""

    def __init__(self, verdict: bool | str | None) -> None:
        super().__init__(1.0)
        self.verdict = verdict

    def math(self, answer: str, gold: str) -> bool | str | None:
        return self.verdict


def rational(value: Fraction) -> st.SearchStrategy[str]:
    """Spellings of a number."""
    above, below = value.numerator, value.denominator
    ways = [
        f"{above}/{below}",
        rf"\frac{{{above}}}{{{below}}}",
        rf"\dfrac{{{3 * above}}}{{{3 * below}}}",
    ]
    ways.append(rf"\boxed{{{-above}/{-below}}}")
    if (100 % below) == 0:
        ways += [f"{float(value):.2f}", rf"{above * 100 // below}\%"]
    if below == 1:
        ways += [f"{above}", f"The answer is ${above}$.", rf"\boxed{{x = {above}}}", f"{above:,}"]
    return st.sampled_from(ways)


numbers = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=100)


@settings(max_examples=200, deadline=None)
@given(st.data(), numbers, numbers)
def test_a_number_is_correct_in_any_spelling_exactly_if_the_value_is_equal(
    data: st.DataObject, gold: Fraction, other: Fraction
) -> None:
    referee = FixedReferee("asked")  # rational numbers decide alone
    for value in (gold, other):
        text = data.draw(rational(value))
        ruling = compare(text, str(gold), "number", referee)
        assert ruling.reason != "asked"
        is_percent = text.endswith("%") and value * 100 == gold  # 50% may be 50, too
        if not is_percent:
            is_right = ruling.verdict == "correct"
            assert is_right == (value == gold) or ruling.reason == "not-comparable", text


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("41", "integer"),
        ("-7", "integer"),
        ("041", "math"),
        ("4.1", "math"),
        ("C", "choice"),
        ("(C)", "choice"),
        (r"\text{(C)}", "choice"),
        ("Paris", "string"),
        (r"\text{Paris}", "string"),
        ("x", "math"),
        ("xy", "math"),
        ("no", "string"),
        ("infinity", "math"),
        ("2:30", "string"),
        ("2:30:15 p.m.", "string"),
        ("1:2:30", "math"),
        ("3:5", "math"),
        ("0xff", "math"),
        ("March 5, 2024", "string"),
        (r"\frac12", "math"),
        ("1,2", "math"),
    ],
)
def test_a_gold_without_a_type_is_judged_by_its_looks(gold: str, kind: str) -> None:
    assert looks_like(gold) == kind


@pytest.mark.parametrize(
    ("answer", "second", "verdict", "reason"),
    [
        (r"2\sqrt3", True, "correct", "equal"),
        (r"3\sqrt2", False, "incorrect", r"differs: 3\sqrt2"),
        (r"2\sqrt3", "timeout", "unverifiable", "timeout"),
        (r"2\sqrt3", None, "unverifiable", "math-verify-cannot-read"),
    ],
)
def test_a_formula_is_what_the_referee_finds_it_to_be(
    answer: str, second: bool | str | None, verdict: str, reason: str
) -> None:
    ruling = compare(answer, r"\sqrt{12}", "math", FixedReferee(second))
    assert (ruling.verdict, ruling.reason) == (verdict, reason)
    assert ruling.checkers == ("math-verify",)


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "verdict"),
    [
        ("(1,2)", r"\{2,1\}", "set", "correct"),  # any brackets hold a set
        ("3,1,2", "1,2,3", "set", "correct"),
        (r"\{(1,2)\}", r"\{(2,1)\}", "set", "incorrect"),
        ("1,2", "(2,1)", "tuple", "incorrect"),  # any brackets hold a tuple
    ],
)
def test_the_order_of_items_counts_in_a_tuple_and_not_in_a_set(
    answer: str, gold: str, kind: Any, verdict: str
) -> None:
    assert compare(answer, gold, kind, FixedReferee("asked")).verdict == verdict
