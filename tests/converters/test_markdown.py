"""Tests of text and tables in Markdown."""

import pytest

from dstools_converters.markdown import (
    BEGIN,
    END,
    RECORD,
    generated,
    recorded,
    table,
    text,
    with_record,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<b>*x*|[a](http://b)", r"&lt;b>\*x\*\|\[a\](http&#58;//b)"),
        ("snake_case stays, _this_ does not", r"snake_case stays, \_this\_ does not"),
        ("a & b\n# c", r"a &amp; b\\n\# c"),
    ],
)
def test_names_of_strangers_stay_text(name: str, shown: str) -> None:
    assert text(name) == shown


def test_the_last_columns_are_aligned_right() -> None:
    assert (
        table(("a", "b"), [("x|y", "2")], numeric=1) == "| a | b |\n| --- | ---: |\n| x\\|y | 2 |"
    )


def test_a_column_without_a_cell_is_left_out() -> None:
    rows = [("1", "", "2"), ("3", "", "4")]
    assert table(("a", "b", "c"), iter(rows), numeric=1) == (
        "| a | c |\n| --- | ---: |\n| 1 | 2 |\n| 3 | 4 |"
    )


def test_a_table_without_rows_is_empty() -> None:
    assert table(("a", "b"), []) == ""


def test_a_generated_part_is_between_comments_that_no_page_shows() -> None:
    assert generated("\n# x\n\n") == f"{BEGIN}\n\n# x\n\n{END}\n"
    for marker in (BEGIN, END):
        assert marker.startswith("<!-- ")
        assert marker.endswith(" -->")
        assert "--" not in marker[4:-3]


def test_a_generated_part_records_its_front_matter_in_a_comment() -> None:
    keys = {"tags": ["a--b", "-->", "--!>", "ü\u2028"], "license": "mit", "n": [1, 1.5, True, None]}
    part = generated("# x", keys)
    assert recorded(part) == keys
    begin, record, *rest = part.split("\n")
    assert begin == BEGIN
    assert "--" not in record[4:-3]
    assert "\n".join(rest) == f"\n# x\n\n{END}\n"
    assert generated("# x", dict(reversed(keys.items()))) == part, "whatever the order of keys"
    assert recorded(with_record(part, {"license": "other"})) == {"license": "other"}
    assert len(RECORD.findall(with_record(part, {"license": "other"}))) == 1
    assert with_record(part, {}) == generated("# x")
    assert with_record(part.replace("\n", "\r\n"), keys).count(BEGIN) == 1


@pytest.mark.parametrize("record", ["", "{}", "{a}", "[1]", '{"a": 1', "{" * 100_000 + "}"])
def test_a_record_that_cannot_be_read_names_no_key(record: str) -> None:
    part = f"{BEGIN}\n<!-- dstools: front matter {record} -->\n\n# x\n\n{END}\n"
    assert recorded(part) == {}
