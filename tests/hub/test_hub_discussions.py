"""The local Hub has the real one's rules for pull requests, files and storage."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

if TYPE_CHECKING:
    from fakehub import FakeHub

from hub_calls import REPO, add, one_leg, requests, status_of

pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)


@one_leg
def test_pull_requests_are_listed_by_status_and_author(
    hub: "FakeHub", api: HfApi, connect: Callable[[str], HfApi]
) -> None:
    hub.tokens["hf_else"] = {"name": "mallory", "role": "write"}
    api.create_repo(REPO)
    for number in range(1, 12):  # more than a page
        api.create_pull_request(REPO, title=f"mine {number}")
    connect("hf_else").create_pull_request(REPO, title="hers")
    connect("hf_else").create_discussion(REPO, title="a question")
    api.change_discussion_status(REPO, 3, "closed")

    def numbers(**options: Any) -> list[int]:
        return [found.num for found in api.get_repo_discussions(REPO, **options)]

    assert numbers() == list(range(13, 0, -1))
    pages = [entry for entry in requests(hub, "GET") if entry["p"].endswith("/discussions")]
    assert [page["q"]["p"] for page in pages] == ["0", "1"]
    assert numbers(author="mallory", discussion_type="pull_request") == [12]
    assert numbers(discussion_status="closed") == [3]
    assert numbers(discussion_status="open", author="alice") == [11, 10, 9, 8, 7, 6, 5, 4, 2, 1]
    first = api.get_discussion_details(REPO, 12)
    assert (first.author, first.status, first.title) == ("mallory", "draft", "hers")


@one_leg
def test_a_draft_is_not_merged_and_a_closed_one_neither(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    pull = api.create_pull_request(REPO, title="t")
    for status in ("draft", "closed"):
        if status == "closed":
            api.change_discussion_status(REPO, pull.num, "closed")
        with pytest.raises(HfHubHTTPError, match=f"is {status}") as error:
            api.merge_pull_request(REPO, pull.num)
        assert status_of(error) == 400


@one_leg
def test_a_stranger_writes_to_a_pull_request_of_their_own_and_merges_nothing(
    hub: "FakeHub", api: HfApi, connect: Callable[[str], HfApi]
) -> None:
    hub.tokens["hf_else"] = {"name": "mallory", "role": "write"}
    stranger = connect("hf_else")
    api.create_repo(REPO)
    mine = api.create_pull_request(REPO, title="mine")
    hers = stranger.create_pull_request(REPO, title="hers")
    add(stranger, "x", b"x", revision=hers.git_reference)
    assert add(stranger, "y", b"y", create_pr=True).pr_num == 3
    stranger.change_discussion_status(REPO, hers.num, "open")
    for call in (
        lambda: add(stranger, "x", b"x", revision=mine.git_reference),
        lambda: stranger.change_discussion_status(REPO, mine.num, "closed"),
        lambda: stranger.merge_pull_request(REPO, hers.num),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 403


@one_leg
def test_a_merge_keeps_what_others_committed_and_refuses_a_conflict(
    hub: "FakeHub", api: HfApi
) -> None:
    api.create_repo(REPO)
    add(api, "both", b"before")
    for number, path in ((1, "mine"), (2, "both")):
        pull = api.create_pull_request(REPO, title="t")
        add(api, path, b"in the pull request", revision=pull.git_reference)
        api.change_discussion_status(REPO, number, "open")
    add(api, "theirs", b"theirs")
    add(api, "both", b"on main")
    api.merge_pull_request(REPO, 1)
    assert hub.content(REPO, "theirs") == b"theirs"
    assert hub.content(REPO, "mine") == b"in the pull request"
    assert api.get_discussion_details(REPO, 2).conflicting_files == ["both"]
    with pytest.raises(HfHubHTTPError, match="both") as error:
        api.merge_pull_request(REPO, 2)
    assert status_of(error) == 409
    assert hub.content(REPO, "both") == b"on main"


@one_leg
def test_discussions_can_be_off(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    hub.rules["no_prs"] = True
    for call in (
        lambda: api.create_pull_request(REPO, title="t"),
        lambda: list(api.get_repo_discussions(REPO)),
        lambda: add(api, "x", b"x", create_pr=True),
    ):
        with pytest.raises(HfHubHTTPError, match="Discussions are disabled") as error:
            call()
        assert status_of(error) == 403


@one_leg
def test_somebody_can_act_when_a_pull_request_opens(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    pull = api.create_pull_request(REPO, title="t")
    seen = []
    hub.rules["on_open"] = lambda hub, repo, number: seen.append((hub.url, repo, number))
    api.change_discussion_status(REPO, pull.num, "open")
    assert seen == [(hub.url, REPO, 1)]


@pytest.mark.parametrize("where", ["in the repository", "in the commit"])
def test_a_gitignore_makes_the_client_skip_files(hub: "FakeHub", api: HfApi, where: str) -> None:
    ignore = CommitOperationAdd(".gitignore", b"# weights\n*.safetensors\n")
    weights = CommitOperationAdd("model.safetensors", b"x" * 20_000)
    small = CommitOperationAdd("config.json", b"{}")
    api.create_repo(REPO)
    if where == "in the repository":
        api.create_commit(REPO, [ignore], commit_message="ignore")
        api.create_commit(REPO, [weights, small], commit_message="model")
    else:
        api.create_commit(REPO, [ignore, weights, small], commit_message="model")
    assert set(hub.head(REPO)[1]) == {".gitattributes", ".gitignore", "config.json"}


def test_a_private_repository_has_a_quota_and_a_public_one_has_not(
    hub: "FakeHub", api: HfApi
) -> None:
    hub.rules["quota"] = 10_000
    for private in (False, True):
        repo = f"alice/{private}"
        api.create_repo(repo, private=private)
        file = CommitOperationAdd("model.safetensors", os.urandom(20_000))
        if private:
            with pytest.raises(HfHubHTTPError, match="storage limit") as error:
                api.create_commit(repo, [file], commit_message="model")
            assert status_of(error) == 403
        else:
            api.create_commit(repo, [file], commit_message="model")


@one_leg
def test_an_organization_can_forbid_public_repositories(hub: "FakeHub", api: HfApi) -> None:
    hub.rules["no_public"] = True
    with pytest.raises(HfHubHTTPError, match="forbids") as error:
        api.create_repo(REPO)
    assert status_of(error) == 403
    api.create_repo(REPO, private=True)
