"""`dstools distill run --dry-run` and `check`: what would happen is told, and nothing happens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
RECIPE = f"""
[[prompts.source]]
path = "asked.jsonl"
[generate]
backend = "replay"
max_tokens = 100
[verify]
[select]
[student]
model = "{SAMPLE}"
[render]
max_length = 50
[sft]
precision = "float32"
batch_size = 4
[card]
"""


def dstools(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["distill", *map(str, args)])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with the folders of its first three stages: four rows, of which one is wrong."""
    folder = tmp_path_factory.mktemp("begun")
    rows = [
        {"problem": f"{n} + 1 =", "answer": str(n + 1), "solution": f"<think>\nso\n</think>\n\n{m}"}
        for n, m in ((1, 2), (2, 3), (3, 4), (4, 6))
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "mini.toml"
    recipe.write_text(RECIPE)
    for stage in ("prompts", "generate", "verify"):
        result = dstools(stage, recipe, "--workers", "1")
        assert result.exit_code == 0, result.output
    return recipe


@pytest.fixture
def recipe(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(begun.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / begun.name


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def preview(*args: str | Path) -> dict[str, Any]:
    result = dstools("run", *args, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {step["stage"]: step["state"] for step in found["steps"]}


def test_a_dry_run_tells_what_is_done_and_what_would_run_and_writes_nothing(recipe: Path) -> None:
    before = contents(recipe.parent)
    result = dstools("run", recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    assert contents(recipe.parent) == before
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:-1] == [
        "prompts done 4 rows",
        "generate done 4 rows",
        "verify done 4 rows",
        "select would run at most 4 rows",
        "render would run at most 4 rows, at most 200 tokens",
        "sft would run at most 4 rows, at most 200 tokens",
        "card would run",
    ]
    assert lines[-1].startswith("disk: at most ")
    assert "unknown" not in lines[-1]
    hint = "nothing was written; the same command without --dry-run runs it"
    assert result.stderr == f"hint: {hint}\n"


def test_a_dry_run_is_one_json_object(recipe: Path) -> None:
    found = preview(recipe)
    assert set(found) == {"out", "steps", "disk_needed", "disk_free", "disk_unknown", "unfit"}
    steps = {step["stage"]: step for step in found["steps"]}
    assert Path(steps["verify"]["folder"]).name.startswith("verify-")
    assert (steps["verify"]["disk_bytes"], steps["select"]["folder"]) == (0, None)
    assert found["disk_needed"] == sum(step["disk_bytes"] for step in steps.values())
    # two checkpoints of weights and two moments in float32, and the model: 28 bytes a parameter
    shards = sum(path.stat().st_size for path in SAMPLE.glob("*.safetensors"))
    assert steps["sft"]["disk_bytes"] == pytest.approx(14 * shards, rel=0.01)  # stored in bfloat16


def test_a_stage_for_another_machine_is_told_by_check_and_dry_run_and_refused_by_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first stage, not after the teacher was paid; on a login node a plan is wanted."""
    monkeypatch.setattr("dstools_distill.machine.find_spec", lambda name: None)
    recipe.write_text(RECIPE.replace("batch_size = 4", 'batch_size = 4\nparallel = "zero2"'))
    recipe.write_text(recipe.read_text().replace('precision = "float32"\n', ""))
    told = "sft cannot run on this machine, and `run` would refuse it: zero2 needs DeepSpeed"
    for words in (("check", recipe), ("run", recipe, "--dry-run")):
        result = dstools(*words)
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith(f"hint: {told}\n")
        assert json.loads(dstools(*words, "--json").stdout)["unfit"] == {
            "sft": "zero2 needs DeepSpeed"
        }
    for words in (("run", recipe), ("run", recipe, "--from", "select")):
        result = dstools(*words)
        assert result.exit_code == 1
        assert "mini.toml: sft: zero2 needs DeepSpeed" in result.stderr
        assert "pip install deepspeed; or, if another machine is to run it" in result.stderr
        assert "dstools distill prompts" in result.stderr
        assert not (recipe.with_suffix("") / "select").exists()
    assert dstools("select", recipe).exit_code == 0  # one by one


def test_in_an_empty_folder_all_would_run_and_the_folder_is_not_made(
    recipe: Path, tmp_path: Path
) -> None:
    found = preview(recipe, "--out", tmp_path / "none")
    assert set(states(found).values()) == {"would run"}
    assert [step["rows"] for step in found["steps"]] == [4, 4, 4, 4, 4, 4, None]
    assert not (tmp_path / "none").exists()


def test_a_changed_setting_would_repeat_what_it_can_change_and_what_follows(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("[verify]", "[verify]\nsteps = false"))
    found = states(preview(recipe))
    assert (found["generate"], found["verify"], found["select"]) == ("done", *["would run"] * 2)


def test_what_comes_before_from_is_kept_whatever_the_recipe_says_now(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("[verify]", "[verify]\nsteps = false"))
    found = states(preview(recipe, "--from", "select"))
    assert (found["generate"], found["verify"], found["select"]) == ("kept", "kept", "would run")


def test_a_run_makes_no_more_rows_than_its_preview_said_and_then_all_is_done(recipe: Path) -> None:
    recipe.write_text(RECIPE[: RECIPE.index("[student]")])
    bounds = {step["stage"]: step["rows"] for step in preview(recipe)["steps"]}
    result = dstools("run", recipe, "--workers", "1", "--json")
    assert result.exit_code == 0, result.output
    for stage in json.loads(result.stdout)["stages"]:
        assert stage["report"]["out"] <= bounds[stage["stage"]]
    again = dstools("run", recipe, "--dry-run")
    assert [line.split()[1] for line in again.stdout.splitlines()[:-1]] == ["done"] * 4
    assert again.stderr == "hint: everything is done; nothing would run\n"


def test_a_dry_run_from_a_stage_that_is_not_there_is_refused(recipe: Path) -> None:
    result = dstools("run", recipe, "--from", "kd", "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--from kd: the recipe has no such stage" in result.stderr


def test_a_recipe_that_can_run_passes_and_the_next_command_is_named(
    recipe: Path, tmp_path: Path
) -> None:
    before = contents(recipe.parent)
    result = dstools("check", recipe, "--out", tmp_path / "none")
    assert result.exit_code == 0, result.output
    stages = "prompts, generate, verify, select, render, sft"
    assert result.stdout == f"{stages}\ncard\n"
    assert result.stderr == f"hint: dstools distill run {recipe} --dry-run\n"
    assert contents(recipe.parent) == before
    assert not (tmp_path / "none").exists()
    found = json.loads(dstools("check", recipe, "--json").stdout)
    assert found["chains"] == {"": stages.split(", ")}
    assert found["has_card"] is True


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("max_length", "max_lenght", "render.max_lenght: no such key", "did you mean max_length"),
        ("max_tokens = 100", "max_tokens = 0", "generate.max_tokens: 0 is out of range", "1 or"),
        ("asked.jsonl", "absent.jsonl", "absent.jsonl: no such file", "relative to its folder"),
        (f"{SAMPLE}", "no/such", "no/such", ""),
        ("batch_size = 4", "batch_size = 4\nparallel = 'ddp'", "contradict each other", "single"),
        (
            '[generate]\nbackend = "replay"\nmax_tokens = 100',
            "",
            "verify has nothing",
            "[generate]",
        ),
        ("[render]\nmax_length = 50", "", "render is not done", "dstools distill render"),
        ("[card]", "[kd]", "kd.teacher: is missing", "name a folder or org/name"),
    ],
)
def test_a_recipe_that_would_fail_is_one_error_and_one_hint(
    recipe: Path, tmp_path: Path, old: str, new: str, message: str, hint: str
) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    for command in (["check"], ["run", "--dry-run"]):
        result = dstools(*command, recipe, "--out", tmp_path / "none")
        assert (result.exit_code, result.stdout) == (1, "")
        error, advice = result.stderr.splitlines()
        assert error.startswith("error: ")
        assert message in error
        assert hint in advice
