"""The card that is published: whose text it keeps, what it inherits, and what is refused."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from dstools.hub.frontmatter import check_card, read_card
from dstools_converters.errors import DstoolsError
from dstools_converters.markdown import BEGIN, END

Cards = Callable[..., str]
BASE = "deepseek-ai/DeepSeek-V3"
PERSON = f"---\nlicense: mit\nbase_model: {BASE}\n---\n# By hand\n\nMy notes.\n"
DISTILL = Path(__file__).parents[2] / "distill" / "cards" / "golden" / "README.md"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def metadata(card: str) -> dict[str, Any]:
    """The front matter, which must be right, and the same for the Hub's client."""
    found = read_card(card.encode()).metadata
    assert ModelCard(card).data.to_dict() == found
    files = [*re.findall(r"license_link: (\S+)", card), "README.md"]
    assert check_card(found, files) == []
    return found


def outside(card: str) -> str:
    """The text outside of the generated part."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", read_card(card.encode()).body,
                  flags=re.DOTALL)  # fmt: skip


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    assert metadata(card(with_card, None, local=PERSON.encode()))["base_model"] == BASE
    assert metadata(card(with_card, "org/given"))["base_model"] == "org/given"
    assert "base_model" not in metadata(card(with_card, "none"))
    edit_manifest(with_card, source="../x@main")
    with pytest.raises(DstoolsError, match="is not known"):
        card(with_card, None)


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


# --------------------------------------------------------------------------------------- whose card


def test_a_card_of_the_base_is_known_by_its_hash_whatever_it_names(card: Cards, bare: Path) -> None:
    local = b"---\nlicense: mit\nbase_model: org/older\n---\n# Base\nScores 91.2\n"
    edit_manifest(bare, source_card=f"sha256:{sha256(local).hexdigest()}")
    for remote in (None, local):
        text = card(bare, local=local, remote=remote)
        assert metadata(text)["base_model"] == BASE
        assert "91.2" not in text
    assert "91.2" in card(bare, local=local + b"\n"), "a person edited it"


def test_a_persons_card_keeps_text_keys_and_comments(card: Cards, bare: Path) -> None:
    local = PERSON.replace("license: mit", "# ours\nlicense:   mit # yes\ntags: [mine]")
    text = card(bare, None, local=local.encode())
    assert text.startswith("---\n# ours\nlicense:   mit # yes\ntags: [mine]\n")
    found = metadata(text)
    assert found["tags"] == ["mine"]
    assert found["base_model_relation"] == "quantized"
    assert found["library_name"] == "transformers"
    assert outside(text).strip() == "# By hand\n\nMy notes."
    generated = text.partition(BEGIN)[2]
    assert not re.search("^# ", generated, re.MULTILINE), "one title"


def test_a_card_with_a_generated_part_is_not_of_the_base(card: Cards, bare: Path) -> None:
    first = card(bare, "none", local=PERSON.encode())
    assert "base_model" not in metadata(first)
    assert card(bare, "none", local=first.encode()) == first


def test_the_next_push_replaces_the_generated_part_alone(card: Cards, bare: Path) -> None:
    first = card(bare, None, local=PERSON.encode())
    assert card(bare, None, local=PERSON.encode(), remote=first.encode()) == first
    assert card(bare, None, remote=first.encode()) == first
    edited = first.replace("# By hand", "# By another hand").replace("SOURCE", "STALE")
    edited = edited.replace(END, f"{END}\n\nBelow.")
    second = card(bare, None, local=PERSON.encode(), remote=edited.encode())
    assert second == edited.replace("STALE", "SOURCE")
    assert second.index("# By another hand") < second.index(BEGIN) < second.index("Below.")
    assert "STALE" not in second


def test_the_text_on_the_hub_counts_before_that_of_the_folder(card: Cards, bare: Path) -> None:
    remote = PERSON.replace("My notes", "Notes on the Hub").replace("mit", "apache-2.0")
    local = PERSON.replace("license", "thumbnail: x.png\nlicense")
    text = card(bare, None, local=local.encode(), remote=remote.encode())
    assert "Notes on the Hub" in text
    assert "My notes" not in text
    assert metadata(text)["license"] == "apache-2.0"
    assert metadata(text)["thumbnail"] == "x.png", "what only the folder says is added"


@pytest.mark.parametrize("remote", [b"", b"\n", b"---\nlicense: mit\n---\n"])
def test_a_remote_card_without_text_leaves_that_of_the_folder(
    card: Cards, bare: Path, remote: bytes
) -> None:
    assert "My notes." in card(bare, None, local=PERSON.encode(), remote=remote)


def test_a_remote_text_without_front_matter_is_kept(card: Cards, with_card: Path) -> None:
    text = card(with_card, remote=b"Written on the Hub.")
    assert outside(text).strip() == "Written on the Hub."
    assert metadata(text)["license"] == "mit"


def test_a_copy_of_the_base_on_the_hub_is_not_a_persons(card: Cards, with_card: Path) -> None:
    local = (with_card / "README.md").read_bytes()
    assert card(with_card, remote=local) == card(with_card)


def test_lines_end_as_in_the_persons_card(card: Cards, bare: Path) -> None:
    windows = PERSON.replace("\n", "\r\n").encode()
    text = card(bare, None, local=windows)
    assert text.replace("\r\n", "\n") == card(bare, None, local=PERSON.encode())
    assert "\n" not in text.replace("\r\n", "")
    assert card(bare, None, remote=text.encode()) == text


@pytest.mark.parametrize(
    ("remains", "line", "which"),
    [
        (f"{BEGIN}\nold\n", 1, "begins here does not end"),
        (f"old\n{END}\n", 2, "ends here does not begin"),
        (f"{END}\nmine\n{BEGIN}\nold\n", 1, "ends here does not begin"),
        (f"{BEGIN}\nold\n{BEGIN}\nold\n{END}\n", 1, "begins here does not end"),
        (f"{BEGIN}\nold\n{END}\nold\n{END}\n", 5, "ends here does not begin"),
        (f"{BEGIN}\nold\n{BEGIN}\nold\n{END}\nold\n{END}\n", 1, "begins here does not end"),
    ],
)
def test_one_marker_without_the_other_is_refused_by_its_line(
    card: Cards, bare: Path, remains: str, line: int, which: str
) -> None:
    without_base = PERSON.replace(f"base_model: {BASE}\n", "")
    for text, key, where in (
        (PERSON, "local", "README.md"),
        (PERSON, "remote", "README.md of the repository"),
        (without_base, "local", "README.md"),
    ):
        with pytest.raises(DstoolsError) as error:
            card(bare, None, **{key: f"{text}{remains}\nAfter.\n".encode()})
        above = text.count("\n")
        message = f"{where}: line {above + line}: the generated part that {which}"
        assert str(error.value) == message


@pytest.mark.parametrize("lost", [BEGIN, END])
def test_the_marker_that_the_hint_says_makes_the_card_whole(
    card: Cards, bare: Path, lost: str
) -> None:
    first = card(bare, None, local=PERSON.encode()) + "\nBelow.\n"
    with pytest.raises(DstoolsError) as error:
        card(bare, None, remote=first.replace(lost, "").encode())
    assert error.value.hint.partition(" in a line of its own ")[0] == f"write {lost}"
    assert card(bare, None, remote=first.encode()) == first


def test_a_second_generated_part_is_dropped(card: Cards, bare: Path) -> None:
    first = card(bare, None, local=PERSON.encode())
    twice = first + first.partition(BEGIN)[2].join([BEGIN, ""]) + "End.\n"
    assert card(bare, None, remote=twice.encode()).count("## How to run it") == 1
    assert "End." in card(bare, None, remote=twice.encode())


def test_a_card_of_ones_own_model_gets_keys_and_no_text(card: Cards, student: Path) -> None:
    text = card(student, None, local=b"---\nlicense: mit\n---\n# Mine\n\nText.\n")
    assert read_card(text.encode()).body == "# Mine\n\nText.\n"
    assert metadata(text) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    assert "## How to run it" in card(student, None, local=b"---\nlicense: mit\n---\n")
    relation = metadata(card(student, "org/base", local=b"---\nlicense: mit\n---\n# Mine\n"))
    assert relation["base_model_relation"] == "finetune"


def test_a_new_card_of_distill_replaces_the_old_one_on_the_hub(card: Cards, student: Path) -> None:
    written = DISTILL.read_text()
    old = written.replace("A student trained", "An older student trained")
    assert card(student, None, local=written.encode(), remote=old.encode()) == written
    edited = old.replace(BEGIN, f"Mine.\n\n{BEGIN}")
    text = card(student, None, local=written.encode(), remote=edited.encode())
    assert outside(text).strip() == "Mine."
    assert "An older student" not in text


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


# ---------------------------------------------------------------------------------------- the page


def page(card: str) -> str:
    """The card as the Hub shows it, but for its style."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    body = markdown.render(read_card(card.encode()).body)
    style = (
        "body{max-width:50em;margin:2em auto;font:16px/1.5 sans-serif}code{background:#eee}"
        "table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:.2em .6em}"
    )
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}"


def test_every_table_list_and_command_is_rendered_as_one(card: Cards, measured: Path) -> None:
    shown = page(card(measured, local=b"---\nlicense: mit\n---\n", also=("report.html",)))
    text = re.sub("<code.*?</code>|<!--.*?-->", "", shown, flags=re.DOTALL)
    plain = html.unescape(re.sub("<[^>]+>", "", text))
    assert not re.search(r"^\s*\||\*\*|^#|```|\]\(|&lt;|\\", plain, re.MULTILINE)
    assert shown.count("<table>") == 8
    assert shown.count('<code class="language-sh">') == 2
    assert shown.count("<h1>") == 1
    assert BEGIN not in html.unescape(plain)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_the_card(card: Cards, measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "card.html"
    path.write_text(page(card(measured, local=b"---\nlicense: mit\n---\n")))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<table>") == 8
    assert "97.75 %" in done.stdout
