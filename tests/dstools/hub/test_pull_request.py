"""Our pull request: continued only if it is ours and holds nothing else; merged once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from dstools.hub.client import Hub
from dstools.hub.pull_request import TITLE, begin, merge, open_ones, revision_of
from dstools.hub.remote import Tree, read_tree
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"


@pytest.fixture
def leg() -> str:
    """One leg is enough: nothing large is sent here."""
    return "lfs"


class Repository:
    """A public repository with a README, and what somebody wants to have in it."""

    def __init__(self, hub: "FakeHub", connected: Hub) -> None:
        self.fake, self.hub = hub, connected
        connected.api.create_repo(REPO, private=False)
        self.add("README.md", b"x")
        self.main = read_tree(connected, "main")
        self.add("a.json", b"1", "draft")  # only to have their hashes
        self.add("b.json", b"2", "draft")
        self.wanted: Tree = read_tree(connected, "draft")

    def add(
        self, name: str, content: bytes, revision: str = "main", token: str = "hf_good"
    ) -> None:
        api = HfApi(endpoint=self.fake.url, token=token)
        if revision == "draft":
            api.create_branch(REPO, branch="draft", exist_ok=True)
        operations = [CommitOperationAdd(name, content)]
        api.create_commit(REPO, operations, commit_message="x", revision=revision)

    def begin(self) -> int | None:
        return begin(self.hub, "alice", read_tree(self.hub, "main"), self.wanted)

    def status(self, number: int) -> str:
        return str(self.fake.repos[REPO]["prs"][number]["status"])


@pytest.fixture
def repository(hub: "FakeHub", connect: Callable[..., Hub], clock: Any) -> Repository:
    hub.tokens["hf_else"] = {"name": "mallory", "role": "write"}
    return Repository(hub, connect())


def test_a_new_one_is_opened_and_is_not_a_draft(repository: Repository) -> None:
    assert repository.begin() == 1
    assert repository.status(1) == "open"


def test_one_that_is_half_full_is_continued(repository: Repository) -> None:
    repository.begin()
    repository.add("a.json", b"1", revision_of(1))
    assert repository.begin() == 1


def test_one_whose_status_was_not_yet_changed_is_continued(repository: Repository) -> None:
    repository.hub.api.create_pull_request(REPO, TITLE)
    assert repository.status(1) == "draft"
    assert repository.begin() == 1
    assert repository.status(1) == "open"


def test_a_status_that_the_hub_does_not_change_is_asked_for_once(
    repository: Repository, hub: "FakeHub"
) -> None:
    repository.hub.api.create_pull_request(REPO, TITLE)
    hub.faults.append({"match": "/status", "status": 200})
    hub.log.clear()
    with pytest.raises(DstoolsError):  # an answer without fields
        repository.begin()
    assert len([entry for entry in hub.log if entry["p"].endswith("/status")]) == 1


def test_that_of_a_stranger_is_left_alone_whatever_its_title(
    repository: Repository, hub: "FakeHub"
) -> None:
    other = HfApi(endpoint=hub.url, token="hf_else")
    other.create_pull_request(REPO, TITLE)
    assert [pr.num for pr in open_ones(repository.hub, "alice") or ()] == []
    assert repository.begin() == 2
    assert repository.status(1) == "draft"


def test_one_of_another_purpose_is_left_alone(repository: Repository) -> None:
    repository.hub.api.create_pull_request(REPO, "Mend the card")
    assert repository.begin() == 2
    assert repository.status(1) == "draft"


@pytest.mark.parametrize(
    ("name", "content"), [("evil.py", b"import os"), ("a.json", b"rotted"), ("README.md", b"other")]
)
def test_one_with_a_foreign_file_is_closed_and_replaced(
    name: str, content: bytes, repository: Repository
) -> None:
    repository.begin()
    repository.add(name, content, revision_of(1))
    assert repository.begin() == 2
    assert repository.status(1) == "closed"


def test_one_that_was_opened_on_an_older_main_is_replaced(repository: Repository) -> None:
    repository.begin()
    repository.add("new.md", b"by somebody")
    repository.wanted |= read_tree(repository.hub, "main")
    assert repository.begin() == 2
    assert repository.status(1) == "closed"


def test_one_that_already_lacks_what_will_be_removed_is_continued(repository: Repository) -> None:
    repository.add("old.bin", b"x")
    assert repository.begin() == 1
    repository.hub.api.create_commit(
        REPO, [CommitOperationDelete("old.bin")], commit_message="x", revision=revision_of(1)
    )
    assert repository.begin() == 1


def test_pull_requests_that_are_off_are_told_from_none(
    repository: Repository, hub: "FakeHub"
) -> None:
    assert open_ones(repository.hub, "alice") == []
    hub.rules["no_prs"] = True
    assert open_ones(repository.hub, "alice") is None
    with pytest.raises(DstoolsError, match="says 403") as error:
        repository.begin()
    assert "--revision main" in error.value.hint


def test_one_whose_answer_was_lost_is_not_opened_twice(
    repository: Repository, hub: "FakeHub"
) -> None:
    hub.faults.append({"match": "POST .*/discussions$", "drop": "after"})
    assert repository.begin() == 1
    assert len(hub.repos[REPO]["prs"]) == 1


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"drop": "after"}])
@pytest.mark.parametrize("call", ["/status", "/merge", "/discussions$"])
def test_each_call_is_made_again_until_it_has_happened_once(
    call: str, fault: dict[str, Any], repository: Repository, hub: "FakeHub"
) -> None:
    hub.faults.append({"match": f"POST .*{call}"} | fault)
    number = repository.begin()
    assert number == 1
    repository.add("a.json", b"1", revision_of(1))
    merge(repository.hub, number)
    assert repository.status(1) == "merged"
    assert hub.content(REPO, "a.json") == b"1"
    assert len(hub.repos[REPO]["prs"]) == 1


def test_a_conflict_is_an_error_with_the_files(repository: Repository) -> None:
    repository.begin()
    repository.add("README.md", b"mine", revision_of(1))
    repository.add("README.md", b"theirs")
    with pytest.raises(DstoolsError, match=r"says 409: .*README\.md") as error:
        merge(repository.hub, 1)
    assert "same command again" in error.value.hint
