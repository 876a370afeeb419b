"""Tests of settings: what another run had is named."""

import pytest

from dstools_converters.settings import difference


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (
            {"tool": "dstools 1", "--rows": False, "--dtype": "f16"},
            "by dstools 1 and with --dtype f16",
        ),
        ({"source": "ab", "--rows": True}, "from another source and with --rows"),
        ({"--dtype": ""}, "without --dtype"),
        ({"--dtype": "f32"}, ""),
        ("a line", ""),
    ],
)
def test_what_another_run_has_is_said_in_words(begun: object, words: str) -> None:
    wanted = {"tool": "dstools 2", "source": "cd", "--rows": False, "--dtype": "f32"}
    assert difference(begun, wanted) == words


def test_an_option_that_was_not_given_is_named_as_well() -> None:
    assert difference({"--rows": False}, {"--rows": True}) == "without --rows"
