"""A Hugging Face Hub on 127.0.0.1 for tests: state, routes, and a server.

The real client runs against it, huggingface_hub 2.4: create, upload, pull request, merge, download,
over LFS (HF_HUB_DISABLE_XET=1) and over Xet (the released hf_xet, which stores into a folder).

    hub = FakeHub(tmp_path)
    hub.faults.append({"match": "POST /api/models/.*/commit/", "status": 500})     hub_http.py
    hub.rules["no_prs"] = True         also no_public, quota (bytes), on_open
    hub.rules["renamed"] = {"alice/old": "alice/new"}       requests for the one are redirected
    hub.tokens["hf_x"] = {"name": "bob", "role": "read"}                           hub_accounts.py
    HfApi(endpoint=hub.url, token="hf_good")

    python fakehub.py STATE --port 8123     then HF_ENDPOINT=http://127.0.0.1:8123 HF_TOKEN=hf_good

Large files are on disk, under STATE; repositories and small files are in memory.
Over Xet one client process at a time: hf_xet 1.8 locks the database of its folder while it uploads.
"""

import argparse
import hashlib
import json
import re
import signal
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hub_accounts as accounts
import hub_discussions as discussions
import hub_repos as repos
import hub_storage as storage
from hub_http import Handler, Refusal, Reply
from hub_storage import File, git_sha

__all__ = ["FakeHub", "git_sha"]

REPO = r"([^/]+/[^/]+)"
MODEL = rf"/api/models/{REPO}"
REF = r"(refs(?:/|%2F)pr(?:/|%2F)\d+|[^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", accounts.whoami),
    (rf"GET {MODEL}/auth-check(/write)?", accounts.auth_check),
    (r"POST /api/validate-yaml", repos.validate_yaml),
    (r"POST /api/repos/create", repos.create),
    (rf"GET {MODEL}(?:/revision/{REF})?", repos.info),
    (rf"GET {MODEL}/tree/{REF}(?:/(.+))?", repos.tree),
    (rf"POST {MODEL}/paths-info/{REF}", repos.paths_info),
    (rf"GET {MODEL}/commits/{REF}", repos.commits),
    (rf"GET {MODEL}/refs", repos.refs),
    (rf"POST {MODEL}/branch/{REF}", repos.create_branch),
    (rf"DELETE {MODEL}/branch/{REF}", repos.delete_branch),
    (rf"POST {MODEL}/preupload/{REF}", repos.preupload),
    (rf"POST {MODEL}/commit/{REF}", repos.commit),
    (rf"GET {MODEL}/discussions", discussions.listing),
    (rf"POST {MODEL}/discussions", discussions.create),
    (rf"GET {MODEL}/discussions/(\d+)", discussions.details),
    (rf"POST {MODEL}/discussions/(\d+)/status", discussions.change_status),
    (rf"POST {MODEL}/discussions/(\d+)/merge", discussions.merge),
    (rf"GET {MODEL}/xet-(read|write)-token/{REF}", storage.xet_token),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", storage.batch),
    (rf"POST /{REPO}\.git/info/lfs/objects/verify", storage.verify),
    (r"PUT /lfs/([0-9a-f]{64})(?:/(\d+))?", storage.put),
    (r"POST /lfs/([0-9a-f]{64})", storage.complete),
    (rf"(?:GET|HEAD) /{REPO}/resolve/{REF}/(.+)", storage.resolve),
]


class _Handler(Handler):
    token: accounts.Token | None

    def route(self, path: str) -> Reply:
        """Call the function for this method and path, with the parts of the path."""
        self.token = accounts.authenticate(self)
        for old, new in self.hub.rules.get("renamed", {}).items():
            if re.search(f"/{old}(/|[.]git/|$)", path):
                return Reply(status=307, headers={"Location": self.path.replace(old, new, 1)})
        for pattern, function in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return function(self, *(part and unquote(part) for part in match.groups()))
        raise Refusal(404, f"The local Hub does not know {self.command} {path}")

    route.is_patched = True  # tests/cases/push/hubrules.py: these rules are built in


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class FakeHub:
    """A Hub with its state in `root`, served until `close()`."""

    def __init__(
        self,
        root: Path | str,
        tokens: dict[str, accounts.Token] | None = None,
        multipart_at: int = 5_000_000,
        lfs_at: int = 10_000,
        part_size: int = 2_000_000,
        page_size: int = 1000,
        port: int = 0,
    ) -> None:
        self.root = Path(root).absolute()
        (self.root / "lfs").mkdir(parents=True, exist_ok=True)
        self.tokens = tokens or {"hf_good": {"name": "alice", "role": "write"}}
        self.multipart_at, self.part_size = multipart_at, part_size
        self.lfs_at, self.page_size = lfs_at, page_size
        self.repos: dict[str, dict[str, Any]] = {}  # id -> type, private, refs, prs
        self.commits: dict[str, dict[str, Any]] = {}  # oid -> files, title, parent
        self.shards: dict[str, dict[str, str]] = {}  # name -> sha256 -> Xet hash
        self.rules: dict[str, Any] = {}
        self.faults: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []  # each request: m, p, q, auth, status, bytes
        self.lock = threading.RLock()
        self.server = _Server(("127.0.0.1", port), type("_Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def take_fault(self, request: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Log a request and return the fault that is set for it, or {}."""
        with self.lock:
            self.log.append(entry)
            for fault in self.faults:
                if fault.get("times", 1) > 0 and re.search(fault["match"], request):
                    if fault.get("skip", 0) > 0:
                        fault["skip"] -= 1
                        continue
                    fault["times"] = fault.get("times", 1) - 1
                    return dict(fault)
        return {}

    def head(self, repo: str, ref: str = "main") -> tuple[str, dict[str, File]]:
        """Return the commit of a branch, a pull request or a commit, and its files by path."""
        oid = self.repos[repo]["refs"].get(ref, ref)
        return oid, self.commits[oid]["files"]

    def find_commit(self, call: _Handler, repo: str, ref: str) -> tuple[str, dict[str, File]]:
        """Return `head`; refuse what is not there, or not for this account to see."""
        accounts.check_read(call, repo)
        try:
            return self.head(repo, ref)
        except KeyError:
            raise Refusal(404, f"Invalid rev id: {ref}", "RevisionNotFound") from None

    def commit(
        self, repo: str, ref: str, files: dict[str, File], title: str, parent: str | None
    ) -> str:
        """Commit `files`, a whole tree, to `ref` and return the commit."""
        with self.lock:
            tree = sorted((path, file["oid"]) for path, file in files.items())
            text = json.dumps([repo, ref, tree, title, parent, len(self.commits)])
            oid = hashlib.sha1(text.encode()).hexdigest()
            self.commits[oid] = {"files": files, "title": title, "parent": parent}
            self.repos[repo]["refs"][ref] = oid
        return oid

    def content(self, repo: str, path: str, ref: str = "main") -> bytes:
        """Return the bytes of a file, however it was uploaded."""
        return storage.content(self, self.head(repo, ref)[1][path])


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a local Hub until interrupted.")
    parser.add_argument("root", help="folder for its state")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    options = parser.parse_args()
    print(FakeHub(options.root, port=options.port).url, flush=True)  # noqa: T201
    signal.pause()


if __name__ == "__main__":
    main()
