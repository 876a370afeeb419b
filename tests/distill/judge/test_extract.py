"""Tests of extraction: the answer that a text settles on."""

import pytest

from dstools_distill.judge import remarks
from dstools_distill.judge.extract import Extracted, final_answer, last_boxed, stripped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("41", Extracted("41")),
        (r"so \boxed{\frac{1}{2}}.", Extracted(r"\frac{1}{2}")),
        (r"\boxed{1} and \boxed{2}", Extracted("", "several-answers", ("1", "2"))),
        (r"\boxed{1}. Wait, no.", Extracted("", "taken-back")),
        (r"I cannot determine the answer. A guess: \boxed{1}", Extracted("", "taken-back")),
        (r"We cannot divide by the first term. So \boxed{1}", Extracted("1")),
        (
            r"\boxed{1}. Wait, I missed a case. \boxed{2}",
            Extracted("", "several-answers", ("1", "2")),
        ),
        (r"\boxed{1}. No, that fails for 3. \boxed{2}", Extracted("2")),
        (
            r"\boxed{1}. On second thought, we need both: \boxed{2}",
            Extracted("", "several-answers", ("1", "2")),
        ),
        (
            r"The answer is 1. Perdón, me equivoqué. The answer is 2.",
            Extracted("", "several-answers", ("1", "2")),
        ),
        (r"If \boxed{1} were the answer, n would be even.", Extracted("", "taken-back")),
        ("**Answer**\n\n8", Extracted("8")),
        ("The answer is 42, since 6 * 7 = 42.", Extracted("42")),
        (
            "Three roots:\n\n1. x = 0\n2. x = 2",
            Extracted("", "several-answers", ("x = 0", "x = 2")),
        ),
        (
            "The solutions are:\n- x = 0\n- x = 2",
            Extracted("", "several-answers", ("x = 0", "x = 2")),
        ),
        ("Las soluciones son x = 6 y x = -1.", Extracted("", "no-answer")),
        ("| shoes | $5 |\n| **Total** | **$8** |", Extracted("$8")),
        ("> x = 3", Extracted("x = 3")),
        ("The diagonal is approximately 2.65 m.", Extracted("", "no-answer")),
        ("【答案】D", Extracted("D")),
        ("故 $f(x)$ 的最小值为 $-2$。", Extracted("-2")),
        ("The answer is $8$!", Extracted("8")),
        ("**Final answer:** The volume is **216**", Extracted("216")),
        ("The primes are 2, 3, and 5.", Extracted("2, 3, and 5")),
        ("The minimum is $-3$, attained at $x=1$.", Extracted("", "no-answer")),
        ("The minimum is $-3$.", Extracted("-3")),
        ("The point is $(0,1)$.", Extracted("(0,1)")),
        ("The area is 5 and the perimeter is 12.", Extracted("", "no-answer")),
        ("The capital is Paris.", Extracted("", "no-answer", ("Paris",))),
        ("The ratio is 3 to 2.", Extracted("", "no-answer")),
        ("The functions are $f(x)=0$ and $g(x)=1$.", Extracted("", "no-answer")),
        (r"-\boxed{1}", Extracted("", "part-of-formula")),
        (r"\boxed{1} million", Extracted("", "part-of-formula")),
        (r"$7 + \boxed{5} = 12$", Extracted("5")),
        ("\\boxed{41}\n\nMoment, es sind 42.", Extracted("", "taken-back")),
        ("\\boxed{41}\n\n抱歉，应为42。", Extracted("", "taken-back")),  # noqa: RUF001
        ("\\boxed{41}\n\nThe result above cannot be right.", Extracted("", "taken-back")),
        ("\\boxed{A}\n\nB is right as well.", Extracted("", "taken-back")),
        (r"\boxed{8}, attained when x=2 or x=-2.", Extracted("8")),
        ("\\boxed{9}\n\nCheck: 4 + 5 = 9.", Extracted("9")),
        ("\\boxed{9}\n\nCheck: 9 - 4 = 5, which matches.", Extracted("9")),
        ("\\boxed{9}\n\nCheck: 9 + 4 = 13, so it should be 8.", Extracted("", "taken-back")),
        ("\\boxed{9}\n\nWait, 9 + 1 = 10.", Extracted("", "taken-back")),
        ("\\boxed{9}\n\nNot 9 but 10.", Extracted("", "taken-back")),
        ("\\boxed{9}\n\nThere are 9 in which no two touch.", Extracted("9")),
        ("$\\boxed{9}$ です。$x=4$ または $x=5$ のとき最大です。", Extracted("9")),
        (r"$\boxed{\phantom{0}} - 5 = 4$ has $\boxed{9}$", Extracted("9")),
        (r"\boxed{9} or \boxed{10", Extracted("", "no-answer")),
        (r"\boxed{\boxed{9}}", Extracted("9")),
        (r"\boxed 9", Extracted("9")),
        ("\\boxed{9}\n\nNo two of them are equal.", Extracted("9")),
        (
            "\\boxed{9}\n\nA common mistake is to answer 62 by counting pairs.",
            Extracted("", "taken-back"),
        ),
        (r"$\boxed{\frac12}$ that is $\boxed{0.5}$", Extracted(r"\frac12")),
        ("The answer is **5**, not 6.", Extracted("5")),
        ("Assume that the answer is 12.", Extracted("", "no-answer")),
        ("Therefore, **Joe** is the tallest.", Extracted("Joe")),
        ("<|begin_of_solution|>The answer is 4.<|end_of_solution|>", Extracted("4")),
        (r"it is not \boxed{1}", Extracted("", "taken-back")),
        (r"\boxed{1", Extracted("", "no-answer")),
        (r"\boxed{}", Extracted("", "no-answer")),
        ("<answer>Paris</answer>", Extracted("Paris")),
        ("The answer is Paris. It is in France.", Extracted("", "taken-back")),
        ("Final answer: the answer is 4", Extracted("4")),
        ("**Answer:** 4\n\nAnswer: 5", Extracted("", "several-answers", ("4", "5"))),
        ("\\boxed{4}\n\nCorrected answer: \\boxed{5}", Extracted("5")),
        ("\\boxed{4}\n\n**Final answer: 1/5**", Extracted("", "taken-back")),
        ("\\boxed{B}\n\nRéponse finale : A", Extracted("", "taken-back")),
        (
            "The answer is 4. Richtig ist also \\boxed{5}.",
            Extracted("", "several-answers", ("4", "5")),
        ),
        (
            "答えは \\boxed{4} です。正しい答えは \\boxed{5} です。",
            Extracted("", "several-answers", ("4", "5")),
        ),
        ("\\boxed{4}. The wrong one is \\boxed{5}.", Extracted("", "taken-back")),
        ("\\boxed{4}, so the answer is \\boxed{5}.", Extracted("", "several-answers", ("4", "5"))),
        (r"\boxed{4}. Is the answer \boxed{5}?", Extracted("", "taken-back")),
        ("#### 4", Extracted("4")),
        ("He has 4 apples.", Extracted("4 apples")),
        ("It cannot be 5.", Extracted("", "no-answer")),
        ("The answer would be 5.", Extracted("5")),
        ("The answer is **42** apples.", Extracted("42 apples")),
        ("The answer is 2**3.", Extracted("2**3")),
        ("The volume is $36\\pi$ cubic inches.", Extracted("36\\pi")),
        ("We are given that x = 5.", Extracted("", "no-answer")),
        ("If x were 3, the answer would be 5.", Extracted("", "no-answer")),
        ("La risposta non è 5.", Extracted("", "no-answer")),
        ("Ответ — 5.", Extracted("5")),
        ("Wrong answer: 5", Extracted("", "no-answer")),
        (r"\boxed{5} 6", Extracted("", "taken-back")),
        ("\\boxed{5}, no: 6", Extracted("", "taken-back")),
        ("\\boxed{5}\n\n아니, 6입니다.", Extracted("", "taken-back")),
        ("\\boxed{Paris}\n\nActually, it is London.", Extracted("", "taken-back")),
        ("\\boxed{Paris}\n\nIt is the capital of France.", Extracted("", "taken-back")),
        ("\\boxed{5}\n\nMaybe 6?", Extracted("", "taken-back")),
        ("x must exceed 4", Extracted("", "no-answer")),
        ("I gave up after 3 tries.", Extracted("", "no-answer")),
        ("He has 4 apples and 5 pears.", Extracted("", "no-answer")),
        ("She pays $100 - $95 = $5.", Extracted("$5")),
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
        ("we get: 41", "41"),
        ("41 です。", "41"),
        ("41입니다.", "41"),
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
        ("They walked for 3 days, so 12 miles.\nIn total = 7 km", "7 km"),
        ("First 3.\nThen it has 4 legs.", "4 legs"),
        ("He walked.\nShe has 3 dozen, which is 36 eggs.", "36 eggs"),
        ("He walked.\nHe has 4 dozen eggs.", "4 dozen eggs"),
        ("He walked.\nHe has about 4 eggs.", ""),
        ("He walked.\nIs it 4?", ""),
        ("It grows.\nThe height is $h = 4$ today", "4"),
        ("It grows.\n$h$ grows and $w$ shrinks", ""),
    ],
)
def test_a_text_without_a_mark_settles_on_the_only_number_of_its_last_line(
    text: str, expected: str
) -> None:
    assert final_answer(text).text == expected


def test_a_text_that_repeats_itself_is_read_in_time_that_does_not_grow_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = list[str]()
    monkeypatch.setattr(remarks, "read", lambda text: reads.append(text))
    assert final_answer("the answer is 42. " * 1000).problem == "several-answers"
    assert final_answer("故选A" * 1000).problem != ""
    assert final_answer("The answer is 42. " * 1000).text == "42"
    assert len(reads) < 1000
