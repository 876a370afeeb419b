"""A preview follows the links that a run would make; a check looks at settings, paths and order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.inputs import gather, identity_of
from dstools_distill.places import Places
from dstools_distill.preview import check, preview, require_machine, unfit
from dstools_distill.recipe.recipe import read_recipe

Finish = Callable[..., Path]
RECIPE = """
[student]
model = "student"
[[phase]]
name = "cold"
generate = { backend = "replay", model = "samples.jsonl" }
verify = {}
[[phase.prompts.source]]
path = "asked.jsonl"
[[phase]]
name = "warm"
generate = { backend = "replay", model = "phase:cold/verify/records.jsonl" }
[[phase.prompts.source]]
path = "asked.jsonl"
"""
SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"
ASKED = '{"problem": "1 + 1?"}\n{"problem": "1 + 2?"}\n'


def read(tmp_path: Path, text: str = RECIPE) -> Places:
    (tmp_path / "asked.jsonl").write_text(ASKED)
    (tmp_path / "samples.jsonl").write_text("{}\n{}\n")
    (tmp_path / "a.toml").write_text(text)
    return Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", Path)


def states(places: Places, start: str = "") -> list[str]:
    return [f"{s.chain}/{s.stage}: {s.state}" for s in preview(places, start).steps]


def test_without_results_every_stage_would_run_and_phases_wait_for_each_other(
    tmp_path: Path,
) -> None:
    names = ("cold/prompts", "cold/generate", "cold/verify", "warm/prompts", "warm/generate")
    assert states(read(tmp_path)) == [f"{name}: would run" for name in names]
    assert not (tmp_path / "out").exists()


def store(places: Places, chain: int, stage: str, finish: Finish) -> None:
    """Put a result into the store under the name that it must have."""

    def make(*_: object) -> Path:
        raise AssertionError

    of = places.recipe.chains[chain]
    inputs = gather(places, of, stage, make)
    identity = identity_of(places, stage, of.stages[stage], inputs)
    folder = finish(f"{of.name}/{stage}", out=2)
    folder.rename(folder.with_name(identity.name))
    place = places.place(of.name, stage)
    place.unlink()
    place.symlink_to(folder.with_name(identity.name))


def test_a_result_counts_by_its_identity_and_not_by_the_link_in_the_folder(
    tmp_path: Path, finish: Finish
) -> None:
    places = read(tmp_path)
    store(places, 0, "prompts", finish)
    store(places, 0, "generate", finish)
    done = ["cold/prompts: done", "cold/generate: done", "cold/verify: would run"]
    assert states(places)[:3] == done
    (tmp_path / "out" / "cold" / "generate").unlink()  # `find` needs no link
    assert states(places)[:3] == done
    (tmp_path / "asked.jsonl").write_text("")
    assert states(read(tmp_path))[:3] == done  # the same content again
    other = read(tmp_path)
    (tmp_path / "asked.jsonl").write_text(ASKED + ASKED)
    assert [state.rpartition(" ")[2] for state in states(other)[:3]] == ["run"] * 3


def test_a_start_keeps_what_is_before_it_and_needs_it_there(tmp_path: Path, finish: Finish) -> None:
    places = read(tmp_path)
    with pytest.raises(DstoolsError, match="prompts is not done"):
        preview(places, "cold/verify")
    finish("cold/prompts", out=2)
    finish("cold/generate", out=2)
    assert states(places, "cold/verify")[:3] == [
        "cold/prompts: kept",
        "cold/generate: kept",
        "cold/verify: would run",
    ]
    steps = preview(places, "cold/verify").steps
    assert [step.rows for step in steps[:3]] == [2, 2, 2]
    assert [step.disk_bytes for step in steps[:3]] == [0, 0, 3 + 2 * 512]


def test_the_disk_is_summed_where_it_is_known_and_the_rest_is_named(tmp_path: Path) -> None:
    seen = preview(read(tmp_path), "")
    known = [step.disk_bytes for step in seen.steps if step.disk_bytes is not None]
    assert seen.disk_needed == sum(known) > 0
    assert seen.disk_unknown == ()
    text = RECIPE.replace('path = "asked.jsonl"', 'path = "datasets:org/name"')
    seen = preview(read(tmp_path, text), "")
    assert seen.disk_needed == 0
    assert seen.disk_unknown[:2] == ("cold/prompts", "cold/generate")
    assert seen.disk_free > 0


def test_a_check_passes_for_what_can_run_and_makes_nothing(tmp_path: Path) -> None:
    check(read(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"samples.jsonl"', '"none.jsonl"', "none.jsonl: no such file"),
        ("verify = {}\n", "verify = {}\nsft = {}\n", "render is not done"),
        ('generate = { backend = "replay", model = "samples.jsonl" }\n', "", "verify has nothing"),
    ],
)
def test_a_check_refuses_what_a_run_would(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "student").symlink_to(SAMPLE)
    with pytest.raises(DstoolsError, match=message):
        check(read(tmp_path, RECIPE.replace(old, new, 1)))


LOCAL = RECIPE.replace(
    'backend = "replay", model = "samples', 'backend = "hf", device = "cuda", model = "student" }#'
)


def test_what_this_machine_cannot_run_is_refused_by_a_run_and_told_by_others(
    tmp_path: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe may be made for another machine, and a stage that is done needs none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "student").symlink_to(SAMPLE)
    places = read(tmp_path, LOCAL)
    check(places)
    none = "device cuda: this machine has none"
    assert {name: problem for name, (problem, _) in unfit(places).items()} == {
        "cold/generate": none
    }
    assert preview(places, "").unfit == {"cold/generate": none}
    with pytest.raises(DstoolsError, match=f"a.toml: cold/generate: {none}") as caught:
        require_machine(places, "")
    assert caught.value.hint.startswith('set device = "cpu"; or, if another machine is to run it')
    assert f"`{places.command('prompts', '--chain', 'cold')}`" in caught.value.hint
    store(places, 0, "prompts", finish)
    store(places, 0, "generate", finish)
    assert preview(places, "").unfit == {}
    require_machine(places, "")
