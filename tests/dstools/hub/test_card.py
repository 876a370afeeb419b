"""The card that is published: its keys, what it inherits, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cards import BASE, DISTILL, PERSON, Cards, edit_manifest, metadata, outside
from click.testing import Result

from dstools.hub.frontmatter import read_card
from dstools_converters.errors import DstoolsError

# ----------------------------------------------------------------------------------- golden cases


def test_fp8_without_calibration_has_a_card_of_its_own(card: Cards, with_card: Path) -> None:
    text = card(with_card)
    assert metadata(text) == {
        "license": "mit",
        "base_model": BASE,
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fp8", "dstools"],
    }
    assert outside(text).strip() == ""
    assert "91.2" not in text
    assert "Not measured:" in text
    assert f"[{BASE}](https://huggingface.co/{BASE})" in text


def test_fp8_with_calibration_shows_what_was_measured(card: Cards, measured: Path) -> None:
    (measured / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    text = card(measured)
    assert metadata(text)["license"] == "apache-2.0"
    evaluation = json.loads((measured / "eval.json").read_text())
    assert f"{evaluation['perplexity']:.3f}" in text
    assert "--calibrate DATA --method gptq" in text


def test_compressed_tensors_are_tagged_and_not_for_every_engine(
    card: Cards, compressed: Path
) -> None:
    text = card(compressed, local=b"---\nlicense: MIT\n---\n")
    assert metadata(text)["tags"] == ["fp8", "compressed-tensors", "dstools"]
    assert metadata(text)["license"] == "mit"
    assert "dstools quantize SOURCE OUT --format compressed-tensors" in text
    refused = text.partition("Refused or misread by:")[2]
    assert "- TensorRT-LLM: TensorRT-LLM reads FP8_BLOCK_SCALES from" in refused


def test_the_card_of_distill_stays_as_it_is(card: Cards, student: Path) -> None:
    written = DISTILL.read_text()
    text = card(student, None, local=written.encode())
    assert read_card(text.encode()).body == read_card(written.encode()).body
    assert metadata(text) == read_card(written.encode()).metadata
    with_base = metadata(card(student, "Qwen/Qwen2.5-7B", local=written.encode()))
    assert with_base["base_model"] == "Qwen/Qwen2.5-7B"
    assert with_base["base_model_relation"] == "finetune"


@pytest.mark.parametrize(
    "local",
    [None, b"", b"# The base\n", b"---\nlibrary_name: transformers\n---\n# x\n",
     b"---\nlicense: other\n---\n"],
)  # fmt: skip
def test_a_base_without_a_licence_is_refused_and_the_hint_works(
    card: Cards, bare: Path, local: bytes | None
) -> None:
    with pytest.raises(DstoolsError) as error:
        card(bare, local=local)
    assert str(error.value) == (
        f"README.md: names no license, and that of {BASE} is not known here"
    )
    assert "put license: mit, or what it is, between two lines of ---" in error.value.hint
    followed = b"---\nlicense: mit\n---\n" + (local or b"").rpartition(b"---\n")[2]
    assert metadata(card(bare, local=followed))["license"] == "mit"


# --------------------------------------------------------------------------------------- the base


def test_a_base_that_is_not_known_is_asked_for(card: Cards, with_card: Path) -> None:
    with pytest.raises(DstoolsError, match=r"README\.md: the model that this one was") as error:
        card(with_card, None)
    assert "--base ORG/NAME" in error.value.hint
    assert "--base none" in error.value.hint
    without = metadata(card(with_card, "none"))
    assert not {"base_model", "base_model_relation"} & without.keys()
    assert without["license"] == "mit"


def test_the_base_is_the_source_in_the_cache_where_nothing_else_says_it(
    card: Cards, with_card: Path
) -> None:
    edit_manifest(with_card, source=f"org/source@{'c' * 40}")
    assert metadata(card(with_card, None))["base_model"] == "org/source"
    assert metadata(card(with_card, "org/given"))["base_model"] == "org/given"
    assert "base_model" not in metadata(card(with_card, "none"))
    edit_manifest(with_card, source="../x@main")
    with pytest.raises(DstoolsError, match="is not known"):
        card(with_card, None)


@pytest.mark.parametrize(
    ("key", "where"), [("local", "README.md"), ("remote", "README.md of the repository")]
)
def test_a_persons_base_that_is_not_the_source_is_refused_and_both_hints_work(
    card: Cards, with_card: Path, key: str, where: str
) -> None:
    edit_manifest(with_card, source=f"org/source@{'c' * 40}")
    given = {key: PERSON.encode()}
    with pytest.raises(DstoolsError) as error:
        card(with_card, None, **given)
    assert str(error.value) == (
        f"{where}: base_model: {BASE} is not org/source, which the weights were made from"
    )
    assert error.value.hint == f"add --base org/source, or --base {BASE} if that is right"
    for base in ("org/source", BASE):
        assert metadata(card(with_card, base, **given))["base_model"] == base
    both = PERSON.replace(f"base_model: {BASE}", f"base_model: [{BASE}, org/source]").encode()
    assert metadata(card(with_card, None, local=both))["base_model"] == [BASE, "org/source"]


def test_what_is_given_counts_before_what_a_card_says(card: Cards, bare: Path) -> None:
    text = card(bare, "org/given", local=PERSON.encode())
    assert metadata(text)["base_model"] == "org/given"
    assert "[org/given]" in text
    assert "My notes." in text
    assert "base_model" not in metadata(card(bare, "none", local=PERSON.encode()))


@pytest.mark.parametrize("base", ["/data/x", "./x", "name", "a/b/c", "a/b@main", "", "a b/c"])
def test_a_base_that_is_not_a_name_is_refused(card: Cards, with_card: Path, base: str) -> None:
    with pytest.raises(DstoolsError, match=r"^--base .*is not a name on the Hub") as error:
        card(with_card, base)
    assert "org/name, or none" in error.value.hint


def test_a_folder_of_another_tool_needs_no_base(card: Cards, tiny_fp8: Path) -> None:
    text = card(tiny_fp8, None, local=b"---\nlicense: mit\n---\n# Mine\n")
    assert "base_model" not in metadata(text)
    assert metadata(text)["tags"] == ["fp8"]
    assert "# Mine" in outside(text)


def test_a_dequantized_model_has_a_base_and_no_relation(
    card: Cards, ok: Callable[..., Result], tiny_fp8: Path, tmp_path: Path
) -> None:
    ok("dequantize", tiny_fp8, tmp_path / "out")
    found = metadata(card(tmp_path / "out", local=b"---\nlicense: mit\n---\n"))
    assert found["base_model"] == BASE
    assert "base_model_relation" not in found
    assert found["tags"] == ["dstools"]
    without = metadata(card(tmp_path / "out", None, local=b"---\nlicense: mit\n---\n"))
    assert "base_model" not in without


# ------------------------------------------------------------------------------------ the licence


@pytest.mark.parametrize(
    ("front", "also", "wanted"),
    [
        ("license: MIT", (), ("mit", None, None)),
        ("license: [apache-2.0]", (), ("apache-2.0", None, None)),
        (
            "license: other\nlicense_name: deepseek\nlicense_link: LICENSE-MODEL",
            ("LICENSE-MODEL",),
            ("other", "deepseek", "LICENSE-MODEL"),
        ),
        (
            "license: other\nlicense_name: deepseek\nlicense_link: ./LICENSE-MODEL",
            (),
            ("other", "deepseek", f"https://huggingface.co/{BASE}/blob/main/LICENSE-MODEL"),
        ),
        (
            "license_name: deepseek\nlicense_link: https://example.org/x",
            (),
            ("other", "deepseek", "https://example.org/x"),
        ),
        ("license: My own terms", ("LICENSE",), ("other", "my-own-terms", "LICENSE")),
        (
            "license: My own terms",
            (),
            ("other", "my-own-terms", f"https://huggingface.co/{BASE}"),
        ),
        ("license: unknown", (), ("unknown", None, None)),
    ],
)  # fmt: skip
def test_the_licence_of_the_base_is_inherited_as_the_hub_spells_it(
    card: Cards, bare: Path, front: str, also: tuple[str, ...], wanted: tuple[str | None, ...]
) -> None:
    found = metadata(card(bare, local=f"---\n{front}\n---\n# x\n".encode(), also=also))
    keys = ("license", "license_name", "license_link")
    assert tuple(found.get(key) for key in keys) == wanted


def test_language_task_and_library_of_the_base_are_inherited_where_right(
    card: Cards, bare: Path
) -> None:
    front = "license: mit\nlanguage: [en, 'no']\npipeline_tag: image-text-to-text\n"
    local = f"---\n{front}library_name: deepseek\ntags: [chat]\ndatasets: [a/b]\n---\n"
    found = metadata(card(bare, local=local.encode()))
    assert found["language"] == ["en", "no"]
    assert found["pipeline_tag"] == "image-text-to-text"
    assert found["library_name"] == "deepseek"
    assert found["tags"] == ["fp8", "dstools"]
    assert "datasets" not in found
    wrong = local.replace("[en, 'no']", "[en, no]").replace("image-text-to-text", "chat")
    found = metadata(card(bare, local=wrong.encode()))
    assert "language" not in found
    assert found["pipeline_tag"] == "text-generation"


def test_calibration_data_are_named_where_they_are_a_data_set_of_the_hub(
    card: Cards, measured: Path
) -> None:
    local = b"---\nlicense: mit\n---\n"
    assert "datasets" not in metadata(card(measured, local=local))
    calibration = json.loads((measured / "calibration.json").read_text())
    calibration["data"]["name"] = "org/traces"
    (measured / "calibration.json").write_text(json.dumps(calibration))
    assert metadata(card(measured, local=local))["datasets"] == ["org/traces"]


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("front", "message", "hint"),
    [
        ("license: Mit", "license: 'Mit' is not in the Hub's list", "write license: mit"),
        ("license: mit\ntags: [on]", "tags[0]: YAML reads it as true", "quotes"),
        ("license: mit\ntags: [x]\nTags: x", "Tags: is not the Hub's name", "there is tags"),
        ("license: mit\nTags: x", "Tags: is not the Hub's name", "write tags:"),
        ("license: other", "license_name: is missing, with license: other (and 1 more)", "write"),
        ("license: mit\nlicense: mit", "line 4: license is given twice", "correct"),
        ("license: mit\nlanguage: {a: b}", "language: is a table, not text", "language: a"),
    ],
)
def test_front_matter_that_the_hub_would_refuse_names_whose_it_is(
    card: Cards, bare: Path, front: str, message: str, hint: str
) -> None:
    text = f"---\nbase_model: org/base\n{front}\n---\n# Mine\n".encode()
    for given, where in (
        ({"local": text}, "README.md"),
        ({"remote": text}, "README.md of the repository"),
        ({"local": PERSON.encode(), "remote": text}, "README.md of the repository"),
    ):
        with pytest.raises(DstoolsError) as error:
            card(bare, None, **given)  # type: ignore[arg-type]
        assert str(error.value).startswith(f"{where}: {message}")
        assert hint in error.value.hint


def test_a_misspelled_key_of_the_licence_is_named_before_it_is_missed(
    card: Cards, bare: Path
) -> None:
    with pytest.raises(DstoolsError, match=r"README\.md: License: is not the Hub's name") as error:
        card(bare, None, local=PERSON.replace("license", "License").encode())
    assert error.value.hint == "write license:"


@pytest.mark.parametrize("key", ["Base_Model", "base-model", "basemodel", "base_models"])
def test_a_misspelled_base_is_named_and_its_card_not_taken_for_that_of_the_base(
    card: Cards, bare: Path, key: str
) -> None:
    text = PERSON.replace("base_model", key).encode()
    for base in (None, "org/base", "none"):
        for given, where in (
            ({"local": text}, "README.md"),
            ({"remote": text}, "README.md of the repository"),
        ):
            with pytest.raises(DstoolsError) as error:
                card(bare, base, **given)
            assert str(error.value) == f"{where}: {key}: is not the Hub's name of this key"
            assert error.value.hint == "write base_model:"
    assert "My notes." in card(bare, None, local=text.replace(key.encode(), b"base_model"))


def test_a_licence_of_other_is_linked_to_the_file_that_is_there(card: Cards, bare: Path) -> None:
    local = PERSON.replace("license: mit", "license: other\nlicense_name: x").encode()
    with pytest.raises(DstoolsError, match="license_link: is missing"):
        card(bare, None, local=local)
    assert metadata(card(bare, None, local=local, also=("LICENSE",)))["license_link"] == "LICENSE"


def test_no_folder_of_this_machine_is_in_a_card(card: Cards, measured: Path) -> None:
    for text in (
        card(measured, local=b"---\nlicense: mit\n---\n"),
        card(measured, None, local=PERSON.encode(), repo=None),
    ):
        assert str(Path.home()) + "/" not in text
        assert str(measured.parent) not in text
