"""YAML of a card: what both generations of readers take for the same, and what is written."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dstools.hub.yamltext import dump, load
from dstools_converters.errors import DstoolsError


def test_a_document_is_read_with_its_types() -> None:
    text = "a: mit\nb: [1, 2.5, true, null]\nc: 2026-11-28\nd:\n- 'no'\n"
    value = load(text, "x")
    assert value["a"] == "mit"
    assert value["b"] == [1, 2.5, True, None]
    assert str(value["c"]) == "2026-11-28"
    assert value["d"] == ["no"]


@pytest.mark.parametrize("word", ["1e3", "12E5", "1.", "0189", "-4e-1", "no", "on", "1:30", "~"])
def test_a_word_that_is_not_text_in_one_version_of_yaml_is_not_text_here(word: str) -> None:
    assert not isinstance(load(word, "x"), str)
    assert load(dump([word]), "x") == [word]
    assert dump([word]) == f"- '{word}'\n"


@pytest.mark.parametrize("word", ["mit", "apache-2.0", "org/name", "e5", "v1.0", "text-generation"])
def test_an_ordinary_word_is_written_without_quotes(word: str) -> None:
    assert dump({"a": word}) == f"a: {word}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a: 1\nb: 2\na: 3\n", "x: line 12: a is given twice; remove one of them", "correct"),
        ("a:\n  b: 1\n  b: 2\n", "x: line 12: b is given twice; remove one of them", "correct"),
        ("a: &l mit\nb: *l\n", "x: line 11: an alias (*name); write it out", "correct"),
        ("a: &l [*l]\n", "x: line 10: an alias (*name); write it out", "correct"),
        ("<<: {a: 1}\nb: 2\n", "x: line 10: a merge key (<<); write its keys out", "correct"),
        ("a:\n\t- b\n", "x: line 11: found character '\\t' that cannot start any token", "spaces"),
        ("a: [1\n", "x: line 11: expected ',' or ']'", "correct"),
        ("a: !!python/object/apply:os.system [ls]\n", "x: line 10: could not determine", "correct"),
        ("a: !!binary aGk=\n", "x: line 10: could not determine a constructor", "correct"),
        ("a: !!set {b}\n", "x: line 10: could not determine a constructor", "correct"),
        ("? [a, b]\n: 1\n", "x: line 10: found unhashable key", "correct"),
        ("a: 1\n---\nb: 2\n", "x: line 11: but found another document", "correct"),
        ("a: 2026-13-45\n", "x: is not valid YAML: month must be in 1..12", "correct"),
        (f"a: {'9' * 5000}\n", "x: is not valid YAML: Exceeds the limit", "correct"),
        ("a: \x01\n", "x: is not valid YAML: unacceptable character #x0001", "correct"),
        ("[" * 5000, "x: is nested too deeply", "write it flat"),
        ("{" * 5000, "x: is nested too deeply", "write it flat"),
        ("a: 1\n" * 60_000, "x: 300,000 characters of YAML, more than 262,144", "move"),
    ],
)
def test_faulty_yaml_is_refused_with_its_line(text: str, message: str, hint: str) -> None:
    with pytest.raises(DstoolsError) as error:
        load(text, "x", first_line=10)
    assert str(error.value).startswith(message)
    assert hint in error.value.hint
    assert "\n" not in str(error.value)


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    with pytest.raises(DstoolsError, match="line 2: an alias"):
        load("\n".join(lines), "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_reads_as_the_same_here_and_in_plain_pyyaml(value: Any) -> None:
    written = dump(value)
    assert load(written, "x") == value
    assert yaml.safe_load(written) == value
    assert dump(value) == written


def test_one_list_twice_is_written_twice() -> None:
    tags = ["fp8"]
    assert dump({"a": tags, "b": tags}) == "a:\n- fp8\nb:\n- fp8\n"
