"""The local Hub answers the real client as the real one does, as far as that is known."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"
ODD_NAMES = ["a b.txt", "plots/acc[fp8].png", "100%.txt", "c#.json", "why?.md", "ü+&=.txt"]
pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)


@pytest.fixture
def connect(hub: "FakeHub", leg: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], HfApi]:
    """connect(token): the real client in this process; its module read the environment before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", leg == "lfs")
    return lambda token: HfApi(endpoint=hub.url, token=token)


@pytest.fixture
def api(connect: Callable[[str], HfApi]) -> HfApi:
    return connect("hf_good")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in three shards, with names that need quoting."""
    folder = tmp_path / "model"
    (folder / "plots").mkdir(parents=True)
    for name in ODD_NAMES:
        (folder / name).write_bytes(name.encode())
    for shard in range(3):
        (folder / f"model-{shard}.safetensors").write_bytes(os.urandom(300_000))
    (folder / "config.json").write_text("{}")
    return folder


def sha256s(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }


def add(api: HfApi, path: str, content: bytes, **options: Any) -> Any:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit(REPO, operations, commit_message=f"add {path}", **options)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def requests(hub: "FakeHub", text: str) -> list[dict[str, Any]]:
    return [entry for entry in hub.log if text in f"{entry['m']} {entry['p']}"]


# -------------------------------------------------------------------------------------- round trips


def test_a_folder_through_a_pull_request_comes_back_byte_for_byte(
    hub: "FakeHub", api: HfApi, folder: Path, tmp_path: Path, leg: str
) -> None:
    api.create_repo(REPO, private=True)
    pull = api.create_pull_request(REPO, title="Upload")
    api.upload_folder(repo_id=REPO, folder_path=folder, revision=pull.git_reference)
    assert set(hub.head(REPO)[1]) == {".gitattributes"}
    assert api.verify_repo_checksums(REPO, revision=pull.git_reference, local_dir=folder)
    api.change_discussion_status(REPO, pull.num, "open")
    api.merge_pull_request(REPO, pull.num)
    details = api.get_discussion_details(REPO, pull.num)
    assert (details.status, details.merge_commit_oid) == ("merged", hub.head(REPO)[0])
    api.snapshot_download(REPO, local_dir=tmp_path / "back")
    assert sha256s(tmp_path / "back") == sha256s(folder)
    for path in sorted(folder.rglob("*.*")):
        assert hub.content(REPO, str(path.relative_to(folder))) == path.read_bytes()
    assert bool(requests(hub, "PUT /lfs/")) == (leg == "lfs")
    assert bool(requests(hub, "xet-write-token")) == (leg == "xet")


def test_a_file_of_several_parts_is_put_together(hub: "FakeHub", api: HfApi) -> None:
    content = os.urandom(5_000_001)
    api.create_repo(REPO)
    add(api, "model.safetensors", content)
    assert hub.content(REPO, "model.safetensors") == content


@pytest.mark.parametrize("leg", ["xet"], indirect=True)
def test_what_xet_stored_is_downloaded_without_xet_too(
    hub: "FakeHub", api: HfApi, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    path = api.hf_hub_download(REPO, "model-1.safetensors", local_dir=tmp_path / "back")
    assert Path(path).read_bytes() == (folder / "model-1.safetensors").read_bytes()


def test_hf_download_and_from_pretrained_find_a_model(
    hub: "FakeHub", api: HfApi, tiny: Path, tmp_path: Path
) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=tiny)
    code = f"""
import sys
from pathlib import Path
from huggingface_hub.cli.hf import main
from transformers import AutoModelForCausalLM
assert AutoModelForCausalLM.from_pretrained("{REPO}").config.model_type == "deepseek_v3"
sys.argv = ["hf", "download", "{REPO}", "--local-dir", {str(tmp_path / "back")!r}]
main()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sha256s(tmp_path / "back") == sha256s(tiny)


@one_leg
def test_703_files_at_once_lose_no_commit(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)

    def send(number: int) -> None:
        add(api, f"{number}.txt", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(48)))
    operations = [CommitOperationAdd(f"more/{n}.txt", b"%d" % n) for n in range(655)]
    api.create_commit(REPO, operations, commit_message="more")
    assert len(hub.head(REPO)[1]) == 703 + 1
    assert len(api.list_repo_commits(REPO)) == 48 + 2


