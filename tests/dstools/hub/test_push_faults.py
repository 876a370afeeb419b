"""A push against a Hub that fails at any one call: all is published, or one line says why not.

The calls are those of three pushes: to a new repository, to one that somebody filled before and in
which an old pull request of ours is open, and to a new branch. Each is met by each fault, for a
moment and for good, and the same command completes afterwards.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from dstools.hub.pull_request import TITLE

if TYPE_CHECKING:
    from fakehub import FakeHub

Here = Callable[..., Any]
Tree = dict[str, str]  # file -> git's name of it
REPO = "alice/model"
MODEL = f"/api/models/{REPO}"
BRANCH = ("--revision", "fp8")
REF = r"(main|fp8|refs/pr/\d+)"
LFS = f"/{REPO}.git/info/lfs/objects"

# the call -> the push that makes it, and its request
CALLS = {
    "whoami": ("new", r"GET /api/whoami-v2"),
    "repository": ("new", rf"GET {MODEL}"),
    "create": ("new", r"POST /api/repos/create"),
    "head": ("new", rf"GET {MODEL}/revision/main"),
    "tree of a commit": ("new", rf"GET {MODEL}/tree/[0-9a-f]{{40}}"),
    "tree of the request": ("new", rf"GET {MODEL}/tree/refs/pr/[13]"),
    "tree of main": ("new", rf"GET {MODEL}/tree/main"),
    "pull requests": ("new", rf"GET {MODEL}/discussions"),
    "open a request": ("new", rf"POST {MODEL}/discussions"),
    "details": ("new", rf"GET {MODEL}/discussions/\d+"),
    "status": ("new", rf"POST {MODEL}/discussions/\d+/status"),
    "preupload": ("new", rf"POST {MODEL}/preupload/{REF}"),
    "validate the card": ("new", r"POST /api/validate-yaml"),
    "commit": ("new", rf"POST {MODEL}/commit/{REF}"),
    "merge": ("new", rf"POST {MODEL}/discussions/\d+/merge"),
    "write access": ("old", rf"GET {MODEL}/auth-check/write"),
    "card": ("old", rf"GET /{REPO}/resolve/[0-9a-f]{{40}}/README\.md"),
    "close a request": ("old", rf"POST {MODEL}/discussions/2/status"),
    "tree of an old request": ("old", rf"GET {MODEL}/tree/refs/pr/2"),
    "branch": ("branch", rf"POST {MODEL}/branch/fp8"),
    "head of a branch": ("branch", rf"GET {MODEL}/revision/fp8"),
    "tree of a branch": ("branch", rf"GET {MODEL}/tree/fp8"),
    "commit to a branch": ("branch", rf"POST {MODEL}/commit/fp8"),
}
OF_XET = {"token of Xet": ("new", rf"GET {MODEL}/xet-write-token/{REF}")}
OF_LFS = {
    "batch": ("new", rf"POST {LFS}/batch"),
    "upload": ("new", r"PUT /lfs/[0-9a-f]{64}"),
    "upload of a part": ("new", r"PUT /lfs/[0-9a-f]{64}/\d"),
    "complete": ("new", r"POST /lfs/[0-9a-f]{64}"),
    "verify": ("new", rf"POST {LFS}/verify"),
}
OF_LEG = {"xet": CALLS | OF_XET, "lfs": CALLS | OF_LFS}
each_call = pytest.mark.parametrize(
    ("leg", "call"), [(leg, call) for leg in OF_LEG for call in OF_LEG[leg]], indirect=["leg"]
)
LONG = {"RateLimit": '"api";r=0;t=3000'}
PASSING: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503, "headers": {"Retry-After": "2"}},
    "429": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=3'}},
    "dropped before": {"drop": "before"},
    "dropped in the body": {"drop": "body"},
    "answer lost": {"drop": "after"},
    "504 after the work": {"status": 504, "late": True},
}
LASTING: dict[str, tuple[dict[str, Any], str]] = {
    "500": ({"status": 500}, "the Hub says 500"),
    "429": ({"status": 429, "headers": LONG}, "limit of api requests is reached for 3000 s"),
    "dropped": ({"drop": "before"}, "the Hub does not answer"),
}
REFUSED = {401: "(the token from HF_TOKEN)", 403: "the Hub says 403", 413: "the Hub says 413"}


# what they answer with is not read, but what they did is looked at afterwards
HARMLESS = ("create", "write access", "status", "close a request", "validate the card", "verify")


class Scene:
    """A Hub in the state in which a push begins, as often as it is set up anew."""

    def __init__(self, hub: "FakeHub", here: Here, folder: Path, kind: str) -> None:
        self.hub, self.here, self.folder, self.kind = hub, here, folder, kind
        hub.multipart_at, hub.part_size = 30_000, 20_000  # the weights are sent in parts
        self.options = BRANCH if kind == "branch" else ()
        self.ref = "fp8" if kind == "branch" else "main"
        if kind == "old":
            self.fill()
        self.state = copy.deepcopy((hub.repos, hub.commits))
        self.before = self.tree("main")
        done = here(folder, *self.options)
        assert done.code == 0, done.stderr
        self.log = list(hub.log)
        self.after = self.tree(self.ref)

    def fill(self) -> None:
        """Publish other files, and leave a pull request behind that somebody has touched."""
        loss, card = self.folder / "loss.png", self.folder / "README.md"
        kept = loss.read_bytes(), card.read_bytes()
        loss.write_bytes(kept[0][::-1])
        card.write_bytes(kept[1] + b"Old words.\n")
        assert self.here(self.folder).code == 0
        loss.write_bytes(kept[0])
        card.write_bytes(kept[1])
        api = HfApi(endpoint=self.hub.url, token="hf_good")
        api.create_pull_request(REPO, TITLE)
        add = CommitOperationAdd("foreign.py", b"x")
        api.create_commit(REPO, [add], commit_message="x", revision="refs/pr/2")
        self.hub.log.clear()

    def tree(self, ref: str) -> Tree | None:
        if REPO not in self.hub.repos or ref not in self.hub.repos[REPO]["refs"]:
            return None
        return {name: file["oid"] for name, file in self.hub.head(REPO, ref)[1].items()}

    def begin(self) -> None:
        """Take everything back that a push did."""
        self.hub.repos, self.hub.commits = copy.deepcopy(self.state)
        self.hub.log.clear()
        self.hub.faults.clear()
        for path in (self.hub.root / "lfs").iterdir():
            path.unlink()

    def push(self) -> Any:
        """Push; the branch is then as before or whole, and an error is one clear line."""
        done = self.here(self.folder, *self.options)
        empty = self.hub.commits and {".gitattributes"}
        main = self.tree("main")
        if self.ref == "main":
            assert main in (None, self.before, self.after) or main.keys() == empty
        else:
            assert main is None or main.keys() == empty
            assert self.tree(self.ref) in (None, main, self.after)
        if done.code == 0:
            assert self.tree(self.ref) == self.after
        else:
            assert done.code == 1
            assert len(done.errors) == 1, done.stderr
            assert done.stderr.splitlines()[-2] == done.errors[0]
            assert done.stderr.splitlines()[-1].startswith("hint: ")
            assert "--debug" not in done.stderr
        return done

    def complete(self) -> None:
        """Run the same command again, undisturbed: all is published, by one pull request."""
        self.hub.faults.clear()
        done = self.push()
        assert done.code == 0, done.stderr
        requests = self.hub.repos[REPO]["prs"].values()
        assert {request["status"] for request in requests} <= {"merged", "closed"}


@pytest.fixture
def scene(request: pytest.FixtureRequest, hub: "FakeHub", here: Here, small: Path) -> Scene:
    call, leg = request.getfixturevalue("call"), request.getfixturevalue("leg")
    return Scene(hub, here, small, OF_LEG[leg][call][0])


def met(scene: Scene, leg: str, call: str, faults: Any, times: int) -> Iterator[str]:
    """Yield the name of each fault, which the next push will meet at this call."""
    for name, fault in faults:
        scene.begin()
        scene.hub.faults.append({"match": f"^{OF_LEG[leg][call][1]}$", "times": times} | fault)
        yield name
        assert scene.hub.faults == [] or scene.hub.faults[0]["times"] < times, "was not met"


def check_that_what_passes_changes_nothing(scene: Scene, leg: str, call: str) -> None:
    for name in met(scene, leg, call, PASSING.items(), 1):
        done = scene.push()
        assert done.code == 0, (name, done.stderr)


def check_that_what_stays_is_one_line(scene: Scene, leg: str, call: str) -> None:
    faults = [(words, fault) for fault, words in LASTING.values()]
    for words in met(scene, leg, call, faults, 10**6):
        done = scene.push()
        if done.code == 0:  # what was stored is not asked about by the next attempt
            assert call == "verify"
            continue
        assert done.code == 1, words
        if not (call == "token of Xet" and "limit" in words):  # hf_xet does not pass it on
            assert words in done.errors[0]
        assert "the same command continues" in done.stderr
        scene.complete()


def check_that_a_refusal_is_passed_on(scene: Scene, leg: str, call: str) -> None:
    takes_files = call in ("preupload", "upload", "commit", "commit to a branch")
    faults = [
        (words, {"status": status})
        for status, words in REFUSED.items()
        if status != 413 or takes_files
    ]
    for words in met(scene, leg, call, faults, 10**6):
        done = scene.push()
        if done.code == 0:  # without pull requests, a push is one commit
            assert call in ("pull requests", "open a request")
            assert "403" in words
        else:
            assert words in done.errors[0]
            scene.complete()


def check_that_an_answer_of_another_host_is_one_line(scene: Scene, leg: str, call: str) -> None:
    pages = [
        ("HTML", {"answer": b"<html>Welcome</html>"}),
        ("other fields", {"answer": {"other": "fields"}}),
    ]
    for name in met(scene, leg, call, pages, 10**6):
        done = scene.push()
        assert done.code == 1 or call in HARMLESS, (name, done.stdout)
    scene.complete()


@each_call
def test_a_fault_at_any_call_is_survived_or_one_line_and_the_same_command_completes(
    scene: Scene, leg: str, call: str
) -> None:
    """In one test for each call, as every other one has to begin with a whole push."""
    check_that_what_passes_changes_nothing(scene, leg, call)
    check_that_what_stays_is_one_line(scene, leg, call)
    check_that_a_refusal_is_passed_on(scene, leg, call)
    check_that_an_answer_of_another_host_is_one_line(scene, leg, call)


@pytest.mark.parametrize("kind", ["new", "old", "branch"])
def test_every_request_of_a_push_is_among_these_calls(
    kind: str, hub: "FakeHub", here: Here, small: Path, leg: str
) -> None:
    patterns = [pattern for _, pattern in OF_LEG[leg].values()]
    for entry in Scene(hub, here, small, kind).log:
        request = f"{entry['m']} {entry['p']}"
        assert any(re.fullmatch(pattern, request) for pattern in patterns), request


@pytest.mark.slow
@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 401}, {"answer": b"<html>"}])
def test_what_the_client_asks_once_in_a_process_may_fail(
    fault: dict[str, Any], hub: "FakeHub", push: Callable[..., Any], small: Path
) -> None:
    hub.faults.append({"match": "GET /api/agent-harnesses", "times": 10**6} | fault)
    done = push(small, REPO, "--base", "none", "--yes")
    assert done.code == 0, done.stderr
    assert hub.faults[0]["times"] < 10**6


@pytest.mark.parametrize("kind", ["new", "branch"])
def test_a_token_that_expires_at_any_moment_is_called_that_and_another_one_completes(
    kind: str, hub: "FakeHub", here: Here, small: Path
) -> None:
    scene = Scene(hub, here, small, kind)
    token = hub.tokens["hf_good"]
    for moment in range(len(scene.log)):
        scene.begin()
        expire = {"match": "", "skip": moment, "call": lambda: token.update(expired=True)}
        hub.faults.append(expire)
        done = scene.push()
        token.pop("expired", None)
        assert done.code == 1 or moment == len(scene.log) - 1
        if done.code == 1:
            assert "says 401" in done.errors[0]
            assert "(the token from HF_TOKEN)" in done.errors[0]
            assert "hf auth login" in done.stderr
        scene.complete()


@pytest.mark.parametrize("fault", ["answer lost", "500"])
def test_each_single_request_may_fail_once(
    fault: str, hub: "FakeHub", here: Here, small: Path
) -> None:
    scene = Scene(hub, here, small, "new")
    for moment in range(len(scene.log)):
        scene.begin()
        hub.faults.append({"match": "", "skip": moment} | PASSING[fault])
        done = scene.push()
        assert done.code == 0, done.stderr
        assert {pr["status"] for pr in hub.repos[REPO]["prs"].values()} == {"merged"}
        assert len(hub.repos[REPO]["prs"]) == 1


def test_a_rotted_byte_of_a_small_file_is_found_before_the_merge(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    scene = Scene(hub, here, small, "new")
    scene.begin()
    hub.faults.append({"match": "/commit/", "corrupt": True})
    done = scene.push()
    assert done.code == 1
    assert "refs/pr/1: README.md differs" in done.errors[0]
    scene.complete()
    assert {number: pr["status"] for number, pr in hub.repos[REPO]["prs"].items()} == {
        1: "closed",
        2: "merged",
    }


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)  # Xet names chunks by their hash
@pytest.mark.parametrize("request_", [r"PUT /lfs/\w+$", r"PUT /lfs/\w+/2$"])
def test_a_rotted_byte_of_a_large_file_is_refused_by_its_hash(
    request_: str, hub: "FakeHub", here: Here, small: Path
) -> None:
    scene = Scene(hub, here, small, "new")
    scene.begin()
    hub.faults.append({"match": request_, "corrupt": True})
    done = scene.push()
    assert done.code == 1
    name = "model.safetensors" if "/2" in request_ else "loss.png"
    assert f"cannot upload {name}: the Hub says 400" in done.errors[0]
    scene.complete()


def test_a_branch_that_got_a_rotted_byte_is_told_and_the_same_command_mends_it(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    (small / "NOTICE").write_text("of others\n")
    scene = Scene(hub, here, small, "branch")
    scene.begin()
    hub.faults.append({"match": "/commit/", "corrupt": True})
    done = here(small, *BRANCH)
    assert done.code == 1
    assert "alice/model at fp8: NOTICE differs" in done.errors[0]
    assert "pull request" not in done.stderr.splitlines()[-1]
    assert here(small, *BRANCH).code == 0
    assert scene.tree("fp8") == scene.after
