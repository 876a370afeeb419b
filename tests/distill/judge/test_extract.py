"""Tests of extraction: the answer that a text settles on."""

import pytest

from dstools_distill.judge.extract import Extracted, final_answer, last_boxed, stripped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("41", Extracted("41")),
        (r"so \boxed{\frac{1}{2}}.", Extracted(r"\frac{1}{2}")),
        (r"\boxed{1} and \boxed{2}", Extracted("", "several-answers", ("1", "2"))),
        (r"\boxed{1}. Wait, no.", Extracted("", "taken-back")),
        (r"it is not \boxed{1}", Extracted("", "taken-back")),
        (r"\boxed{1", Extracted("", "no-answer")),
        (r"\boxed{}", Extracted("", "no-answer")),
        ("<answer>Paris</answer>", Extracted("Paris")),
        ("The answer is Paris. It is in France.", Extracted("Paris")),
        ("Final answer: the answer is 4", Extracted("4")),
        ("**Answer:** 4\n\nAnswer: 5", Extracted("", "several-answers", ("4", "5"))),
        ("#### 4", Extracted("4")),
        ("He has 4 apples.", Extracted("4")),
        ("He has 4 apples and 5 pears.", Extracted("", "no-answer")),
        ("She pays $100 - $95 = $5.", Extracted("5")),
        ("The area is $25\\pi$ square units.", Extracted("25\\pi")),
        ("", Extracted("", "no-answer")),
    ],
)
def test_a_text_settles_on_one_answer_or_on_none(text: str, expected: Extracted) -> None:
    assert final_answer(text) == expected


def test_the_last_box_counts_and_braces_may_nest() -> None:
    assert last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}} so") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{1") is None
    assert last_boxed("none") is None
    assert last_boxed(r"\boxed{ }") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  **41**. ", "41"),
        ("`x`", "x"),
        ("$x$", "x"),
        (r"\(x\)", "x"),
        ("$$x$$", "x"),
        ("so x", "x"),
        ("Thus, 41", "41"),
        ("approximately: 41", "41"),
        (r"\text{Total cost} = 41", "41"),
        ("Total cost = 41", "41"),
        ("x = 41", "x = 41"),  # a variable is part of the answer
        ("$5", "$5"),  # money
        ("(1, 2)", "(1, 2)"),  # a tuple
        ("1..", "1.."),
    ],
)
def test_an_answer_is_stripped_of_markup_and_lead_in_only(text: str, expected: str) -> None:
    assert stripped(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("They walked for 3 days, so 12 miles.\nIn total = 7 km", "7"),
        ("First 3.\nThen it has 4 legs.", "4"),
        ("He walked.\nHe has 4 dozen eggs.", ""),  # a dozen changes the number
        ("He walked.\nHe has about 4 eggs.", ""),
        ("He walked.\nIs it 4?", ""),
        ("It grows.\nThe height is $h = 4$ today", "h = 4"),
        ("It grows.\n$h$ grows and $w$ shrinks", ""),
    ],
)
def test_a_text_without_a_mark_settles_on_the_only_number_of_its_last_line(
    text: str, expected: str
) -> None:
    assert final_answer(text).text == expected
