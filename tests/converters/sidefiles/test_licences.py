"""Identifiers of licences: those of the Hub, the usual names of them, and free texts."""

from pathlib import Path

import pytest

from dstools_converters.sidefiles.licences import LICENCES, identifier, licence_name

CASES = Path(__file__).parents[2] / "cases" / "push"


def test_the_list_is_that_of_the_hub() -> None:
    assert set((CASES / "license_ids.txt").read_text().split()) == LICENCES


def test_each_identifier_stands_for_itself() -> None:
    assert {identifier(name) for name in LICENCES} == LICENCES
    assert all(identifier(name) == name for name in LICENCES)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("MIT", "mit"),
        ("MIT License", "mit"),
        ("the MIT licence", "mit"),
        ("Apache 2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("GPLv3", "gpl-3.0"),
        ("gpl-3.0-or-later", "gpl-3.0"),
        ("LGPL-2.1-only", "lgpl-2.1"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("Llama 3.1", "llama3.1"),
        ("llama3.9", None),
        ("apache-3.0", None),
        ("deepseek", None),
        ("MIT, but not on Sundays", None),
        ("", None),
    ],
)
def test_a_usual_name_stands_for_its_identifier_and_no_other_does(
    name: str, wanted: str | None
) -> None:
    assert identifier(name) == wanted


@pytest.mark.parametrize(
    ("licence", "name"),
    [("My own: terms", "my-own-terms"), ("DeepSeek v1.1", "deepseek-v1.1"), ("…", "unnamed")],
)
def test_a_free_text_becomes_a_name_of_one_word(licence: str, name: str) -> None:
    assert licence_name(licence) == name
    assert licence_name(name) == name
