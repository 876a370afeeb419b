"""The local Hub lets an account do what the real one does, as far as that is known."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

if TYPE_CHECKING:
    from fakehub import FakeHub

from hub_calls import REPO, add, one_leg, status_of

pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)


@one_leg
def test_whoami_names_plan_organizations_and_what_a_token_may_do(
    hub: "FakeHub", connect: Callable[[str], HfApi]
) -> None:
    hub.tokens["hf_pro"] = {"name": "bob", "role": "fineGrained", "isPro": True}
    hub.tokens["hf_pro"] |= {"orgs": {"lab": "write"}, "scopes": {"lab/model": ["repo.write"]}}
    account = connect("hf_pro").whoami()
    assert (account["name"], account["isPro"], account["orgs"][0]["name"]) == ("bob", True, "lab")
    scoped = account["auth"]["accessToken"]["fineGrained"]["scoped"]
    wanted = {"entity": {"type": "model", "name": "lab/model"}, "permissions": ["repo.write"]}
    assert scoped == [wanted]


@one_leg
@pytest.mark.parametrize(
    ("token", "text"),
    [({"name": "alice", "role": "write", "expired": True}, "expired"), (None, "Invalid")],
)
def test_a_token_that_is_not_valid_is_told_at_every_call(
    hub: "FakeHub", connect: Callable[[str], HfApi], token: dict[str, Any] | None, text: str
) -> None:
    if token:
        hub.tokens["hf_bad"] = token
    with pytest.raises(HfHubHTTPError, match=text) as error:
        connect("hf_bad").create_repo(REPO)
    assert status_of(error) == 401
    with pytest.raises(HfHubHTTPError) as error:
        connect("hf_bad").whoami()
    assert status_of(error) == 401


@one_leg
def test_a_private_repository_does_not_exist_for_others(
    hub: "FakeHub", api: HfApi, connect: Callable[[str], HfApi], tmp_path: Path
) -> None:
    hub.tokens["hf_else"] = {"name": "mallory", "role": "write"}
    api.create_repo(REPO, private=True)
    for call in (
        lambda other: other.repo_info(REPO),
        lambda other: list(other.list_repo_tree(REPO)),
        lambda other: other.auth_check(REPO),
        lambda other: list(other.get_repo_discussions(REPO)),
        lambda other: other.hf_hub_download(REPO, ".gitattributes", cache_dir=tmp_path),
    ):
        with pytest.raises(RepositoryNotFoundError) as error:
            call(connect("hf_else"))
        assert status_of(error) == 404
    hub.repos[REPO]["private"] = False
    assert connect("hf_else").repo_info(REPO).sha == hub.head(REPO)[0]


@one_leg
@pytest.mark.parametrize(
    ("token", "may"),
    [
        ({"name": "alice", "role": "write"}, True),
        ({"name": "alice", "role": "read"}, False),
        ({"name": "mallory", "role": "write"}, False),
        ({"name": "alice", "role": "fineGrained", "scopes": {REPO: ["repo.write"]}}, True),
        ({"name": "alice", "role": "fineGrained", "scopes": {"alice": ["repo.write"]}}, True),
        ({"name": "alice", "role": "fineGrained", "scopes": {"alice/x": ["repo.write"]}}, False),
        ({"name": "alice", "role": "fineGrained", "scopes": {REPO: ["repo.content.read"]}}, False),
    ],
)
def test_auth_check_and_a_commit_agree_on_who_may_write(
    hub: "FakeHub", api: HfApi, connect: Callable[[str], HfApi], token: dict[str, Any], may: bool
) -> None:
    api.create_repo(REPO)
    hub.tokens["hf_x"] = token
    other = connect("hf_x")
    other.auth_check(REPO)
    for call in (lambda: other.auth_check(REPO, write=True), lambda: add(other, "x", b"x")):
        if may:
            call()
        else:
            with pytest.raises(HfHubHTTPError) as error:
                call()
            assert status_of(error) == 403


@one_leg
def test_an_organization_is_written_to_by_its_writers(
    hub: "FakeHub", connect: Callable[[str], HfApi]
) -> None:
    for role in ("write", "read"):
        hub.tokens[f"hf_{role}"] = {"name": role, "role": "write", "orgs": {"lab": role}}
    connect("hf_write").create_repo("lab/model", private=True)
    assert connect("hf_read").repo_info("lab/model").private
    with pytest.raises(HfHubHTTPError, match='create a model under the namespace "lab"') as error:
        connect("hf_read").create_repo("lab/other")
    assert status_of(error) == 403
