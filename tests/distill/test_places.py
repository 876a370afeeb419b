"""The paths of a recipe: beside it, in the cache, of an earlier phase; in a preview, pending."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.pipeline import Pipeline
from dstools_distill.places import PendingError, Places
from dstools_distill.preflight import preflight
from dstools_distill.recipe.recipe import read_recipe
from dstools_distill.store.stage import no_bar

Finish = Callable[..., Path]
RECIPE = """
[student]
model = "student"
[verify]
[[phase]]
name = "cold"
generate = { backend = "replay" }
verify = {}
sft = {}
[[phase]]
name = "rl"
grpo = {}
student = { model = "phase:cold/sft" }
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return read(tmp_path, RECIPE)


def read(tmp_path: Path, text: str) -> Places:
    recipe = tmp_path / "a.toml"
    recipe.write_text(text)
    return Places(read_recipe(recipe), tmp_path / "out", lambda name: Path("/hub") / name)


def test_a_path_is_relative_to_the_recipe_or_of_an_earlier_phase(
    places: Places, tmp_path: Path, finish: Finish
) -> None:
    folder = finish("cold/select")
    assert places.path("a/b") == tmp_path / "a" / "b"
    assert places.path("/a/b") == Path("/a/b")
    assert places.path("phase:cold/select") == folder
    assert places.path("phase:cold/select/records.jsonl") == folder / "records.jsonl"
    assert (places.file(""), places.file("a")) == (None, tmp_path / "a")


def test_a_model_is_a_folder_beside_the_recipe_or_else_of_the_cache(
    places: Places, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    assert places.model("here", "x") == tmp_path / "here"
    assert places.model("org/name", "x") == Path("/hub/org/name")
    with pytest.raises(DstoolsError, match=r"a\.toml: kd\.teacher: is missing"):
        places.model("", "kd.teacher")


def test_a_stage_that_is_not_finished_is_named_with_the_command_that_makes_it(
    places: Places, tmp_path: Path, finish: Finish
) -> None:
    cold = places.recipe.chains[0]
    with pytest.raises(DstoolsError, match=f"^{tmp_path}/out/cold/verify: verify is not") as caught:
        places.finished(cold, "verify")
    command = f"dstools distill verify {tmp_path}/a.toml --chain cold --out {tmp_path}/out"
    assert caught.value.hint == command
    made = finish("cold/verify")
    assert places.finished(cold, "verify") == made


def test_data_and_models_come_from_the_last_stage_that_left_some(
    places: Places, finish: Finish
) -> None:
    cold, rl = places.recipe.chains
    verified, trained = finish("cold/verify"), finish("cold/sft")
    assert places.before(cold, "render") == verified
    assert places.trained(cold, before="eval") == trained
    assert places.trained(rl, before="grpo") == trained  # its student is that of the phase before
    with pytest.raises(DstoolsError, match="generate has nothing to work on") as caught:
        places.before(cold, "generate")
    assert "the recipe needs [generate]; where the rows" in caught.value.hint
    assert 'write backend = "replay" in it, and no model' in caught.value.hint


def test_a_link_is_replaced_at_once_and_is_relative(
    places: Places, tmp_path: Path, finish: Finish
) -> None:
    for name in ("one", "two"):
        folder = finish(name)
        places.link("cold", "sft", folder)
        assert (tmp_path / "out" / "cold" / "sft").resolve() == folder
    assert (tmp_path / "out" / "cold" / "sft").readlink() == Path("../store/two")
    assert [path.name for path in (tmp_path / "out" / "cold").iterdir()] == ["sft"]


@pytest.mark.parametrize("taken", ["cold", "cold/sft", "store"])
def test_what_the_user_keeps_in_the_folder_is_not_replaced(
    places: Places, tmp_path: Path, taken: str
) -> None:
    notes = tmp_path / "out" / taken
    notes.parent.mkdir(parents=True)
    notes.write_text("notes")
    cold = places.recipe.chains[0]
    for start in (preflight, lambda of: Pipeline(of, 1, no_bar).run_one(cold, "sft")):
        with pytest.raises(DstoolsError, match=f"out/{taken}: is not a result of") as caught:
            start(places)
        assert caught.value.hint == "move it away, or name another --out"
    assert notes.read_text() == "notes"


def test_other_ranks_make_no_link(
    places: Places, finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finish("one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    places.link("cold", "sft", folder)
    assert not (tmp_path / "out" / "cold").exists()


def test_in_a_preview_a_stage_that_would_run_is_pending_whatever_the_folder_holds(
    places: Places, finish: Finish
) -> None:
    old, new = finish("cold/sft"), finish("new")
    cold, rl = places.recipe.chains
    links: dict[str, Path] = {}
    seen = replace(places, links=links)
    with pytest.raises(PendingError):
        seen.finished(cold, "sft")
    with pytest.raises(PendingError):
        seen.trained(rl, before="grpo")
    links["cold/sft"] = new
    assert seen.finished(cold, "sft") == seen.trained(rl, before="grpo") == new
    render = finish("cold/render")  # not of this recipe: as it is in the folder
    assert seen.finished(cold, "render") == render
    assert places.finished(cold, "sft") == old


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[prompts.source]]\npath = "no.jsonl"', "no.jsonl: no such file"),
        ('[prompts]\nsource = []\npass_rates = "no"', "no: no such file"),
        ('[generate]\nbackend = "replay"\nmodel = "no.jsonl"', "no.jsonl: no such file"),
        ('[generate]\nbackend = "hf"', "generate.model: is missing"),
        ('[decontaminate]\nindex = ["no.ngrams"]', "no.ngrams: no such file"),
        ('[select]\nnon_reasoning = "no.jsonl"', "no.jsonl: no such file"),
        ('[student]\nmodel = "student"\n[kd]', "kd.teacher: is missing"),
        ('[student]\nmodel = "student"\n[[eval.source]]\npath = "no.jsonl"', "no.jsonl: no such"),
    ],
)
def test_what_a_recipe_names_must_be_there(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DstoolsError, match=message):
        read(tmp_path, text).require()


