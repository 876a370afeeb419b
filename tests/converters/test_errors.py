"""Errors and findings: what users read, and names that cannot control a terminal."""

import errno
from pathlib import Path

import pytest

from dstools_converters.errors import (
    DstoolsError,
    Finding,
    counted,
    disk_errors,
    merged,
    printable,
    size,
)


def test_the_constructors_of_a_finding_set_its_level() -> None:
    arguments = ("shape", "a.safetensors: w", "is [1]", "save it again")
    assert Finding.error(*arguments) == Finding("error", *arguments)
    assert Finding.warning(*arguments) == Finding("warning", *arguments)
    assert Finding.note(*arguments) == Finding("note", *arguments)


def test_a_finding_without_a_hint_has_an_empty_one() -> None:
    assert Finding.note("index-missing", "index.json", "is not there").hint == ""


def test_a_raised_finding_names_the_place_and_keeps_the_hint() -> None:
    error = Finding.error("shape", "config.json", "is [1]", "save it again").raised()
    assert (str(error), error.hint) == ("config.json: is [1]", "save it again")


def test_many_findings_of_a_kind_are_one_that_counts_them() -> None:
    few = [Finding.error("shape", f"a: {n}", f"is [{n}]", "save it again") for n in range(8)]
    note = Finding.note("unknown-tensor", "a: x", "has no known role")
    assert merged([*few, note]) == [*few, note]
    many = [*few, note, Finding.error("shape", "b: 8", "is [8]", "save it again")]
    assert merged(many) == [
        Finding.error("shape", "a: 0", "is [0] (and 8 more, e.g. a: 1, a: 2)", "save it again"),
        note,
    ]
    assert merged([*many[:-1], Finding.error("shape", "b", "is [8]", "another hint")])[:8] == few


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("größe", "größe"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb", "a\\nb"),
        ("a\u202eb", "a\\u202eb"),  # turns the text after it around
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_a_name_is_escaped_and_cut(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_that_names_the_file(code: int) -> None:
    with pytest.raises(DstoolsError, match=r"^out/a: .+") as raised, disk_errors(Path("out/a")):
        raise OSError(code, "no room")
    assert raised.value.hint.startswith("free some space")


def test_any_other_failure_of_the_disk_passes_through() -> None:
    with pytest.raises(PermissionError), disk_errors(Path("out/a")):
        raise PermissionError(errno.EACCES, "denied")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5e9, "5 GB"), (1.3421e12, "1.342 TB"),
     (5e15, "5000 TB")],
)  # fmt: skip
def test_a_size_is_spelled_in_powers_of_a_thousand(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (4096, "4,096 rows")]
)
def test_one_thing_is_not_spelled_as_several(count: int, text: str) -> None:
    assert counted(count, "row") == text
