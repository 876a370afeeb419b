"""Tests of lists, numbers and settings of a card."""

import pytest

from dstools_distill.cards.markdown import between, bullets, counts, flat, percent, points, shown


def test_settings_become_rows_of_dotted_names() -> None:
    rows = flat({"a": {"b": 1000, "c": None}, "d": [1, 2.5], "e": "", "f": False, "g": "/h/i"})
    assert rows == [("a.b", "1,000"), ("d", "1, 2.5"), ("f", "no"), ("g", "i")]


def test_shares_have_a_unit_and_differences_a_sign() -> None:
    assert (percent(0.6349), points(0.105), points(-0.01)) == ("63.5 %", "+10.5", "-1.0")
    assert between(0.5, 0.699) == "50.0 % to 69.9 %"
    assert between(-0.031, 0.12, points) == "-3.1 to +12.0"


def test_counts_of_nothing_are_left_out() -> None:
    assert counts({"duplicate": 20_000, "limit": 0, "empty": 3}) == "20,000 duplicate, 3 empty"


def test_lines_become_bullets() -> None:
    assert bullets(["a", "b"]) == "- a\n- b"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("/home/me/model/", "model"), ("~/model", "model"), ("../a/b", "b"), ("org/name", "org/name")],
)
def test_folders_of_a_machine_are_not_shown(name: str, expected: str) -> None:
    assert shown(name) == expected
