"""A push while others act: another push, people on the Hub, somebody who writes into the folder."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from dstools.hub.client import Hub
from dstools.hub.plan import Target, plan
from dstools.hub.push import publish
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

Here = Callable[..., Any]
REPO = "alice/model"
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)


def meet(hub: "FakeHub", match: str, act: Callable[[], object], **more: Any) -> None:
    """Let somebody act when the Hub gets the next request like this."""
    hub.faults.append({"match": match, "call": act} | more)


def tree(hub: "FakeHub", ref: str = "main") -> dict[str, str]:
    return {name: file["oid"] for name, file in hub.head(REPO, ref)[1].items()}


def states(hub: "FakeHub") -> list[str]:
    return [pull["status"] for pull in hub.repos[REPO]["prs"].values()]


# ---------------------------------------------------------------------------- another push


@pytest.fixture
def other(small: Path, tmp_path: Path) -> Path:
    """Another model for the same repository: other weights and one file more."""
    folder = Path(shutil.copytree(small, tmp_path / "other"))
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    (folder / "NOTICE").write_text("of the other\n")
    return folder


@one_leg
@pytest.mark.parametrize("which", ["the same folder", "another folder"])
def test_of_two_pushes_at_once_none_is_ever_published_in_part(
    which: str, hub: "FakeHub", here: Here, connect: Callable[..., Hub], small: Path, other: Path
) -> None:
    """The second runs from begin to end at each single request of the first."""
    second = small if which == "the same folder" else other
    assert here(small).code == 0
    mine, requests = tree(hub), len(hub.log)
    assert here(second).code == 0
    theirs = tree(hub)
    allowed = (mine, theirs, theirs | mine)  # of the first, only weights are removed
    for moment in range(requests):
        hub.repos.clear()
        hub.commits.clear()
        hub.log.clear()
        for path in (hub.root / "lfs").iterdir():
            path.unlink()
        ended: list[str] = []

        def push_too(ended: list[str] = ended) -> None:
            connected = connect()
            try:
                planned = plan(connected, second, Target(REPO, base="none"))
                ended.append(publish(connected, planned, 1).state)
            except DstoolsError as error:
                ended.append(str(error))

        meet(hub, "", push_too, skip=moment)
        first = here(small)
        hub.faults.clear()
        assert len(ended) == 1
        assert tree(hub) in allowed, moment
        if first.code:
            assert first.code == 1
            assert len(first.errors) == 1
            assert "same command" in first.stderr.splitlines()[-1]
            again = here(small)
            assert again.code == 0, again.stderr
        elif ended[0] not in ("published", "up to date"):
            assert here(second).code == 0
        assert tree(hub) in allowed, moment
        assert not {"open", "draft"} & set(states(hub)), moment


# ------------------------------------------------------- somebody who writes into the folder


def rewrite(path: Path) -> None:
    path.write_bytes(b"\0" + path.read_bytes()[1:])


def shorten(path: Path) -> None:
    os.truncate(path, 30)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" " * 5000)


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("moment", ["/repos/create", "/preupload/", "(PUT|xet-write)"])
@pytest.mark.parametrize("change", [rewrite, shorten, lengthen, Path.unlink, turn_into_a_folder])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_changes_during_a_push_is_named_and_not_published(
    name: str,
    change: Callable[[Path], None],
    moment: str,
    hub: "FakeHub",
    here: Here,
    small: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(small, tmp_path / "kept")
    hub.multipart_at, hub.part_size = 30_000, 20_000
    meet(hub, moment, lambda: change(small / name))
    done = here(small)
    if done.code == 0:  # it had been opened before
        assert moment == "(PUT|xet-write)"
        assert tree(hub)
    else:
        assert done.code == 1
        [error] = done.errors
        assert error.startswith("error: ")
        assert f"{name}: changed while it was uploaded" in error or f"{name} differs" in error
        assert set(tree(hub)) == {".gitattributes"}
    shutil.rmtree(small)
    shutil.copytree(tmp_path / "kept", small)
    assert here(small).code == 0
    assert hub.content(REPO, name) == (small / name).read_bytes()
    assert states(hub)[-1] == "merged"


def test_what_is_written_after_the_upload_is_not_part_of_it(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    checked = (small / "model.safetensors").read_bytes()
    meet(hub, "/validate-yaml", lambda: rewrite(small / "model.safetensors"))
    assert here(small).code == 0
    assert hub.content(REPO, "model.safetensors") == checked


# ---------------------------------------------------------------------- people on the Hub


def somebody(hub: "FakeHub") -> HfApi:
    """Return the client of another member of the organization."""
    hub.tokens["hf_bob"] = {"name": "bob", "role": "write", "orgs": {"alice": "admin"}}
    return HfApi(endpoint=hub.url, token="hf_bob")


def delete(hub: "FakeHub") -> None:
    del hub.repos[REPO]


def write_to_main(hub: "FakeHub", name: str) -> None:
    add = CommitOperationAdd(name, b"by somebody\n")
    somebody(hub).create_commit(REPO, [add], commit_message="mine")


ACTS: dict[str, tuple[Callable[["FakeHub"], object], str, str]] = {
    # what somebody does: how, at which of our requests, and the error that we get
    "closes the request": (
        lambda hub: somebody(hub).change_discussion_status(REPO, 1, "closed"),
        "/merge",
        "cannot merge pull request 1 of alice/model: the Hub says 400",
    ),
    "merges the request before it is full": (
        lambda hub: somebody(hub).merge_pull_request(REPO, 1),
        "/preupload/",
        "main of alice/model has changed meanwhile|was merged meanwhile",
    ),
    "merges the request that is full": (
        lambda hub: somebody(hub).merge_pull_request(REPO, 1),
        "/merge",
        "",
    ),
    "edits the card": (
        lambda hub: write_to_main(hub, "README.md"),
        "/merge",
        r"says 409: .*README\.md",
    ),
    "adds a file to the request": (
        lambda hub: somebody(hub).create_commit(
            REPO,
            [CommitOperationAdd("evil.py", b"import os\n")],
            commit_message="x",
            revision="refs/pr/1",
        ),
        "/validate-yaml",
        r"evil\.py should not be there",
    ),
    "deletes the repository before the upload": (delete, "/preupload/", "says 404"),
    "deletes the repository before the commit": (delete, "/commit/", "says 404"),
    "deletes the repository before the merge": (delete, "/merge", "says 404"),
    "switches pull requests off": (
        lambda hub: hub.rules.update(no_prs=True),
        "/status",
        "says 403: Discussions are disabled",
    ),
    "takes the right to write": (
        lambda hub: hub.tokens["hf_good"].update(role="read"),
        "/commit/",
        "says 403",
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_people_do_meanwhile_is_told_and_the_same_command_completes(
    act: str, hub: "FakeHub", here: Here, small: Path
) -> None:
    do, request, error = ACTS[act]
    meet(hub, request, lambda: do(hub))
    done = here(small)
    hub.rules.clear()
    hub.tokens["hf_good"]["role"] = "write"
    if error:
        assert done.code == 1
        assert len(done.errors) == 1
        assert re.search(error, done.errors[0])
    else:
        assert done.code == 0
    again = here(small)
    assert again.code == 0, again.stderr
    for path in small.iterdir():
        if path.name != "README.md":
            assert hub.content(REPO, path.name) == path.read_bytes()
    assert "evil.py" not in tree(hub)
    assert not {"open", "draft"} & set(states(hub))


@one_leg
def test_a_file_that_somebody_adds_at_the_moment_of_the_merge_stays_and_is_told(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    meet(hub, "/merge", lambda: write_to_main(hub, "NEWS.md"))
    done = here(small)
    assert done.code == 1
    assert "was changed at the same moment: NEWS.md" in done.errors[0]
    assert {"NEWS.md", "model.safetensors"} <= set(tree(hub))
    assert "up to date" in here(small).stdout


@one_leg
def test_a_merge_that_the_hub_only_claims_to_have_made_is_not_told_as_published(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    hub.faults.append({"match": "/merge", "answer": {}})
    done = here(small)
    assert done.errors == ["error: the Hub did not merge into main of alice/model"]
    assert "published" not in done.stderr.splitlines()[-1]
    assert here(small).code == 0
    assert states(hub) == ["merged"]


@one_leg
@pytest.mark.parametrize("options", [(), ("--revision", "fp8")])
def test_a_branch_that_is_protected_is_told_and_nothing_is_published(
    options: tuple[str, ...], hub: "FakeHub", here: Here, small: Path
) -> None:
    words = "You cannot push to a protected branch"
    fault = {"status": 403, "error": words, "times": 9}
    hub.faults.append({"match": "/commit/fp8|/merge"} | fault)
    done = here(small, *options)
    assert done.code == 1
    assert f"the Hub says 403: {words}" in done.errors[0]
    assert set(tree(hub)) == {".gitattributes"}
    hub.faults.clear()
    assert here(small, *options).code == 0


@one_leg
@pytest.mark.parametrize(
    ("request_", "words", "code"),
    [
        (f"GET /api/models/{REPO}$", "Access to this resource is disabled.", ""),
        (f"GET /api/models/{REPO}$", "Access to model alice/model is restricted", "GatedRepo"),
        ("/auth-check/", "This repository is archived and is read-only", ""),
    ],
)
def test_a_repository_that_cannot_be_written_to_is_told_before_a_weight_is_read(
    request_: str, words: str, code: str, hub: "FakeHub", here: Here, small: Path
) -> None:
    assert here(small).code == 0
    before = tree(hub)
    headers = {"X-Error-Message": words, "X-Error-Code": code}
    hub.faults.append({"match": request_, "status": 403, "error": words, "headers": headers})
    (small / "model.safetensors").write_bytes(b"is not read")
    done = here(small)
    assert done.code == 1
    assert words in done.errors[0]
    assert tree(hub) == before


def test_a_repository_that_is_renamed_during_a_push_is_filled_under_its_new_name(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    def rename() -> None:
        hub.repos["alice/new"] = hub.repos.pop(REPO)
        hub.rules["renamed"] = {REPO: "alice/new"}

    meet(hub, "/preupload/", rename)
    done = here(small)
    assert done.code == 0, done.stderr
    assert "model.safetensors" in hub.head("alice/new")[1]
    done = here(small)
    assert done.errors == ["error: alice/model is alice/new now"]
