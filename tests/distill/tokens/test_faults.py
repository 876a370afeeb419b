"""The codes are those of the documents, and messages show the place that matters."""

import re
from pathlib import Path

import pytest

from dstools_converters.errors import Finding
from dstools_distill.tokens.faults import FAULTS, differing, finding, shown

DOCUMENTS = Path(__file__).parents[3] / "docs" / "distillation.md"


def test_the_documents_list_every_code_once_with_its_level() -> None:
    table = DOCUMENTS.read_text(encoding="utf-8").partition("| code |")[2]
    rows = [row.split("|") for row in table.partition("\n\n")[0].splitlines()[2:]]
    named = [(code, row[2].strip()) for row in rows for code in re.findall(r"`(.*?)`", row[1])]
    assert sorted(named) == sorted((code, level) for level in FAULTS for code in FAULTS[level])


def test_a_finding_has_the_level_and_the_hint_of_its_code_or_a_hint_of_its_own() -> None:
    hint = "use flash attention"
    assert finding("packing-attention", "a", "b") == Finding.warning(
        "packing-attention", "a", "b", hint
    )
    assert finding("truncated", "a", "b", "c") == Finding.error("truncated", "a", "b", "c")
    assert finding("not-read", "a", "b") == Finding.note("not-read", "a", "b")


def test_two_texts_are_shown_where_they_first_differ() -> None:
    # 30 characters before the place
    text, other = "a" * 40 + "b", "a" * 40 + "c"
    said = f"...{'a' * 30 + 'b'!r} is in the row, but serving shows ...{'a' * 30 + 'c'!r}"
    assert differing(text, other, "serving shows") == said
    assert differing("a", "ab", "it is") == "'a' is in the row, but it is 'ab'"


@pytest.mark.parametrize(
    ("at", "quoted"),
    [
        (0, f"{'a' * 50 + 'b' * 10!r}..."),
        (50, f"...{'a' * 30 + 'b' * 30!r}..."),
        (99, f"...{'b' * 31!r}"),
        (999, f"...{'b' * 30!r}"),
    ],
)
def test_sixty_characters_around_a_place_are_shown(at: int, quoted: str) -> None:
    assert shown("a" * 50 + "b" * 50, at) == quoted


def test_a_short_text_is_shown_whole_and_escaped() -> None:
    assert shown("a\n'b'\t") == "\"a\\n'b'\\t\""
