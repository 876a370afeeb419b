"""A push, end to end, by the command and the real client: whole or not at all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub.client import Hub
from dstools.hub.plan import Target, plan
from dstools.hub.push import publish
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.sums import SUMS, format_sums, read_sums

if TYPE_CHECKING:
    from fakehub import FakeHub

Push = Callable[..., Any]
REPO, BASE = "alice/model", ("--base", "deepseek-ai/DeepSeek-V3", "--yes")
ODD_NAMES = ["a b.txt", "acc[fp8].txt", "100%.txt", "c#.json", "why?.md", "ü+&=.txt", "d (1).txt"]
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)


@pytest.fixture
def folder(bare: Path) -> Path:
    """A folder that quantize wrote, and its licence."""
    (bare / "README.md").write_text("---\nlicense: mit\n---\n")
    return bare


def relist(folder: Path) -> None:
    """List every file of a folder in its SHA256SUMS."""
    digests = {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (SUMS, "README.md")
    }
    (folder / SUMS).write_bytes(format_sums(digests))


def commits(hub: "FakeHub") -> int:
    return len([entry for entry in hub.log if "/commit/" in entry["p"]])


def requests(hub: "FakeHub", wanted: str) -> set[int]:
    return {pr for pr, record in hub.repos[REPO]["prs"].items() if record["status"] == wanted}


def published(hub: "FakeHub") -> dict[str, bytes]:
    names = set(hub.head(REPO)[1]) - {".gitattributes"}
    return {name: hub.content(REPO, name) for name in names}


def test_a_download_is_the_folder_byte_for_byte_and_its_sums_hold(
    push: Push,
    folder: Path,
    hub: "FakeHub",
    tmp_path: Path,
    tree: Callable[[Path], dict[str, str]],
    leg: str,
) -> None:
    for name in ODD_NAMES:
        (folder / name).write_text(name)
    (folder / "sub dir").mkdir()
    (folder / "sub dir/[1] #.txt").write_text("x")
    relist(folder)
    before = tree(folder)
    run = push(folder, REPO, *BASE)
    assert run.code == 0, run.stderr
    assert tree(folder) == before  # nothing of the folder is changed
    copy = tmp_path / "copy"
    for command in (
        ["-m", "huggingface_hub.cli.hf", "download", REPO, "--local-dir", str(copy)],
        ["-m", "dstools", "verify", str(copy), "--sums"],
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
    assert f"hashes of {len(before) - 1} files from SHA256SUMS" in done.stdout
    downloaded = {k: v for k, v in tree(copy).items() if not k.startswith((".cache", ".git"))}
    made = {"README.md", SUMS}
    assert {k: v for k, v in downloaded.items() if k not in made} == {
        k: v for k, v in before.items() if k not in made
    }
    assert downloaded.keys() == before.keys()
    assert (read_sums(copy) or {}).keys() == before.keys() - {SUMS}
    sent = {entry["p"].split("/")[1] for entry in hub.log if entry["m"] == "PUT"}
    assert ("lfs" in sent) == (leg == "lfs")


@one_leg
def test_main_has_nothing_until_everything_is_there(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    hub.faults.append({"match": "/merge", "status": 403, "times": 9})
    run = push(folder, REPO, *BASE)
    assert run.code == 1
    assert set(published(hub)) == set()
    assert requests(hub, "open") == {1}
    hub.faults.clear()
    before = commits(hub)
    assert push(folder, REPO, *BASE).code == 0
    assert commits(hub) == before  # the pull request was full, and was continued
    assert requests(hub, "merged") == {1}


@one_leg
def test_a_folder_without_sums_gets_them_in_the_repository(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    (folder / SUMS).unlink()
    assert push(folder, REPO, *BASE).code == 0
    listed = hub.content(REPO, SUMS).decode()
    for name, content in published(hub).items():
        if name != SUMS:
            assert f"{sha256(content).hexdigest()}  {name}\n" in listed
    assert not (folder / SUMS).exists()


@one_leg
def test_a_file_that_is_not_as_listed_stops_the_push_before_anything_is_made(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    path = folder / "generation_config.json"
    path.write_text(path.read_text() + " ")
    run = push(folder, REPO, *BASE)
    assert run.code == 1
    assert f"error: generation_config.json: is not the file that {SUMS} lists" in run.stderr
    assert not hub.repos


@one_leg
def test_a_card_that_was_edited_since_is_published(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    relist(folder)
    digests = (read_sums(folder) or {}) | {"README.md": "0" * 64}
    (folder / SUMS).write_bytes(format_sums(digests))
    card = "---\nlicense: mit\nbase_model: deepseek-ai/DeepSeek-V3\n---\n# Mine\n"
    (folder / "README.md").write_text(card)
    run = push(folder, REPO, *BASE)
    assert run.code == 0, run.stderr
    assert b"# Mine" in hub.content(REPO, "README.md")


@one_leg
def test_a_repository_that_somebody_creates_meanwhile_is_left_alone(
    folder: Path, hub: "FakeHub", connect: Callable[..., Hub]
) -> None:
    connected = connect()
    planned = plan(connected, folder, Target(REPO, base="none"))
    assert planned.branch.is_new_repository
    hub.repos[REPO] = {"type": "model", "private": False, "refs": {}, "prs": {}}
    hub.commit(REPO, "main", {}, "by somebody", None)
    with pytest.raises(DstoolsError, match="somebody else created it meanwhile"):
        publish(connected, planned, workers=1)
    assert set(hub.head(REPO)[1]) == set()


@one_leg
def test_a_folder_that_verify_refuses_stops_the_push_before_anything_is_made(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-2] + b"\xff\x7f")
    relist(folder)
    run = push(folder, REPO, *BASE)
    assert run.code == 1
    assert f"error: {shard.name}" in run.stderr
    assert not hub.repos


@one_leg
def test_only_what_changed_is_sent_again(push: Push, folder: Path, hub: "FakeHub") -> None:
    push(folder, REPO, *BASE)
    (folder / "NOTICE").write_text("new")
    hub.log.clear()
    assert push(folder, REPO, *BASE).code == 0
    assert hub.content(REPO, "NOTICE") == b"new"
    assert not [entry for entry in hub.log if entry["m"] == "PUT"]
    assert requests(hub, "merged") == {1, 2}


@one_leg
def test_replace_removes_old_weights_in_the_same_merge_and_keeps_other_files(
    push: Push, folder: Path, hub: "FakeHub", tmp_path: Path
) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    (old / "logo.png").write_bytes(b"x")
    assert push(old, REPO, *BASE).code == 0
    shards = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in shards:  # the same model in shards of other names
        path.rename(folder / f"new-{path.name}")
    index["weight_map"] = {key: f"new-{shard}" for key, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    relist(folder)
    before = hub.head(REPO)[0]
    refused = push(folder, REPO, *BASE)
    assert refused.code == 1
    assert shards[0].name in refused.stderr
    assert "--replace" in refused.stderr
    assert hub.head(REPO)[0] == before
    run = push(folder, REPO, *BASE, "--replace")
    assert run.code == 0, run.stderr
    assert not {path.name for path in shards} & set(published(hub))
    assert {"logo.png", f"new-{shards[0].name}"} <= set(published(hub))
    merged = hub.commits[hub.head(REPO)[0]]
    assert merged["parent"] == before  # the new weights and without the old ones, at once
    assert {path.name for path in shards}.isdisjoint(merged["files"])
    assert f"new-{shards[0].name}" in merged["files"]


@one_leg
def test_a_main_that_moves_meanwhile_is_told_and_the_next_run_continues(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    assert push(folder, REPO, *BASE).code == 0
    (folder / "NOTICE").write_text("new")

    def meanwhile(hub: "FakeHub", repo: str, number: int) -> None:
        content = hub.head(repo)[1] | {"NEWS.md": hub.head(repo)[1]["config.json"]}
        hub.commit(repo, "main", content, "by somebody", None)

    hub.rules["on_open"] = meanwhile
    run = push(folder, REPO, *BASE)
    assert run.code == 1
    assert "main of alice/model has changed meanwhile: NEWS.md" in run.stderr
    assert "NOTICE" not in published(hub)
    hub.rules.pop("on_open")
    run = push(folder, REPO, *BASE)
    assert run.code == 0, run.stderr
    assert {"NOTICE", "NEWS.md"} <= set(published(hub))
    assert requests(hub, "closed") == {2}


@one_leg
def test_a_branch_is_filled_in_one_commit_and_main_stays(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    run = push(folder, REPO, *BASE, "--revision", "fp8")
    assert run.code == 0, run.stderr
    assert set(published(hub)) == set()
    assert commits(hub) == 1
    assert "config.json" in hub.head(REPO, "fp8")[1]
    assert not hub.repos[REPO]["prs"]
    assert push(folder, REPO, *BASE, "--revision", "fp8").code == 0
    assert commits(hub) == 1


@one_leg
def test_a_signature_goes_along_only_with_what_it_signs(
    push: Push, folder: Path, hub: "FakeHub", tmp_path: Path
) -> None:
    (folder / "model.sig").write_text("{}")
    run = push(folder, REPO, *BASE)
    assert run.code == 0
    assert "warning: model.sig: is left out" in run.stderr
    assert "model.sig" not in published(hub)
    hub.commit(REPO, "main", hub.head(REPO)[1] | {"model.sig": hub.head(REPO)[1][SUMS]}, "x", None)
    (folder / "NOTICE").write_text("new")
    run = push(folder, REPO, *BASE)
    assert run.code == 0
    assert "warning: model.sig of alice/model: is of other files" in run.stderr
    (folder / "NOTICE").unlink()
    hub.repos.pop(REPO)
    assert push(folder, REPO, *BASE).code == 0
    for name in ("README.md", SUMS):
        (folder / name).write_bytes(hub.content(REPO, name))
    assert push(folder, REPO, *BASE).code == 0
    assert "model.sig" in published(hub)


@one_leg
def test_the_line_that_the_hub_adds_to_its_gitattributes_is_no_difference(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    (folder / "plots").mkdir()
    (folder / "plots/large picture.png").write_bytes(bytes(20_000))
    (folder / ".gitattributes").write_text("*.mine filter=lfs\n")
    run = push(folder, REPO, *BASE)
    assert run.code == 0, run.stderr
    attributes = hub.content(REPO, ".gitattributes").decode()
    assert "plots/large[[:space:]]picture.png filter=lfs" in attributes
    assert "*.mine" not in attributes
    assert "up to date" in push(folder, REPO, *BASE).stdout
    assert push(folder, REPO, *BASE, "--revision", "fp8").code == 0


@one_leg
def test_main_is_changed_in_one_commit_if_it_is_named(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    run = push(folder, REPO, *BASE, "--revision", "main")
    assert run.code == 0, run.stderr
    assert commits(hub) == 1
    assert not hub.repos[REPO]["prs"]
    assert "--revision main --local-dir COPY" in run.stderr


@one_leg
def test_an_agreed_pull_request_is_never_replaced_by_a_commit(
    push: Push, folder: Path, hub: "FakeHub"
) -> None:
    hub.faults.append({"match": "POST .*/discussions$", "status": 403, "times": 9})
    run = push(folder, REPO, *BASE)
    assert run.code == 1
    assert "--revision main publishes in one commit" in run.stderr
    assert set(published(hub)) == set()


@one_leg
def test_a_branch_begins_at_the_commit_of_the_plan(
    folder: Path, hub: "FakeHub", connect: Callable[..., Hub]
) -> None:
    connected = connect()
    connected.api.create_repo(REPO)
    planned = plan(connected, folder, Target(REPO, "fp8", base="none"))
    first = hub.head(REPO)[0]
    content = hub.head(REPO)[1]
    hub.commit(REPO, "main", content | {"old.safetensors": content[".gitattributes"]}, "x", first)
    publish(connected, planned, workers=1)
    assert "old.safetensors" not in hub.head(REPO, "fp8")[1]
