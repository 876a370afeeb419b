"""A push that is killed or interrupted anywhere: the same command completes it, byte for byte.

Where it is killed is drawn: the number of a request that the Hub has just got, and how long after.
"""

import copy
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"
KILLS, LATE, UPLOADING = 20, 4, 8  # in all, after the merge, while files are uploaded
LATEST_SECONDS = 0.1  # after a request
INTERRUPTED = "interrupted; nothing is lost, the same command resumes or starts again"


def kept(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-kept")


def put(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, or nothing if there is none."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)


class Pushes:
    """Pushes of one folder to one repository, whose state can be put back to the beginning."""

    def __init__(self, hub: "FakeHub", folder: Path, *options: str) -> None:
        self.hub, self.ref = hub, "main"
        if "--revision" in options:
            self.ref = options[options.index("--revision") + 1]
        arguments = [str(folder), REPO, "--base", "none", "--yes", *options]
        self.command = [sys.executable, "-m", "dstools", "push", *arguments]
        hub.multipart_at, hub.part_size = 500_000, 300_000
        self.prepare_storage()
        self.state = copy.deepcopy((hub.repos, hub.commits))
        self.folders = [hub.root / "lfs", hub.root / "cas", Path(os.environ["HF_HOME"])]
        for place in self.folders:
            put(place, kept(place))
        hub.log.clear()
        done = self.run()
        assert done.returncode == 0, done.stderr
        self.requests = [f"{entry['m']} {entry['p']}" for entry in hub.log]
        self.wanted = self.content()

    def prepare_storage(self) -> None:
        """Upload something else first: hf_xet has to have made the database of its folder."""
        code = """if True:
            from huggingface_hub import HfApi
            HfApi().create_repo("alice/other", exist_ok=True)
            data = bytes(range(256)) * 100
            HfApi().upload_file(path_or_fileobj=data, path_in_repo="a.bin", repo_id="alice/other")
        """
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    def begin(self) -> None:
        """Put everything back, on the Hub and on this machine."""
        hub = self.hub
        hub.repos, hub.commits = copy.deepcopy(self.state)
        hub.log.clear()
        hub.faults.clear()
        hub.shards.clear()
        for place in self.folders:
            put(kept(place), place)

    def run(
        self, at: int | None = None, seconds: float = 0, how: int = signal.SIGKILL, **fault: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Push; send a signal some seconds after request number `at`, which `fault` meets.

        Requests that come later are answered after the signal: a fast push does not end before it.
        """
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if at is not None:
            is_sent = threading.Event()

            def send() -> None:
                process.send_signal(how)
                is_sent.set()

            begin = send  # before the request is answered
            if seconds:
                timer = threading.Timer(seconds, send)
                timer.daemon = True
                begin = timer.start
            self.hub.faults.append({"match": "", "skip": at, "call": begin} | fault)
            self.hub.faults.append({"match": "", "skip": at, "times": 1000, "call": is_sent.wait})
        stdout, stderr = process.communicate(timeout=120)
        self.hub.faults.clear()
        while any(entry["status"] is None for entry in self.hub.log):
            time.sleep(0.01)  # a request may still have its effect after its client is gone
        return subprocess.CompletedProcess(self.command, process.returncode, stdout, stderr)

    def find(self, part: str) -> int:
        """Return the number of the first request that has this in it."""
        return next(n for n, request in enumerate(self.requests) if part in request)

    def content(self) -> dict[str, str]:
        """Return the sha256 of every file of the branch, from its bytes."""
        return {
            name: hashlib.sha256(self.hub.content(REPO, name, self.ref)).hexdigest()
            for name in self.hub.head(REPO, self.ref)[1]
        }

    def require_complete(self, told: str) -> None:
        """Run the same command again: the branch is that of an undisturbed push."""
        done = self.run()
        assert done.returncode == 0, (told, done.stderr)
        assert self.content() == self.wanted, told
        states = [pull["status"] for pull in self.hub.repos[REPO]["prs"].values()]
        expected = [] if self.ref != "main" else ["merged"]
        assert [state for state in states if state != "closed"][-1:] == expected, told
        assert "open" not in states, told
        assert "draft" not in states, told


@pytest.fixture
def folder(bare: Path) -> Path:
    """A folder that quantize wrote, in nine files for LFS or Xet and five small ones."""
    (bare / "README.md").write_text("---\nlicense: mit\n---\n")
    return bare


@pytest.mark.slow
def test_a_push_that_was_killed_at_20_random_points_is_completed(
    hub: "FakeHub", folder: Path, leg: str
) -> None:
    pushes = Pushes(hub, folder)
    upload, commit, merge = map(pushes.find, ("/preupload/", "/commit/", "/merge"))
    phases = [range(merge + 1, len(pushes.requests))] * LATE + [range(upload, commit)] * UPLOADING
    phases += [range(merge)] * (KILLS - len(phases))
    killed = 0
    for kill, phase in enumerate(phases):
        dice = random.Random(f"{leg} {kill}")
        is_late = kill < LATE
        at = dice.choice(phase)
        seconds = dice.uniform(0, 0 if is_late else LATEST_SECONDS)
        told = f"kill {kill}: {seconds:.3f} s after {pushes.requests[at]}"
        print(told)  # noqa: T201
        pushes.begin()
        done = pushes.run(at, seconds)
        killed += done.returncode == -signal.SIGKILL
        main = hub.repos.get(REPO) and set(hub.head(REPO)[1])
        assert main in (None, {".gitattributes"}, set(pushes.wanted)), told
        assert not is_late or main == set(pushes.wanted)
        pushes.require_complete(told)
        merged = [pr for pr in hub.repos[REPO]["prs"].values() if pr["status"] == "merged"]
        assert len(merged) == len(hub.repos[REPO]["prs"]) == 1, told
    assert killed > KILLS * 3 // 4


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["/branch/", "/commit/"])
def test_a_push_to_a_branch_that_was_killed_is_completed(
    request_: str, hub: "FakeHub", folder: Path
) -> None:
    pushes = Pushes(hub, folder, "--revision", "fp8")
    at = pushes.find(request_)
    pushes.begin()
    assert pushes.run(at, 0.01).returncode == -signal.SIGKILL
    refs = hub.repos[REPO]["refs"]
    if "fp8" in refs:
        assert set(hub.head(REPO, "fp8")[1]) in ({".gitattributes"}, set(pushes.wanted))
    pushes.require_complete(request_)
    assert set(hub.head(REPO)[1]) == {".gitattributes"}


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["/commit/", "/merge"])
def test_a_push_that_replaces_weights_and_was_killed_is_completed(
    request_: str, hub: "FakeHub", folder: Path
) -> None:
    old = folder / "old.safetensors"
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], old)
    (folder / "SHA256SUMS").unlink()  # it does not list the old weights
    whole = Pushes(hub, folder)
    old.unlink()
    pushes = Pushes(hub, folder, "--replace")
    before = set(whole.wanted)
    assert "old.safetensors" in before
    at = pushes.find(request_)
    pushes.begin()
    assert pushes.run(at, 0.01).returncode == -signal.SIGKILL
    assert set(hub.head(REPO)[1]) in (before, set(pushes.wanted))
    pushes.require_complete(request_)
    assert "old.safetensors" not in hub.head(REPO)[1]


POINTS = {"xet": ["/xet-write-token/", "/commit/"], "lfs": ["whoami", "PUT /lfs/", "/merge"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leg", "request_"),
    [(leg, request) for leg in POINTS for request in POINTS[leg]],
    indirect=["leg"],
)
def test_ctrl_c_is_one_line_and_exit_code_130(request_: str, hub: "FakeHub", folder: Path) -> None:
    pushes = Pushes(hub, folder)
    at = pushes.find(request_)
    pushes.begin()
    done = pushes.run(at, 0.05, signal.SIGINT, delay=0.5)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in done.stderr
    assert "hint: " not in done.stderr
    assert done.stdout == ""
    pushes.require_complete(request_)