@one_leg
def test_a_large_body_goes_to_disk_and_not_into_memory(hub: "FakeHub", tmp_path: Path) -> None:
    code = """
import http.client, os, resource, subprocess, sys
server = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
host = server.stdout.readline().decode().strip().removeprefix("http://")
connection = http.client.HTTPConnection(host)
size = {"Content-Length": os.path.getsize(sys.argv[3])}
connection.request("PUT", "/lfs/" + sys.argv[4], open(sys.argv[3], "rb"), size)
assert connection.getresponse().status == 200
server.terminate()
server.wait()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    with large.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    server = Path(sys.modules["fakehub"].__file__ or "")
    arguments = [str(server), str(tmp_path / "state"), str(large), sha256]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    assert int(done.stdout) < 100_000  # KiB
    assert (tmp_path / "state" / "lfs" / sha256).stat().st_size == 300_000_000


# ----------------------------------------------------------------------------------------- accounts


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


# ------------------------------------------------------------------------- repositories and commits


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


# -------------------------------------------------------------------------------------------- rules


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


# ------------------------------------------------------------------------------------------- faults


@one_leg
def test_a_fault_has_status_text_headers_times_and_skip(hub: "FakeHub", api: HfApi) -> None:
    limit = {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=100;w=300'}
    hub.faults.append(
        {"match": "GET /api/whoami", "status": 429, "skip": 1, "times": 2, "headers": limit}
    )
    hub.faults.append({"match": "POST /api/repos", "status": 500, "error": "out of luck"})
    api.whoami()
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            api.whoami()
        assert error.value.response.headers["RateLimit"] == '"api";r=0;t=7'
    api.whoami()
    with pytest.raises(HfHubHTTPError, match="out of luck") as error:
        api.create_repo(REPO)
    assert status_of(error) == 500
    assert [entry["status"] for entry in requests(hub, "whoami")] == [200, 429, 429, 200]


@one_leg
@pytest.mark.parametrize(("drop", "done"), [("before", False), ("body", False), ("after", True)])
def test_a_dropped_commit_is_done_only_if_the_answer_was_what_got_lost(
    hub: "FakeHub", api: HfApi, drop: str, done: bool
) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "/commit/", "drop": drop})
    with pytest.raises(Exception, match=r"disconnected|reset|closed"):
        add(api, "x", b"x" * 9_000)
    assert ("x" in hub.head(REPO)[1]) == done
    assert requests(hub, "/commit/")[0]["status"] == "dropped"
    assert (requests(hub, "/commit/")[0]["bytes"] > 0) == (drop != "before")


@one_leg
def test_an_upload_that_is_cut_is_sent_again(hub: "FakeHub", api: HfApi) -> None:
    content = os.urandom(3_000_000)
    api.create_repo(REPO)
    hub.faults.append({"match": "PUT /lfs/", "drop": "body"})
    add(api, "model.safetensors", content)
    assert hub.content(REPO, "model.safetensors") == content
    cut, whole = (entry["bytes"] for entry in requests(hub, "PUT /lfs/"))
    assert 0 < cut < whole == 3_000_000


@one_leg
@pytest.mark.parametrize("size", [20_000, 5_000_001])
def test_a_rotten_byte_in_a_large_file_is_refused(hub: "FakeHub", api: HfApi, size: int) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "PUT /lfs/", "corrupt": True})
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        add(api, "model.safetensors", os.urandom(size))
    assert list((hub.root / "lfs").iterdir()) == []


def test_a_rotten_byte_in_a_small_file_is_stored(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "/commit/", "corrupt": True})
    operations = [CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("x", b"xy")]
    api.create_commit(REPO, operations, commit_message="model")
    assert hub.content(REPO, "config.json") == b"z}"  # { is 0x7b, z is 0x7a
    assert hub.content(REPO, "x") == b"xy"


@one_leg
def test_a_delay_is_waited(hub: "FakeHub", api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("hub_http.time.sleep", waited.append)
    hub.faults.append({"match": "whoami", "delay": 30})
    api.whoami()
    assert 30 in waited


@one_leg
def test_yaml_that_cannot_be_read_is_refused_before_anything_is_sent(
    hub: "FakeHub", api: HfApi
) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="bad yaml"):
        add(api, "README.md", b"---\nlicense: [\n---\n# Model\n")
    add(api, "README.md", b"---\nlicense: mit\n---\n# Model\n")
    assert "README.md" in hub.head(REPO)[1]
