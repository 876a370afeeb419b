"""Tables become dataclasses; what does not fit is named by file and key, with a useful hint."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.tables import (
    DAMAGED,
    Positive,
    Range,
    Reader,
    Share,
    json_table,
    nearest,
    toml_table,
)


@dataclass(frozen=True)
class Leaf:
    name: str
    size: Positive = 3


@dataclass(frozen=True)
class Tree:
    kind: Literal["oak", "ash"] = "oak"
    height: float = 1.0
    share: Share | None = 0.5
    tilt: Annotated[float, Range(-1, 1)] = 0.0
    is_old: bool = False
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[float, int] = (1.0, 2)
    by_name: dict[str, int] = field(default_factory=dict)
    by_number: dict[int, Share] = field(default_factory=dict)
    by_kind: dict[Literal["oak", "ash"], int] = field(default_factory=dict)
    options: dict[str, Any] | None = None
    anything: Any = None
    rings: Annotated[int, Range(1, 10)] = 1


TOML, JSON = Reader("a.toml"), Reader("a.json", "json")


def test_a_field_takes_its_value_and_the_others_keep_their_defaults() -> None:
    table = {
        "kind": "ash",
        "height": 2,
        "tilt": -1,
        "is_old": True,
        "leaf": {"name": "a"},
        "leaves": [{"name": "b", "size": 1}],
        "pair": [0, 7],
        "by_name": {"x": 1},
        "by_number": {"0": 1, "61": 0.5},
        "by_kind": {"ash": 4},
        "options": {"a": [1]},
        "anything": [None],
    }
    read = TOML.read(Tree, table)
    assert read == Tree(
        "ash",
        2.0,
        0.5,
        -1.0,
        True,
        Leaf("a", 3),
        (Leaf("b", 1),),
        (0.0, 7),
        {"x": 1},
        {0: 1.0, 61: 0.5},
        {"ash": 4},
        {"a": [1]},
        [None],
    )
    assert type(read.height) is type(read.pair[0]) is float
    assert TOML.read(Tree, {}) == Tree()


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ([], "is not a table", "write []"),
        ({"heigth": 1}, "heigth: no such key", "did you mean height"),
        ({"zzzz": 1}, "zzzz: no such key", "known are kind, height, share"),
        ({"\x1b[2J": 1}, r"\x1b[2J: no such key", "known are"),
        ({"leaf": {"nam": 1}}, "leaf.nam: no such key", "did you mean name"),
        ({"leaf": {}}, "leaf.name: is missing", "give it text"),
        ({"leaf": 3}, "leaf: is not a table", "write [leaf]"),
        ({"leaves": 3}, "leaves: is not a list", "write [[leaves]]"),
        ({"leaves": [3]}, "leaves[0]: is not a table", ""),
        ({"pair": 3}, "pair: is not a list", "put it into [ ]"),
        ({"pair": [1]}, "pair: must have 2 items, not 1", "see the default"),
        ({"pair": [1, 2.5]}, "pair[1]: 2.5 is not a whole number", "give it a whole number"),
        ({"kind": "os"}, "kind: 'os' is none of oak, ash", "known are oak, ash"),
        ({"kind": "oka"}, "kind: 'oka' is none of oak, ash", "did you mean oak"),
        ({"kind": ["oak"]}, "kind: ['oak'] is none of", "did you mean oak"),
        ({"height": True}, "height: True is not a number", "give it a number"),
        ({"height": -0.5}, "height: -0.5 is out of range", "it must be 0 or more"),
        ({"height": float("nan")}, "height: nan is out of range", "it must be 0 or more"),
        ({"height": float("inf")}, "height: inf is out of range", "it must be 0 or more"),
        ({"height": 10**400}, "height: 1000000000", "it must be 0 or more"),
        ({"share": 1.5}, "share: 1.5 is out of range", "it must be between 0 and 1"),
        ({"tilt": -1.5}, "tilt: -1.5 is out of range", "it must be between -1 and 1"),
        ({"rings": 11}, "rings: 11 is out of range", "it must be between 1 and 10"),
        ({"is_old": 1}, "is_old: 1 is not true or false", "give it true or false"),
        ({"leaf": {"name": 3}}, "leaf.name: 3 is not text", "give it text"),
        ({"leaf": {"name": "", "size": 0}}, "leaf.size: 0 is out of range", "1 or more"),
        ({"leaf": {"name": "", "size": 2**63}}, "leaf.size: 9223372036854775808 is out", "1 or"),
        ({"by_name": 3}, "by_name: is not a table", "write [by_name]"),
        ({"by_name": {"x": "y"}}, "by_name.x: 'y' is not a whole number", ""),
        ({"by_number": {"01": 1}}, "by_number.01: is not a whole number", ""),
        ({"by_number": {"-1": 1}}, "by_number.-1: is not a whole number", ""),
        ({"by_number": {"1234567890": 1}}, "by_number.1234567890: is not a whole number", ""),
        ({"by_number": {"1": 2}}, "by_number.1: 2 is out of range", "between 0 and 1"),
        ({"by_kind": {"elm": 1}}, "by_kind.elm: 'elm' is none of oak, ash", "known are"),
        ({"share": None}, "share: None is not a number", ""),
    ],
)
def test_what_does_not_fit_is_named_with_a_hint(table: Any, message: str, hint: str) -> None:
    with pytest.raises(DstoolsError) as caught:
        TOML.read(Tree, table)
    assert str(caught.value).startswith(f"a.toml: {message}")
    assert hint in caught.value.hint


def test_false_stands_for_none_in_toml_and_null_in_json() -> None:
    assert TOML.read(Tree, {"share": False, "leaf": False}) == Tree(share=None)
    assert JSON.read(Tree, {"share": None, "leaf": None}) == Tree(share=None)
    with pytest.raises(DstoolsError, match="share: False is not a number"):
        JSON.read(Tree, {"share": False})


def test_json_may_have_further_keys_and_is_to_be_made_again_where_it_does_not_fit() -> None:
    assert JSON.read(Tree, {"later": 1}) == Tree()
    with pytest.raises(DstoolsError, match=r"a\.json: leaf\.name: is missing") as caught:
        JSON.read(Tree, {"leaf": {"later": 1}})
    assert caught.value.hint == DAMAGED


def test_the_nearest_word_is_named_or_all_are() -> None:
    assert nearest("routed_dwn", ["routed_down", "router"]) == "did you mean routed_down"
    assert nearest("x", ["aa", "bb"]) == "known are aa, bb"
    assert nearest("best", ["all", "shortest"]) == "known are all, shortest"
    assert nearest("adamm", ["sgd", "adamw_torch_fused"]) == "did you mean adamw_torch_fused"
    spelled = nearest("a0", {"a0": "A 61"}, "the nearest is", {"a0": "A 61"}.__getitem__)
    assert spelled == "the nearest is A 61"


def test_a_toml_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = 1")
    assert toml_table(tmp_path / "a.toml", "x") == {"a": 1}
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    wrong = [("none.toml", "no such file"), ("", "is a directory")]
    for name, message in [*wrong, ("bad.toml", "is not TOML"), ("latin.toml", "is not TOML")]:
        with pytest.raises(DstoolsError, match=f"^{tmp_path / name}: {message}") as caught:
            toml_table(tmp_path / name, "see README")
        assert caught.value.hint == "see README"


def test_a_toml_file_that_is_no_text_is_told_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("a = 1", encoding="utf-8-sig")
    assert toml_table(path, "start anew") == {"a": 1}
    path.write_text("a = 1", encoding="utf-16")
    with pytest.raises(DstoolsError, match=r"r\.toml: is UTF-16, not UTF-8") as error:
        toml_table(path, "start anew")
    assert error.value.hint == "convert it: iconv -f UTF-16 -t UTF-8"


def test_a_json_file_is_an_object_or_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert json_table(path) is None
    path.write_text('{"a": 1}')
    assert json_table(path) == {"a": 1}
    for content, message in (("[]", "is not a JSON object"), ('{"a": NaN}', "is not valid JSON")):
        path.write_text(content)
        with pytest.raises(DstoolsError, match=f"a.json: {message}") as caught:
            json_table(path)
        assert caught.value.hint == "delete the file, or make it again"
        with pytest.raises(DstoolsError, match=f"a.json: {message}") as caught:
            json_table(path, "see README")
        assert caught.value.hint == "see README"


def test_a_json_file_that_would_fill_the_memory_or_wait_for_ever_is_not_opened(
    tmp_path: Path,
) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate((1 << 28) + 1)
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("large.json", "pipe.json"):
        with pytest.raises(DstoolsError, match="is not a regular file, or is too large"):
            json_table(tmp_path / name)
