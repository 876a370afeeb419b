"""The command line of `dstools push`: what it asks, prints and returns."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.commands.push import EXAMPLES

if TYPE_CHECKING:
    from fakehub import FakeHub

Push = Callable[..., Any]
REPO, BASE = "alice/model", ("--base", "deepseek-ai/DeepSeek-V3")


@pytest.fixture
def leg() -> str:
    """One leg is enough for what a terminal shows."""
    return "lfs"


@pytest.fixture
def folder(bare: Path) -> Path:
    """A folder that quantize wrote, and its licence."""
    (bare / "README.md").write_text("---\nlicense: mit\n---\n")
    return bare


def test_a_push_prints_what_it_did_and_how_to_check_a_copy(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    run = push(folder, REPO, *BASE, "--yes")
    assert run.code == 0, run.stderr
    commit = hub.head(REPO)[0]
    checked, not_checked, first, url = run.stdout.splitlines()
    assert "every value; " in checked
    assert checked.endswith("; every file on the Hub")
    assert "--engine" in not_checked
    assert first.startswith("alice/model: published, ")
    assert url == f"{hub.url}/alice/model/tree/{commit}"
    plan = run.stderr.splitlines()
    assert (
        plan[0] == f"account    alice (token from HF_TOKEN) at {hub.url}, which HF_ENDPOINT names"
    )
    assert plan[1] == "repository alice/model, a new repository, private"
    assert plan[2] == "branch     main, by a pull request"
    assert plan[3].startswith("files ")
    assert plan[-1].startswith("hint: check a copy: hf download alice/model")


def test_the_examples_run_as_written(push: Push, folder: Path, hub: "FakeHub") -> None:
    hub.tokens["hf_good"]["orgs"] = {"org": "write"}
    for line in EXAMPLES.splitlines():
        command, name, _, *words = shlex.split(line)
        assert (command, name) == ("dstools", "push")
        agreed = () if "--dry-run" in words else ("--yes",)
        run = push(folder, *words, *agreed)
        assert run.code == 0, run.stderr
    assert "org/DeepSeek-V3-fp8" in hub.repos


def test_a_second_push_says_that_all_is_there(push: Push, folder: Path) -> None:
    push(folder, REPO, *BASE, "--yes")
    run = push(folder, REPO, *BASE, "--yes", "--json")
    assert run.code == 0, run.stderr
    assert json.loads(run.stdout)["state"] == "up to date"


def test_the_json_of_a_push_names_commit_files_and_checks(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    result = json.loads(push(folder, REPO, *BASE, "--yes", "--json").stdout)
    assert result["commit"] == hub.head(REPO)[0]
    assert result["files"] == len(hub.head(REPO)[1]) - 1  # .gitattributes is the Hub's
    assert "every value" in result["verified"]
    assert any("--engine" in line for line in result["not_checked"])


def test_the_json_of_a_plan_has_the_refusals(push: Push, folder: Path, hub: "FakeHub") -> None:
    (folder / ".env").write_text("x")
    run = push(folder, REPO, *BASE, "--dry-run", "--json")
    assert run.code == 1  # as without --dry-run
    plan = json.loads(run.stdout)
    assert plan["repo"] == REPO
    assert plan["by"] == "pull request"
    assert "config.json" in plan["files"]
    assert [refusal["where"] for refusal in plan["refusals"]] == [".env"]
    assert not hub.repos


def test_a_refused_plan_is_shown_and_ends_in_one_error_and_one_hint(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    (folder / ".env").write_text("x")
    (folder / "a.tmp").write_text("x")
    (folder / "other.txt").write_text("x")
    run = push(folder, REPO, *BASE, "--yes")
    assert run.code == 1
    lines = run.stderr.splitlines()
    assert "left out   other.txt" in lines
    assert lines[-2] == "error: .env: may hold a secret (and 1 more, above)"
    assert lines[-1] == "hint: move it out of the folder"
    assert sum(line.startswith("refused ") for line in lines) == 2
    assert not hub.repos


def test_without_a_terminal_yes_is_asked_for_before_anything_is_sent(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    run = push(folder, REPO, *BASE)
    assert run.code == 2
    assert "--yes" in run.stderr
    assert not hub.log


@pytest.mark.parametrize(
    ("repo", "options"),
    [
        ("model", ()),
        ("a/b/c", ()),
        ("alice/mo del", ()),
        ("alice/..", ()),
        ("alice/" + "x" * 100, ()),
        (REPO, ("--base", "/data/ckpt")),
        (REPO, ("--base", "base")),
        (REPO, ("--base", REPO)),
        *((REPO, ("--revision", name)) for name in ("refs/pr/1", "", "a..b", "-x", "a b", "HEAD")),
    ],
)
def test_names_that_cannot_be_are_misuse(
    repo: str, options: tuple[str, ...], push: Push, folder: Path, hub: "FakeHub"
) -> None:
    run = push(folder, repo, *options, "--yes")
    assert run.code == 2, run.stderr
    assert not hub.log


def test_the_plan_says_that_there_is_no_base(push: Push, folder: Path) -> None:
    run = push(folder, REPO, "--base", "none", "--dry-run")
    assert run.code == 0
    assert run.stdout.count("base       none") == 1


def test_many_files_are_counted_and_json_lists_them(push: Push, folder: Path) -> None:
    for number in range(30):
        (folder / f"{number}.log").write_text("x")
    run = push(folder, REPO, *BASE, "--dry-run")
    assert run.stdout.count("left out ") == 21
    assert "and 10 more; --json lists all" in run.stdout
    plan = json.loads(push(folder, REPO, *BASE, "--dry-run", "--json").stdout)
    assert len(plan["left_out"]) == 30


def test_names_with_control_characters_do_not_reach_the_terminal(push: Push, folder: Path) -> None:
    (folder / "a\x1b[31m.log").write_text("x")
    run = push(folder, REPO, *BASE, "--dry-run")
    assert "\x1b" not in run.stdout
    assert "a\\x1b[31m.log" in run.stdout
