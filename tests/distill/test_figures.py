"""Tests of numbers in one spelling."""

import pytest

from dstools_distill.figures import SPELLED, in_figures


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("zero, one and twelve", "'0, '1 and '12"),
        ("thirteen of ninety-nine", "13 of 99"),
        ("twenty five", "25"),
        ("a hundred, five hundred and seven", "100, 507"),
        ("fifteen hundred sheep", "1500 sheep"),
        ("twelve thousand five hundred forty-two", "12542"),
        ("one million two hundred thousand and one", "1200001"),
        ("12 thousand and 1.5 million", "12000 and 1500000"),
        ("two and a half million", "2500000"),
        ("twenty-one and a half", "21 1/2"),
        ("a twenty-five-year-old", "a 25-year-old"),
        ("between twenty and thirty", "between 20 and 30"),
        ("thirty and one of its sides", "30 and '1 of its sides"),
        ("two three four", "'2 '3 '4"),
        ("nineteen ninety five", "19 95"),
        ("zero five", "'0 '5"),
        ("one third, two-thirds, three quarters, one half", "1/3, 2/3, 3/4, 1/2"),
        ("$0.50 or .5 or 1/2", "$1/2 or 1/2 or 1/2"),
        ("16.0, 2.50, 0.125, 3.140", "16, 2 1/2, 1/8, 3.140"),
        ("12,000.0, 12000.00 and 12000.500", "12,000, 12000 and 12000 1/2"),
        (r"\frac12 3\dfrac{3}{40}", r" 1/2  3 3/40 "),
    ],
)
def test_numbers_are_written_in_figures(text: str, figures: str) -> None:
    assert in_figures(text).replace(SPELLED, "'") == figures
    assert in_figures(in_figures(text)) == in_figures(text)


def test_a_larger_unit_after_a_smaller_one_is_of_another_number() -> None:
    assert in_figures("two thousand three million") == "2003 million"


@pytest.mark.parametrize(
    "text",
    [
        "hundreds of thousands, the hundred, several million",
        "the first third, a third person, half of it, a quarter",
        "the twenty-first and the thirty-second",
        "someone, twofold, often, tens, weight",
        r"\ten \two a_one",
        "12.000, 3.125, 1.2.3, 1.234.567, 10.",
        "word.5 and ...5",
        "5 hundredths",
        r"\frac{x}{2} \frac{1}{x}",
    ],
)
def test_what_is_not_certainly_a_number_is_left_alone(text: str) -> None:
    assert in_figures(text) == text
