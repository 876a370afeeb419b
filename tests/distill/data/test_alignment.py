"""Tests of the comparison of a question with a prompt, word by word."""

import numpy as np
import pytest

from dstools_distill.data.alignment import Words, repeated, words_of
from dstools_distill.data.ngrams import hashes_of, tokens


def words(text: str) -> Words:
    return words_of(tokens(text))


def compared(question: str, prompt: str) -> tuple[int, int, float] | None:
    """What is repeated, where every word of the prompt may be part of a pair."""
    asked, there = words(question), words(prompt)
    return repeated(asked, there, np.flatnonzero(np.isin(there.hashes, asked.hashes)))


def test_words_are_neither_letters_nor_signs_and_numbers_have_the_sign_after_them() -> None:
    found = words("Is x = 3 + 4 or 12?")
    assert found.hashes.tolist() == hashes_of(["is", "3", "4", "or", "12"]).tolist()
    assert found.numbers.tolist() == [False, True, True, False, True]
    assert found.signed[found.numbers].tolist() == hashes_of(["3+", "4", "12"]).tolist()


BOATS = "On Monday 12 boats of the red fleet leave the harbour and 7 of them return before noon"


def test_a_copy_is_told_with_its_place_and_share() -> None:
    assert compared(BOATS, f"Now think: {BOATS}. How many do not?") == (2, 20, 1.0)
    assert compared(BOATS, f"{'lorem ' * 40}{BOATS}") == (40, 58, 1.0)
    other = BOATS.replace("red", "blue").replace("noon", "night")
    assert compared(BOATS, other) == (0, 17, 16 / 18)


@pytest.mark.parametrize(
    ("old", "new", "is_found"),
    [
        ("12 boats", "lorem boats", True),  # a number is missing
        (
            "12 boats of the red fleet leave the harbour and 7",
            "lorem boats of the red fleet leave the harbour and ipsum",
            False,  # no number is left
        ),
        ("12 boats", "13 boats", False),
        ("12 boats", "7 boats", False),  # a number of the question in the place of another
        ("7 of them", "12 of them", False),
        ("12 boats of the", "7 boats of the", False),
        ("leave the harbour and 7", "leave the harbour in 5 days and 7", False),
        ("On Monday 12", "Problem 9. On Monday 12", True),  # before the question
        ("On Monday 12", "Problem 9. In lorem 12", True),
        ("before noon", "before noon? Think for 20 minutes", True),
        ("the red fleet", "the red fleet (12 in all)", True),
        ("leave the harbour", f"leave {'lorem ' * 10} the harbour", False),  # all over the prompt
        ("On Monday 12 boats of", "amet dolor 12 sit of", True),
        ("boats of the red fleet leave the harbour", "a b c d e f g h tempor sit magna", False),
    ],
)
def test_other_numbers_make_another_problem(old: str, new: str, is_found: bool) -> None:
    assert old in BOATS
    assert bool(compared(BOATS, BOATS.replace(old, new))) == is_found


def test_of_a_question_that_only_words_tell_from_others_a_fifth_may_be_replaced() -> None:
    asked = "nearly all boats of the northern fleet return before the next storm"  # 12 words
    assert compared(asked, asked.replace("boats", "lorem").replace("next", "ipsum")) is not None
    assert compared(asked, asked.replace("nearly all boats", "lorem ipsum amet")) is None
    with_number = asked.replace("all boats", "9 boats")  # may have three others
    assert compared(with_number, with_number.replace("northern fleet return", "amet sit dolor"))


def test_a_number_that_is_missing_has_another_word_in_its_place() -> None:
    asked = "12 multiples of 3 and 7 and 9 are below the number 500"
    assert compared(asked, asked.replace("7", "lorem")) is not None
    assert compared(asked, asked.replace("and 7 ", "")) is None
    assert compared(asked, asked.replace("12 multiples", "lorem multiples")) is not None
    assert compared(asked, asked.replace("12 multiples", "13 multiples")) is None  # in front of all
    assert compared(asked, asked.replace("500", "600")) is None


