"""Discussions and pull requests of the local Hub.

A pull request of the API starts as a draft, and a draft cannot be merged. A merge keeps what others
committed to main meanwhile, and is refused if both sides changed one file to different contents.

`rules["no_prs"]`: the owner has switched discussions off. `rules["on_open"]`, called with hub, repo
and number before a status becomes `open`: somebody else acts just then.

Source: huggingface/hub-docs, pull requests and settings; huggingface_hub 2.4, hf_api.py and
community.py. Not seen on the real Hub: the texts of these refusals, the status of a conflict.
"""

from typing import TYPE_CHECKING, Any

from hub_accounts import check_read, check_write, may_discuss
from hub_http import Refusal, Reply

if TYPE_CHECKING:
    from fakehub import FakeHub, _Handler

DATE = "2026-01-01T00:00:00.000Z"
PAGE = 10
CLOSED = ("closed", "merged")


def check_enabled(call: "_Handler", repo: str) -> None:
    check_read(call, repo)
    if call.hub.rules.get("no_prs"):
        raise Refusal(403, "Discussions are disabled for this repo")


def summary(repo: str, number: int, pull: dict[str, Any]) -> dict[str, Any]:
    """Return what lists and details say of a discussion."""
    return {
        "num": number,
        "title": pull["title"],
        "status": pull["status"],
        "author": {"name": pull.get("author", "deleted")},
        "createdAt": DATE,
        "isPullRequest": pull.get("isPullRequest", True),
        "repo": {"name": repo, "type": "model"},
    }


def listing(call: "_Handler", repo: str) -> Reply:
    """Answer GET /api/models/REPO/discussions, newest first; by `status`, `author` and `type`"""
    check_enabled(call, repo)
    status, author, kind = (call.query.get(name) for name in ("status", "author", "type"))
    found = [
        entry
        for number, pull in sorted(call.hub.repos[repo]["prs"].items(), reverse=True)
        if (entry := summary(repo, number, pull))
        and status in (None, "all", "closed" if pull["status"] in CLOSED else "open")
        and author in (None, entry["author"]["name"])
        and kind in (None, "all", "pull_request" if entry["isPullRequest"] else "discussion")
    ]
    start = int(call.query.get("p", 0)) * PAGE
    return Reply({"discussions": found[start : start + PAGE], "count": len(found), "start": start})


def open_pull(call: "_Handler", repo: str, title: str, status: str) -> int:
    """Open a pull request to main and return its number."""
    check_enabled(call, repo)
    if call.token is None or not may_discuss(call.token, repo):
        raise Refusal(403 if call.token else 401, "You need a write token to open a pull request")
    with call.hub.lock:
        state = call.hub.repos[repo]
        number = len(state["prs"]) + 1
        main = state["refs"]["main"]
        author = call.token["name"]
        state["prs"][number] = {"title": title, "status": status, "author": author, "base": main}
        state["refs"][f"refs/pr/{number}"] = main
        return number


def create(call: "_Handler", repo: str) -> Reply:
    """Answer POST /api/models/REPO/discussions"""
    asked = call.read_json()
    is_pull = asked.get("pullRequest", False)
    number = open_pull(call, repo, asked["title"], "draft" if is_pull else "open")
    if not is_pull:
        del call.hub.repos[repo]["refs"][f"refs/pr/{number}"]
        call.hub.repos[repo]["prs"][number]["isPullRequest"] = False
    return Reply({"num": number, "url": f"{call.hub.url}/{repo}/discussions/{number}"})


def find(call: "_Handler", repo: str, number: str) -> dict[str, Any]:
    check_enabled(call, repo)
    pull: dict[str, Any] | None = call.hub.repos[repo]["prs"].get(int(number))
    if pull is None:
        raise Refusal(404, f"There is no discussion {number}")
    return pull


def details(call: "_Handler", repo: str, number: str) -> Reply:
    """Answer GET /api/models/REPO/discussions/N"""
    pull = find(call, repo, number)
    data = summary(repo, int(number), pull) | {"events": [], "diff": ""}
    if data["isPullRequest"]:
        changes = {"base": "refs/heads/main"}
        if pull["status"] == "merged":
            changes["mergeCommitId"] = pull["merge"]
        conflicts = [] if pull["status"] in CLOSED else merged_files(call.hub, repo, int(number))[1]
        data |= {"changes": changes, "filesWithConflicts": conflicts}
    return Reply(data)


def change_status(call: "_Handler", repo: str, number: str) -> Reply:
    """Answer POST /api/models/REPO/discussions/N/status: open (from draft or closed), or closed"""
    pull = find(call, repo, number)
    check_write(call, repo, f"refs/pr/{number}")
    status = call.read_json()["status"]
    if pull["status"] == "merged":
        raise Refusal(400, "This pull request is merged: its status cannot change")
    if status == "open" and (on_open := call.hub.rules.get("on_open")):
        on_open(call.hub, repo, int(number))
    pull["status"] = status
    event = {"id": "1", "type": "status-change", "createdAt": DATE, "data": {"status": status}}
    return Reply({"newStatus": event | {"author": {"name": call.token["name"]}}})


def merge(call: "_Handler", repo: str, number: str) -> Reply:
    """Answer POST /api/models/REPO/discussions/N/merge"""
    pull = find(call, repo, number)
    check_write(call, repo)
    with call.hub.lock:
        if pull["status"] != "open":
            raise Refusal(400, f"This pull request is {pull['status']}: it cannot be merged.")
        files, conflicts = merged_files(call.hub, repo, int(number))
        if conflicts:
            raise Refusal(409, f"Merge conflicts in {', '.join(conflicts)}")
        main = call.hub.repos[repo]["refs"]["main"]
        title = f"{pull['title']} (#{number})"
        pull["merge"] = call.hub.commit(repo, "main", files, title, main)
        pull["status"] = "merged"
    return Reply({"newStatus": "merged"})


def merged_files(hub: "FakeHub", repo: str, number: int) -> tuple[dict[str, Any], list[str]]:
    """Return main with the changes of a pull request, and the files that both sides changed."""
    base_oid = hub.repos[repo]["prs"][number].get("base", hub.repos[repo]["refs"]["main"])
    base = hub.commits[base_oid]["files"]
    main, mine = hub.head(repo)[1], hub.head(repo, f"refs/pr/{number}")[1]
    changed, conflicts = set(), []
    for path in sorted(base.keys() | main.keys() | mine.keys()):
        before, theirs, ours = (side.get(path, {}).get("oid") for side in (base, main, mine))
        if ours != before:
            changed.add(path)
            if theirs not in (before, ours):
                conflicts.append(path)
    kept = {path: file for path, file in main.items() if path not in changed}
    return kept | {path: mine[path] for path in changed if path in mine}, conflicts
