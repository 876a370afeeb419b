"""Repositories of the local Hub: create, list, ask before an upload, commit, branches.

Source: huggingface_hub 2.4, hf_api.py and _commit_api.py, for paths, fields and error codes;
huggingface/hub-docs, for `.gitignore` and for organizations without public repositories.
"""

import base64
import fnmatch
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import yaml
from hub_accounts import check_read, check_write, may
from hub_discussions import open_pull
from hub_http import Refusal, Reply
from hub_storage import (
    LARGE,
    File,
    check_quota,
    content,
    is_stored,
    large_file,
    small_file,
    xet_hashes,
)

if TYPE_CHECKING:
    from fakehub import FakeHub, _Handler

DATE = "2026-01-01T00:00:00.000Z"
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)


def create(call: "_Handler") -> Reply:
    """Answer POST /api/repos/create"""
    asked = call.read_json()
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    owner = asked.get("organization") or call.token["name"]
    repo, private = f"{owner}/{asked['name']}", asked.get("visibility") == "private"
    if not may(call.token, repo, "repo.write"):
        raise Refusal(
            403, f'You don\'t have the rights to create a model under the namespace "{owner}"'
        )
    if call.hub.rules.get("no_public") and not private:
        raise Refusal(403, "This organization forbids the creation of public models.")
    with call.hub.lock:
        if repo in call.hub.repos:
            refusal = Refusal(409, "You already created this model repo")
            refusal.reply.data["url"] = f"{call.hub.url}/{repo}"
            raise refusal
        call.hub.repos[repo] = {"type": "model", "private": private, "refs": {}, "prs": {}}
        files = {".gitattributes": small_file(GITATTRIBUTES.encode())}
        call.hub.commit(repo, "main", files, "initial commit", None)
    return Reply({"url": f"{call.hub.url}/{repo}", "name": repo, "id": repo})


def validate_yaml(call: "_Handler") -> Reply:
    """Answer POST /api/validate-yaml: only whether it is YAML at all"""
    text = call.read_json()["content"]
    front = text.split("---\n")[1] if text.startswith("---\n") and text.count("---\n") > 1 else ""
    try:
        yaml.safe_load(front)
    except yaml.YAMLError as error:
        message = f"bad yaml: {error}"
        return Reply({"errors": [{"message": message}], "warnings": []}, 400)
    return Reply({"errors": [], "warnings": []})


# ------------------------------------------------------------------------------------------ listing