def test_letters_of_formulas_do_not_stand_for_words() -> None:
    asked = "In the form $a + b + c + d + e + f + g$ find 5 sums below the next square"
    other = asked.replace("In the form", "lorem ipsum amet").replace("next", "sit")
    assert compared(asked, other) is not None  # 7 of 11 words
    assert compared(asked, other.replace("the", "dolor")) is None  # 6


def test_small_spelled_numbers_count_as_words_and_equal_their_figures() -> None:
    spelled = BOATS.replace("7", "seven")
    for asked, there in ((BOATS, spelled), (spelled, BOATS), (spelled, spelled)):
        assert compared(asked, f"Tip 3: {there}") == (2, 20, 1.0)
    assert compared(BOATS, BOATS.replace("12", "twelve").replace("7", "some")) is not None
    assert compared(BOATS, BOATS.replace("7", "eight")) is None
    assert compared(spelled, spelled.replace("seven", "lorem")) is not None  # a word like any other
    assert compared(spelled, spelled.replace("seven", "8")) is None
    assert compared(spelled, spelled.replace("seven", "eighteen")) is None
    first, second = "In four hours many boats leave the harbour", "in 7 hours they return at night"
    swapped = f"{second.replace('7', 'seven')}. {first.replace('four', '4')}."
    assert compared(f"{first}. {second}.", swapped) is not None


def test_a_number_is_kept_rather_than_another_word() -> None:
    asked = "For which numbers between 18 and 74 is the square plus 50 a multiple of 44?"
    framed = f"{asked.replace('of 44?', 'lorem 44?')} Show all of your work"
    assert compared(asked, framed) is not None  # "of" comes after 44


def test_sentences_may_change_places_but_not_numbers() -> None:
    first, second = "In 12 hours many boats leave the harbour", "in 7 hours they return before noon"
    asked = f"{first}. {second}."
    assert compared(asked, f"{second}. {first}.") is not None
    assert compared(asked, asked.replace("12", "x").replace("7", "12").replace("x", "7")) is None
    first = "Of 5 - 3 dozen boats in the harbour nearly none leave"
    assert compared(f"{first}. {second}.", f"{second}. {first}.") is not None
    assert compared(f"{first}. {second}.", f"{second}. {first.replace('-', '+')}.") is None


@pytest.mark.parametrize(
    ("question", "prompt", "is_found"),
    [
        ("Calculate the sum 3 + 9 - 5", "lorem the sum 3 + 9 - 5", True),
        ("Calculate the sum 3 + 9 - 5", "Calculate the sum 3 + 9 + 5", False),
        ("Calculate the sum 3 + 9 - 5", "Calculate the sum 3 - 5", False),  # none in its place
        ("Calculate the sum 3 + 9 - 5", "Calculate the sum 3 + 9 - 5 - 8", False),
        ("Calculate the sum 3 + 9 - 5", "Calculate the sum 9 + 3 - 5", False),
        ("Sort the numbers 3, 9, 5, 12", "Sort the numbers 3, 9, 5, 12, 8, 7", False),
        ("3, 9, 5, 12 sorted by size", "7, 3, 9, 5, 12 sorted by size", False),
        ("Add 1, 2, 3, 4 to 5, 6, 7, 8", "Add 5, 6, 7, 8 to 1, 2, 3, 4", False),
        ("Evaluate 1 + 2 + 3 + 4 + 5", "What is 1 + 2 + 3 + 4 + 5", True),  # 5 of 6 words
        ("Now evaluate 1 + 2 + 3 + 4 + 5", "Insert a minus into 1 + 2 + 3 + 4 + 5", False),
        ("Now evaluate 1 + 2 + 3 + 4 + 5", "Insert a minus now in 1 + 2 + 3 + 4 + 5", True),
        ("Solve 9 x + 2 = 11 for x", "A bag of 9 red, 2 blue, and 5 or 6 green: take 11", False),
    ],
)
def test_a_formula_has_its_numbers_in_order(question: str, prompt: str, is_found: bool) -> None:
    assert bool(compared(question, prompt)) == is_found