@pytest.mark.parametrize("recipe", ["deep/b/a.toml", "here/../deep/b/a.toml"])
def test_a_recipe_in_another_folder_finds_what_is_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "deep" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for name in ("rows.jsonl", "exam.jsonl", "rates", "samples.jsonl", "x.ngrams", "chat.jsonl"):
        (folder / name).touch()
    (folder / "a.toml").write_text(
        """
        prompts = { source = [{ path = "rows.jsonl" }], pass_rates = "rates" }
        generate = { backend = "replay", model = "samples.jsonl" }
        decontaminate = { index = ["x.ngrams"] }
        select = { non_reasoning = "chat.jsonl" }
        eval = { source = [{ path = "exam.jsonl" }] }
        student = { model = "." }
        """
    )
    Places(read_recipe(Path(recipe)), Path("out"), Path).require()


def test_what_comes_later_or_is_no_file_need_not_be_there(tmp_path: Path) -> None:
    text = '[[prompts.source]]\npath = "rg:chain_sum"\n[prompts]\npass_rates = "phase:a/verify"'
    read(tmp_path, text).require()


def test_licences_are_asked_for_only_where_a_teacher_answers(tmp_path: Path) -> None:
    prompts = (
        '[[prompts.source]]\npath = "a.jsonl"\n[[prompts.source]]\npath = "b"\nlicence = "mit"\n'
    )
    teacher = '[generate]\nbackend = "openai"\nmodel = "m"\n'
    assert read(tmp_path, prompts + teacher).unknown_licences() == ["a.jsonl", "m"]
    replayed = teacher.replace("openai", "replay")
    assert read(tmp_path, prompts + replayed).unknown_licences() == []
