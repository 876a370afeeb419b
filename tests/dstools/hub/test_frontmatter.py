"""Front matter: what is read, what is written, and what the Hub would refuse, named by key."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from dstools.hub.frontmatter import Card, check_card, read_card, rewrite_card, write_card
from dstools_converters.errors import DstoolsError, Finding

CASES = Path(__file__).parents[2] / "cases" / "push" / "cards.jsonl"
GOOD = {"license": "mit", "base_model": "org/base", "base_model_relation": "quantized"}
TEXT = "# A model\n\n---\n\nmore\n"


def cases() -> list[dict[str, Any]]:
    every = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [case for case in every if "meta" in case or "yaml" in case]


def verdict(raw: bytes, files: list[str]) -> list[Finding]:
    try:
        return check_card(read_card(raw).metadata, files)
    except DstoolsError as error:
        return [Finding.error("card", "README.md: ", str(error), error.hint)]


def faults(metadata: dict[Any, Any], files: tuple[str, ...] = ()) -> list[str]:
    return [f.where.removeprefix("README.md: ") for f in check_card(metadata, files)]


# --------------------------------------------------------------------------------- reading, writing


def test_the_text_of_a_card_is_kept_as_it_is() -> None:
    for text in (TEXT, "", "\n\n# x", "no end", TEXT.replace("\n", "\r\n"), "---\n"):
        card = Card(GOOD, text)
        assert read_card(write_card(card)) == card
        assert write_card(read_card(write_card(card))) == write_card(card)


def test_a_rule_in_the_text_ends_no_front_matter() -> None:
    assert read_card(f"---\nlicense: mit\n---\n{TEXT}".encode()) == Card({"license": "mit"}, TEXT)
    assert read_card(TEXT.encode()) == Card({}, TEXT)
    assert read_card(b"---\na: |\n  ---\n  b\n---\n").metadata == {"a": "---\nb\n"}


@pytest.mark.parametrize(
    "raw",
    [
        b"---\nlicense: mit\n---\n# x\n",
        b"---\r\nlicense: mit\r\n---\r\n# x\n",
        b"\n\n---\nlicense: mit\n---\n# x\n",
        b"--- \nlicense: mit\n---\t\n# x\n",
        b'---\n{"license": "mit"}\n---\n# x\n',
    ],
)
def test_front_matter_is_found_however_its_lines_end(raw: bytes) -> None:
    assert read_card(raw) == Card({"license": "mit"}, "# x\n")


@pytest.mark.parametrize("raw", [b"", b"\n", b"# x\n", b"---\n---\n", b"---\n# comment\n---\n"])
def test_a_card_may_have_no_front_matter(raw: bytes) -> None:
    assert read_card(raw).metadata == {}


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "begins with a byte-order mark", "without one"),
        ("# x".encode("utf-16"), "is not UTF-8: byte 0 is 0xff", "save it as UTF-8"),
        (b"---\nlicense: mit\n# x\xe9\n", "is not UTF-8: byte 20 is 0xe9", "save it as UTF-8"),
        (b"---\nlicense: mit\n# x\n", "the front matter does not end", "write --- in a line"),
        (b"---\n- mit\n---\n", "the front matter is not a mapping", "key: value"),
        (b"---\nmit\n---\n", "the front matter is not a mapping", "key: value"),
        (b"---\na: 1\nlicense: mit\nlicense: mit\n---\n", "line 4: license is given", "correct"),
        (b"---\ntags:\n\t- fp8\n---\n", "line 3: found character '\\t'", "spaces"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused_by_line(raw: bytes, message: str, hint: str) -> None:
    with pytest.raises(DstoolsError) as error:
        read_card(raw)
    assert str(error.value).startswith(f"README.md: {message}")
    assert hint in error.value.hint
    with pytest.raises(DstoolsError, match=r"^card\.md: "):
        read_card(raw, "card.md")


def test_written_front_matter_reads_the_same_in_the_client_of_the_hub() -> None:
    odd = ["no", "1e3", "a: b", "#x", "- y", "'q\"", "é\u2028", "  ", "null", "1.0", "2026-11-28"]
    metadata = GOOD | {
        "tags": odd,
        "language": ["no"],
        "co2": {"emissions": 1.5},
        "inference": False,
    }
    raw = write_card(Card(metadata, TEXT))
    assert ModelCard(raw.decode()).data.to_dict() == metadata
    assert b"base_model_relation: quantized\n" in raw
    assert b"\n- 'no'\n" in raw


def test_new_keys_follow_the_lines_that_a_person_wrote() -> None:
    raw = b"---\n# ours\nlicense:   mit # yes\ntags: [a,\n  b]\n---\n# x\n"
    card = read_card(raw)
    assert rewrite_card(raw, card) == raw
    more = Card(card.metadata | {"library_name": "transformers"}, "# y\n")
    expected = raw.replace(b"---\n# x", b"library_name: transformers\n---\n# y")
    assert rewrite_card(raw, more) == expected
    assert rewrite_card(raw.replace(b"\n", b"\r\n"), Card(more.metadata, "# y\r\n")) == (
        expected.replace(b"\n", b"\r\n")
    )


def test_a_changed_key_is_written_anew_below_the_others() -> None:
    raw = b"---\n# mine\ntags:\n- a\n- b\n# of it\nlicense: mit # yes\n'language':\n  - en\n---\n"
    for kept, lines in (
        ({"license": "mit", "tags": ["c"]}, b"# of it\nlicense: mit # yes\ntags:\n- c\n"),
        ({"license": "mit"}, b"# of it\nlicense: mit # yes\n"),
    ):
        assert rewrite_card(raw, Card(kept, "# x\n")) == b"---\n# mine\n" + lines + b"---\n# x\n"
    flow = b"---\ntags: [a,\nlicense: mit]\n---\n"
    assert rewrite_card(flow, Card({"license": "mit"}, "")) == b"---\nlicense: mit\n---\n"


def test_another_form_is_written_anew() -> None:
    in_braces = Card({"license": "mit", "tags": ["a"]}, "")
    assert read_card(rewrite_card(b"---\n{license: mit}\n---\n", in_braces)) == in_braces
    assert rewrite_card(b"# x\n", Card({"license": "mit"}, "# x\n")) == (
        b"---\nlicense: mit\n---\n# x\n"
    )


# --------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["id"])
def test_each_case_has_its_verdict(case: dict[str, Any]) -> None:
    files = case.get("files", [])
    raws = [write_card(Card(case["meta"], TEXT))] if "meta" in case else []
    raws += [f"---\n{case['yaml']}---\n{TEXT}".encode()] if "yaml" in case else []
    for raw in raws:
        found = verdict(raw, files)
        assert (not found) == case["ok"], case["why"]
        assert all(f.where.startswith("README.md: ") and f.hint for f in found)


@pytest.mark.parametrize(
    "metadata",
    [
        {"base_model": ["org/one", "org/two.v1-x_y"], "base_model_relation": "merge"},
        {"language": "en"},
        {"language": ["en", "zh", "zh-Hans", "pt-BR", "deu", "multilingual", "code"]},
        {"datasets": "imdb"},
        {"datasets": ["imdb", "stanfordnlp/imdb"]},
        {"license": "unknown"},
        {"license": "other", "license_name": "x", "license_link": "https://example.org/a?b#c"},
        {"license": "other", "license_name": "x", "license_link": "./LICENSE"},
        {"license": "other", "license_name": "x", "license_link": "docs/LICENSE.txt"},
        {"widget": [{"text": "x"}]},
        {"inference": False, "quantized_by": "me", "date": date(2026, 11, 28), "n": [1, {"a": 2}]},
        {"extra_gated_prompt": "a\nb", "thumbnail": "https://example.org/x.png"},
        {"new_version": "org/newer", "metrics": ["accuracy"], "tags": []},
    ],
)
def test_what_the_hub_documents_is_accepted(metadata: dict[str, Any]) -> None:
    assert faults({"license": "mit"} | metadata, ("LICENSE", "docs/LICENSE.txt")) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("base_model", name)
            for name in [
                "org/base/sub", "my org/base", "org/my base", "~/ckpt", "~", "../out", ".", "out/",
                "C:\\models\\x", "C:/models/x", "\\\\host\\x", "D:x", "base", "org/", "/base",
                "org/-x", "org/x.", "org/x--y", "org/x..y", "org/x.git", "org/" + "x" * 97,
                "org/model.safetensors", "file:///data/x", "https://huggingface.co/org/base",
                "hf://org/base", "org/base@main", "org/báse", "", " ", "org/base\n", None, 3, True,
                ["org/base", "/data/x"], ["org/base", None], [], [["org/base"]], {"name": "org/b"},
            ]
        ),
        *(("license", value) for value in [["mit"], [], None, "", True, 1.0, {"name": "mit"}]),
        *(
            ("license", value)
            for value in ["Mit", "apache 2.0", "Apache-2.0", "deepseek", "mit\n", "mit,apache-2.0"]
        ),
        *(("tags", value) for value in ["fp8", None, [None], [["a"]], [1], [""]]),
        *(("tags", value) for value in [[date(2026, 1, 1)], {}]),
        *(("tags", value) for value in [{"a": "b"}, ["a\nb"], [{"a": "b"}], [True, "fp8"]]),
        *(("language", value) for value in ["english", "EN", [False], [None], "en_US", 3]),
        *(
            ("datasets", value)
            for value in [
                "/data/x", "x.jsonl", "data/x.parquet", ["./x"], [1], [True], ["a/b/c"],
                "my data/x", "~/x", "C:\\x", None, [date(2026, 1, 1)], "org/x.json.gz",
            ]
        ),
        *(("pipeline_tag", value) for value in ["Text-Generation", ["text-generation"], None, 1]),
        *(("base_model_relation", value) for value in ["Quantized", ["quantized"], None, True]),
        *(("library_name", value) for value in [None, ["transformers"], 1, False]),
        *(("new_version", value) for value in ["/data/x", "x", True]),
        *(("metrics", value) for value in ["accuracy", [1]]),
        *(("widget", value) for value in [{"text": "x"}, "x", [1], False]),
        *(("x", value) for value in [float("nan"), [float("inf")], {"a": {"b": float("-inf")}}]),
    ],
)  # fmt: skip
def test_a_faulty_value_is_named_by_its_key_and_the_hint_is_followed(key: str, value: Any) -> None:
    found = check_card(GOOD | {key: value}, [])
    assert found
    assert {f.where.partition(": ")[2].partition("[")[0] for f in found} == {key}
    assert all(f.level == "error" and f.hint and f.message for f in found)
    assert all("\n" not in f.message + f.hint for f in found)


@pytest.mark.parametrize(
    ("metadata", "key", "hint"),
    [
        ({"license": "MIT"}, "license", "write license: mit"),
        ({"license": ["mit", "x"]}, "license", "write license: mit"),
        ({"license": "gpl-3.0-or-later"}, "license", "write license: gpl-3.0"),
        (
            {"license": "My terms"},
            "license",
            "write license: other, license_name: my-terms, and license_link",
        ),
        ({"license_name": "deepseek"}, "license", "write license: other"),
        ({"license": "mit", "base_model": "https://huggingface.co/a/b/tree/main"}, "base_model",
         "write base_model: a/b"),
        ({"license": "mit", "base_model": "a/b@c0ffee"}, "base_model", "write base_model: a/b"),
        ({"license": "mit", "pipeline_tag": "text_generation"}, "pipeline_tag",
         "write pipeline_tag: text-generation"),
        ({"license": "mit", "language": [False]}, "language[0]",
         'put the word in quotes, such as "no"'),
        ({"license": "mit", "tags": [1.0]}, "tags[0]", 'put it in quotes: "1.0"'),
        ({"license": "other", "license_name": "x", "license_link": "/LICENSE"}, "license_link",
         "write license_link: LICENCE.md"),
    ],
)  # fmt: skip
def test_the_hint_says_what_to_write(metadata: dict[str, Any], key: str, hint: str) -> None:
    (found,) = check_card(metadata, ["LICENCE.md", "config.json"])
    assert (found.where, found.hint) == (f"README.md: {key}", hint)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("License", "license"), ("licence", "license"), ("LICENSE", "license"),
        ("Base_Model", "base_model"), ("base-model", "base_model"), ("baseModel", "base_model"),
        ("base model", "base_model"), ("pipeline-tag", "pipeline_tag"), ("Tags", "tags"),
        ("dataset", "datasets"), ("languages", "language"), ("model_index", "model-index"),
    ],
)  # fmt: skip
def test_a_key_that_the_hub_spells_otherwise_is_refused(key: str, wanted: str) -> None:
    metadata = {name: value for name, value in GOOD.items() if name != wanted}
    found = [f for f in check_card(metadata | {key: "x"}, []) if key in f.where]
    assert [f.hint for f in found] == [f"write {wanted}:"]
    found = [f for f in check_card(metadata | {key: "x", wanted: "x"}, []) if key in f.where]
    assert f"remove it: there is {wanted}" in [f.hint for f in found]


def test_a_key_that_is_not_text_is_refused() -> None:
    assert faults({"license": "mit", 1: "a", False: "b"}) == ["1", "False"]


def test_old_results_are_checked_for_what_the_client_needs() -> None:
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "ai2_arc", "name": "ARC"},
        "metrics": [{"type": "accuracy", "value": 64.59}],
    }
    good = [{"name": "x", "results": [result]}]
    assert faults({"license": "mit", "model-index": good}) == []
    for broken in (
        [{"name": "x"}], [{"results": [result]}], [{"name": "x", "results": [{}]}],
        [{"name": "x", "results": [result | {"dataset": {"name": "ARC"}}]}],
        [{"name": "x", "results": [result | {"metrics": [{"type": "accuracy"}]}]}],
        [{"name": "x", "results": [result | {"metrics": []}]}], good[0], "x", [1],
    ):  # fmt: skip
        assert faults({"license": "mit", "model-index": broken}) == ["model-index"]
    nan = json.loads(json.dumps(good).replace("64.59", "NaN"))
    assert faults({"license": "mit", "model-index": nan}) == ["model-index"]


def test_a_control_character_reaches_no_terminal() -> None:
    found = check_card({"license": "\x1b[31m", "base_model": "\x1b/\x07", "\x1b]0;": None}, [])
    assert found
    assert all((f.where + f.message + f.hint).isprintable() for f in found)
