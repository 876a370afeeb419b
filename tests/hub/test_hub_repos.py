"""The local Hub keeps repositories, branches and commits as the real one does."""

from typing import TYPE_CHECKING

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

if TYPE_CHECKING:
    from fakehub import FakeHub

from hub_calls import REPO, add, one_leg, requests, status_of

pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)


@one_leg
def test_an_existing_repository_is_a_409_and_keeps_its_visibility(
    hub: "FakeHub", api: HfApi
) -> None:
    api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo(REPO)
    assert status_of(error) == 409
    api.create_repo(REPO, private=True, exist_ok=True)
    assert not hub.repos[REPO]["private"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]


@one_leg
def test_a_tree_comes_in_pages_with_its_folders(hub: "FakeHub", api: HfApi) -> None:
    hub.page_size = 4
    api.create_repo(REPO)
    operations = [CommitOperationAdd(f"a/b/{n}.txt", b"x") for n in range(9)]
    api.create_commit(REPO, operations, commit_message="files")
    paths = [entry.path for entry in api.list_repo_tree(REPO, recursive=True)]
    assert paths == [".gitattributes", "a", "a/b", *(f"a/b/{n}.txt" for n in range(9))]
    assert len(requests(hub, "/tree/")) == 3
    assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "a"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "a")] == ["a/b"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision="nothing"))
    assert [entry.path for entry in api.get_paths_info(REPO, ["a/b/1.txt", "no"])] == ["a/b/1.txt"]


@one_leg
def test_a_commit_on_top_of_another_than_its_parent_is_refused(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    first = hub.head(REPO)[0]
    add(api, "x", b"1", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        add(api, "x", b"2", parent_commit=first)
    assert status_of(error) == 412
    assert hub.content(REPO, "x") == b"1"


@one_leg
def test_files_and_folders_are_deleted(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    for path in ("a/1", "a/2", "b"):
        add(api, path, b"x")
    api.create_commit(
        REPO, [CommitOperationDelete("a/"), CommitOperationDelete("b")], commit_message="delete"
    )
    assert set(hub.head(REPO)[1]) == {".gitattributes"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("b", REPO)


@one_leg
def test_branches_are_separate(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_branch(REPO, branch="fp8/v1")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(REPO, branch="fp8/v1")
    assert status_of(error) == 409
    add(api, "x", b"x", revision="fp8/v1")
    assert "x" not in hub.head(REPO)[1]
    assert "x" in hub.head(REPO, "fp8/v1")[1]
    api.create_pull_request(REPO, title="t")
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["fp8/v1", "main"]
    assert [pull.ref for pull in refs.pull_requests or []] == ["refs/pr/1"]
    api.delete_branch(REPO, branch="fp8/v1")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="fp8/v1")


def test_a_commit_that_names_a_file_that_was_never_sent_is_refused(
    hub: "FakeHub", api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo(REPO)
    monkeypatch.setattr("huggingface_hub._commit_api._upload_files", lambda **_: None)
    with pytest.raises(HfHubHTTPError, match="LFS pointer"):
        add(api, "model.safetensors", b"x")
    assert "model.safetensors" not in hub.head(REPO)[1]
