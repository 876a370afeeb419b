"""A card describes stages that were made from each other, and names no path of this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.lineage import gather_card
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import read_recipe
from dstools_distill.store.stage import digest

Finish = Callable[..., Path]
RECIPE = """
[generate]
backend = "replay"
[verify]
[select]
[card]
name = "mini"
"""


def read(tmp_path: Path, text: str = RECIPE) -> Places:
    (tmp_path / "a.toml").write_text(text)
    return Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", Path)


def test_a_card_is_of_the_stages_that_are_finished(tmp_path: Path, finish: Finish) -> None:
    generated = finish("generate")
    verified = finish("verify", inputs={"samples": digest(generated)})
    gathered = gather_card(read(tmp_path))
    assert gathered.stages == {"": {"generate": generated, "verify": verified}}
    assert gathered.settings.name == "mini"
    assert set(gathered.identity().parts["inputs"]) == {"generate", "verify"}


def test_a_stage_made_from_another_result_than_the_one_there_now_is_refused(
    tmp_path: Path, finish: Finish
) -> None:
    finish("generate")
    finish("verify", inputs={"samples": "of another run"})
    with pytest.raises(DstoolsError, match="verify was made from another generate") as caught:
        gather_card(read(tmp_path))
    command = f"dstools distill run {tmp_path}/a.toml --from verify --out {tmp_path}/out"
    assert caught.value.hint == command


def test_a_recipe_without_a_card_has_none(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"has no \[card\]"):
        gather_card(read(tmp_path, RECIPE.partition("[card]")[0]))


@pytest.mark.parametrize(
    ("model", "told"),
    [("models/mine", "mine"), ("org/name", "org/name"), ("phase:cold/sft", "phase:cold/sft")],
)
def test_a_student_in_a_folder_is_told_by_the_name_of_the_folder(
    tmp_path: Path, model: str, told: str
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    places = read(tmp_path, f'[student]\nmodel = "{model}"\n{RECIPE}')
    assert gather_card(places).students[""].model == told


def test_a_setting_that_changes_no_other_byte_makes_another_card(
    tmp_path: Path, finish: Finish
) -> None:
    folder = finish("generate")
    before = gather_card(read(tmp_path)).identity().name
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"inputs"', '"settings": {}, "inputs"'))
    assert gather_card(read(tmp_path)).identity().name != before
