"""Whose text and keys a card has: the base's, a person's, or ours of an earlier push."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from cards import BASE, DISTILL, PERSON, Cards, edit_manifest, metadata, outside

from dstools.hub.card import model_card
from dstools.hub.frontmatter import read_card
from dstools_converters.errors import DstoolsError
from dstools_converters.markdown import BEGIN, END


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


# ---------------------------------------------------------------- our own keys of an earlier push

OLD = "---\nlicense: apache-2.0\nlanguage: [en]\npipeline_tag: image-text-to-text\n---\n# Old\n"


def test_keys_of_an_earlier_push_are_made_anew(
    card: Cards, with_card: Path, measured: Path
) -> None:
    calibration = json.loads((measured / "calibration.json").read_text())
    calibration["data"]["name"] = "org/traces"
    (measured / "calibration.json").write_text(json.dumps(calibration))
    old = card(measured, "org/old", local=OLD.encode())
    assert metadata(old)["base_model"] == "org/old"
    assert metadata(old)["datasets"] == ["org/traces"]
    new = card(with_card)
    for base, source in ((BASE, "org/other"), (None, BASE)):
        edit_manifest(with_card, source=f"{source}@{'c' * 40}")
        assert metadata(card(with_card, base, remote=old.encode())) == metadata(new)
    assert "org/old" not in card(with_card, None, remote=old.encode())
    tagged = old.replace("- dstools\n", "- dstools\n- mine\n").replace("[en]", "[en, de]")
    tagged = tagged.replace("- en\n", "- en\n- de\n")
    mixed = metadata(card(with_card, remote=tagged.encode()))
    assert mixed == metadata(new) | {"tags": ["fp8", "dstools", "mine"], "language": ["en", "de"]}


def test_comments_and_text_of_a_person_outlast_keys_of_ours(card: Cards, with_card: Path) -> None:
    old = card(with_card, "org/old", local=OLD.encode())
    remote = old.replace("---\n", "---\n# of mine\nthumbnail: x.png # a\n", 1)
    remote = remote.replace(BEGIN, f"Mine.\n\n{BEGIN}")
    text = card(with_card, remote=remote.encode())
    assert text.startswith("---\n# of mine\nthumbnail: x.png # a\n")
    assert metadata(text) == metadata(card(with_card)) | {"thumbnail": "x.png"}
    assert outside(text).strip() == "Mine."
    assert card(with_card, remote=text.encode()) == text


def test_a_licence_that_a_person_changed_is_theirs_with_name_and_link(
    card: Cards, with_card: Path
) -> None:
    link = "license_link: https://example.org/x"
    base = f"---\nlicense: other\nlicense_name: old\n{link}\n---\n"
    old = card(with_card, local=base.encode())
    assert metadata(card(with_card, remote=old.encode()))["license"] == "mit"
    named = old.replace("license_name: old", "license_name: new")
    kept = metadata(card(with_card, remote=named.encode()))
    assert [kept[key] for key in ("license", "license_name")] == ["other", "new"]
    assert kept["license_link"] == "https://example.org/x"


def test_the_licence_of_one_card_takes_no_name_of_another(card: Cards, student: Path) -> None:
    other = (
        b"---\nlicense: other\nlicense_name: x\nlicense_link: https://example.org/x\n---\n# Mine\n"
    )
    remote = b"---\nlicense: mit\n---\n"
    merged = metadata(card(student, None, local=other, remote=remote))
    assert merged["license"] == "mit"
    assert "license_name" not in merged


def test_the_licence_of_a_base_is_not_that_of_another(card: Cards, bare: Path) -> None:
    old = card(bare, "org/old", local=OLD.encode()).encode()
    with pytest.raises(DstoolsError, match=f"names no license, and that of {BASE} is not known"):
        card(bare, remote=old)
    with pytest.raises(DstoolsError, match=f"names no license, and that of {BASE} is not known"):
        card(bare, local=old)


def test_a_downloaded_folder_keeps_what_its_card_records(card: Cards, bare: Path) -> None:
    old = card(bare, local=OLD.encode())
    again = old.replace("\n- dstools\n", "\n- older\n").replace('"dstools"', '"older"').encode()
    assert metadata(card(bare, None, local=again)) == metadata(old)
    edit_manifest(bare, source=f"org/source@{'c' * 40}")
    with pytest.raises(DstoolsError, match="that of org/source is not known"):
        card(bare, None, local=again)


def test_a_second_run_of_distill_counts_before_the_first_one(card: Cards, student: Path) -> None:
    new = DISTILL.read_text()
    old = new.replace("apache-2.0", "mit").replace('"sft"', '"kd"')
    assert card(student, None, local=new.encode(), remote=old.encode()) == new
    published = card(student, "org/old", local=old.encode())
    assert metadata(published)["base_model_relation"] == "finetune"
    assert card(student, None, local=new.encode(), remote=published.encode()) == new
    assert card(student, None, remote=published.encode()) == published, "without a card of its own"
    edited = published.replace("license: mit", "license: bsd").replace('"mit"', '"bsd"', 1)
    person = card(student, None, local=new.encode(), remote=edited.encode())
    assert metadata(person)["license"] == "bsd"


def test_without_a_record_all_keys_are_a_persons(card: Cards, bare: Path) -> None:
    old = re.sub("<!-- dstools: front .*\n", "", card(bare, "org/old", local=OLD.encode()))
    assert metadata(card(bare, None, remote=old.encode()))["base_model"] == "org/old"


# ------------------------------------------------------------------- a text that is not published


def test_a_text_that_is_taken_for_the_bases_is_a_warning(bare: Path) -> None:
    def warnings(local: bytes, remote: bytes | None = None) -> list[tuple[str, str, str]]:
        made = model_card(bare, base="org/b", local=local, remote=remote, files=["README.md"])
        return [(f.where, f.message, f.hint) for f in made.warnings]

    mine = b"---\nlicense: mit\n---\n# Mine\n"
    message = "is taken for the base's: its text is not published"
    hint = "to publish it, write base_model: org/b in its front matter"
    assert warnings(mine) == [("README.md", message, hint)]
    assert warnings(mine.replace(b"license", b"base_model: org/b\nlicense")) == []
    assert warnings(b"---\nlicense: mit\n---\n") == [], "without a text"
    edit_manifest(bare, source_card=f"sha256:{sha256(mine).hexdigest()}")
    assert warnings(mine) == [], "it is the base's"