def info(call: "_Handler", repo: str, ref: str | None) -> Reply:
    """Answer GET /api/models/REPO[/revision/REF]"""
    commit, files = call.hub.find_commit(call, repo, ref or "main")
    siblings = []
    for path, file in sorted(files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if "blobs" in call.query:
            sibling |= {"size": file["size"], "blobId": file["oid"]}
            if file["sha256"]:
                sibling["lfs"] = {
                    "sha256": file["sha256"],
                    "size": file["size"],
                    "pointerSize": 130,
                }
        siblings.append(sibling)
    private = call.hub.repos[repo]["private"]
    data = {"_id": repo, "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit}
    data |= {"private": private, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
    return Reply(data)


def entries(hub: "FakeHub", files: dict[str, File]) -> list[dict[str, Any]]:
    """Return what the tree says of these files and of the folders that hold them, by path."""
    hashes = xet_hashes(hub)
    found: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        found[path] = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
        if sha256 := file["sha256"]:
            found[path]["lfs"] = {"oid": sha256, "size": file["size"], "pointerSize": 130}
            if sha256 in hashes:
                found[path]["xetHash"] = hashes[sha256]
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return [found[path] for path in sorted(found)]


def tree(call: "_Handler", repo: str, ref: str, folder: str | None) -> Reply:
    """Answer GET /api/models/REPO/tree/REF[/FOLDER], 1000 entries a page, 50 with `expand`"""
    _, files = call.hub.find_commit(call, repo, ref)
    prefix = f"{folder}/" if folder else ""
    found = [e for e in entries(call.hub, files) if e["path"].startswith(prefix)]
    if prefix and not found:
        raise Refusal(404, f"{folder} does not exist on {ref}", "EntryNotFound")
    if call.query.get("recursive") != "true":
        found = [e for e in found if "/" not in e["path"].removeprefix(prefix)]
    size = 50 if call.query.get("expand") == "true" else call.hub.page_size
    begin = int(call.query.get("cursor", 0))
    headers = {}
    if begin + size < len(found):
        query = urlencode(call.query | {"cursor": str(begin + size)})
        headers["Link"] = f'<{call.hub.url}{call.path.split("?")[0]}?{query}>; rel="next"'
    return Reply(found[begin : begin + size], headers=headers)


def paths_info(call: "_Handler", repo: str, ref: str) -> Reply:
    """Answer POST /api/models/REPO/paths-info/REF, as a form or as JSON"""
    _, files = call.hub.find_commit(call, repo, ref)
    body = b"".join(call.body).decode()
    asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
    return Reply([entry for entry in entries(call.hub, files) if entry["path"] in asked])


def commits(call: "_Handler", repo: str, ref: str) -> Reply:
    """Answer GET /api/models/REPO/commits/REF, newest first"""
    oid, _ = call.hub.find_commit(call, repo, ref)
    found = []
    while oid:
        title = call.hub.commits[oid]["title"]
        found.append({"id": oid, "title": title, "message": "", "authors": [], "date": DATE})
        oid = call.hub.commits[oid]["parent"]
    return Reply(found)


# ----------------------------------------------------------------------------------------- branches


def refs(call: "_Handler", repo: str) -> Reply:
    """Answer GET /api/models/REPO/refs"""
    check_read(call, repo)
    branches, pulls = [], []
    for name, oid in sorted(call.hub.repos[repo]["refs"].items()):
        if name.startswith("refs/pr/"):
            pulls.append({"name": name[8:], "ref": name, "targetCommit": oid})
        else:
            branches.append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid})
    data = {"branches": branches, "converts": [], "tags": []}
    return Reply(data | ({"pullRequests": pulls} if call.query.get("include_prs") else {}))


def create_branch(call: "_Handler", repo: str, branch: str) -> Reply:
    """Answer POST /api/models/REPO/branch/BRANCH"""
    check_write(call, repo)
    oid, _ = call.hub.find_commit(call, repo, call.read_json().get("startingPoint", "main"))
    with call.hub.lock:
        if branch in call.hub.repos[repo]["refs"]:
            raise Refusal(409, f"Reference already exists: {branch}")
        call.hub.repos[repo]["refs"][branch] = oid
    return Reply()


def delete_branch(call: "_Handler", repo: str, branch: str) -> Reply:
    """Answer DELETE /api/models/REPO/branch/BRANCH"""
    check_write(call, repo)
    if branch == "main":
        raise Refusal(403, "Cannot delete the default branch")
    if call.hub.repos[repo]["refs"].pop(branch, None) is None:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return Reply()


# --------------------------------------------------------------------------------------- committing


def preupload(call: "_Handler", repo: str, ref: str) -> Reply:
    """Answer POST /api/models/REPO/preupload/REF: how to send each file, or that it is ignored"""
    check_write(call, repo, ref)
    _, held = call.hub.find_commit(call, repo, ref)
    asked = call.read_json()
    check_quota(call.hub, repo, sum(file["size"] for file in asked["files"]))
    ignore = asked.get("gitIgnore")
    if ignore is None and ".gitignore" in held:
        ignore = content(call.hub, held[".gitignore"]).decode()
    globs = [line.strip() for line in (ignore or "").splitlines() if not line.startswith("#")]
    answers = []
    for file in asked["files"]:
        path, old = file["path"], held.get(file["path"])
        large = file["size"] >= call.hub.lfs_at or path.endswith(LARGE)
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": any(fnmatch.fnmatchcase(path, glob) for glob in globs if glob),
                "oid": (old["sha256"] or old["oid"]) if old else None,
            }
        )
    return Reply({"files": answers})


def commit(call: "_Handler", repo: str, ref: str) -> Reply:
    """Answer POST /api/models/REPO/commit/REF: JSON lines, a header and then operations"""
    check_write(call, repo, ref)
    lines = [json.loads(line) for line in b"".join(call.body).splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
    with call.hub.lock:
        parent, files = call.hub.find_commit(call, repo, ref)
        if not parent.startswith(header.get("parentCommit") or ""):
            message = "A commit has happened since. Please refresh and try again."
            raise Refusal(412, message)
        files = dict(files)
        for operation, value in operations:
            apply(call, files, operation, value)
        number = None
        if call.query.get("create_pr"):
            number = open_pull(call, repo, header["summary"], "open")
            ref = f"refs/pr/{number}"
        oid = call.hub.commit(repo, ref, files, header["summary"], parent)
    data = {"success": True, "commitOid": oid, "commitUrl": f"{call.hub.url}/{repo}/commit/{oid}"}
    if ref.startswith("refs/pr/"):
        data["pullRequestUrl"] = f"{call.hub.url}/{repo}/discussions/{ref[8:]}"
    return Reply(data)


def apply(call: "_Handler", files: dict[str, File], operation: str, value: dict[str, Any]) -> None:
    """Apply one operation of a commit to `files`."""
    path = value["path"]
    if operation == "file":
        files[path] = small_file(call.rot(base64.b64decode(value["content"])))
    elif operation == "lfsFile":
        if not is_stored(call.hub, value["oid"]):
            message = f"an LFS pointer pointed to a file that does not exist: {path}"
            raise Refusal(400, f"Your push was rejected because {message}")
        files[path] = large_file(value["oid"], value["size"])
        _track(files, path)
    elif operation == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif operation == "deletedFolder":
        inside = path.rstrip("/") + "/"
        for name in [name for name in files if name.startswith(inside)]:
            del files[name]
    else:
        raise Refusal(400, f"Unknown operation: {operation}")


def _track(files: dict[str, File], path: str) -> None:
    """Add a line to .gitattributes for a large file that no pattern in it matches."""
    file = files.get(".gitattributes", small_file(b""))
    lines = (file["data"] or b"").decode().splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns):
        line = f"{path.replace(' ', '[[:space:]]')} filter=lfs diff=lfs merge=lfs -text"
        files[".gitattributes"] = small_file("\n".join([*lines, line, ""]).encode())
