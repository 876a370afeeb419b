"""The token is in no output, log, file, traceback, command line or environment of a child.

Every other test of a push checks its output, and what is stored, for the tokens of its Hub:
tests/conftest.py.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"
MARK = "hf_MARKEDmarkedMARKEDmarkedMARKEDmarked"[:37]  # as long as a real one
PARTS = (MARK.encode(), MARK[3:20].encode(), MARK[-17:].encode())
LOUD = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "HF_XET_LOG_LEVEL": "debug"}


def has_mark(content: bytes) -> bool:
    return any(part in content for part in PARTS)


class Watched:
    """A push with the marked token, in a home, working and temporary folder of its own."""

    def __init__(self, hub: "FakeHub", folder: Path, place: Path) -> None:
        self.hub, self.folder, self.place = hub, folder, place
        hub.tokens[MARK] = {"name": "alice", "role": "write"}
        self.environment = os.environ | LOUD | {"HF_TOKEN": MARK}
        for name in ("HOME", "TMPDIR", "HF_HOME"):
            (place / name).mkdir()
            self.environment[name] = str(place / name)
        (place / "work").mkdir()
        self.processes: list[bytes] = []  # command lines of all, environments of children
        self.process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Take down how this machine's processes were started."""
        assert self.process
        children = set(descendants(self.process.pid))
        for entry in Path("/proc").glob("[0-9]*"):
            names = ["cmdline", *(["environ"] if int(entry.name) in children else [])]
            for name in names:
                try:
                    self.processes.append((entry / name).read_bytes())
                except OSError:  # it has ended
                    continue

    def push(self, *options: str, how: int | None = None, debug: bool = True) -> int:
        """Push; return the exit code, after looking everywhere for the token."""
        arguments = ["push", str(self.folder), REPO, "--base", "none", "--yes", *options]
        command = [sys.executable, "-m", "dstools", *(["--debug"] if debug else []), *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.place / "work",
        )
        if how is not None:
            stop = threading.Timer(0.1, self.process.send_signal, [how])
            self.hub.faults.append({"match": "/preupload/", "call": stop.start, "delay": 0.5})
        with self.process:  # which waits for it
            try:
                output = b"".join(self.process.communicate(timeout=60))
            finally:
                self.process.kill()
        self.require_no_mark(output)
        return self.process.returncode

    def require_no_mark(self, output: bytes) -> None:
        assert not has_mark(output), output.decode()
        for content in self.processes:
            assert not has_mark(content)
        files = [path for path in self.place.rglob("*") if path.is_file()]
        for path in (*files, *self.folder.rglob("*")):
            assert not has_mark(os.fsencode(str(path)))
            assert path.is_dir() or not has_mark(path.read_bytes()), path
        for commit in self.hub.commits.values():
            assert not has_mark(repr(commit).encode())
        assert not has_mark(repr(self.hub.repos).encode())
        assert any(entry["auth"] == f"Bearer {MARK}" for entry in self.hub.log) or not self.hub.log


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that they have."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from descendants(int(child))


@pytest.fixture
def watched(hub: "FakeHub", small: Path, tmp_path: Path) -> Watched:
    place = tmp_path / "place"
    place.mkdir()
    return Watched(hub, small, place)


@pytest.mark.slow
def test_the_token_stays_where_it_is_in_a_push_that_logs_all_it_can(
    watched: Watched, hub: "FakeHub"
) -> None:
    for request in ("/preupload/", "/(PUT|commit)/", "/merge"):
        hub.faults.append({"match": request, "call": watched.look, "delay": 0.1})
    assert watched.push() == 0
    assert watched.processes
    logs = [path for path in (watched.place / "HF_HOME").rglob("*.log") if path.stat().st_size]
    assert logs or os.environ["HF_HUB_DISABLE_XET"] == "1"
    assert watched.push() == 0  # up to date


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "expired": ("/whoami", {"status": 401, "error": "expired"}),
    "no room": ("/preupload/", {"status": 403, "error": "storage limit reached"}),
    "too large": ("/commit/", {"status": 413}),
    "moved": ("/commit/", {"status": 412}),
    "rotted": ("/commit/", {"corrupt": True}),
    "conflict": ("/merge", {"status": 409}),
    "protected": ("/merge", {"status": 403}),
    "no Hub": ("GET /api/models/alice/model$", {"answer": b"<html>"}),
    "other fields": ("POST .*/discussions$", {"answer": {"no": "num"}}),
    "limited": ("/preupload/", {"status": 429, "headers": {"Retry-After": "9999"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_token_is_in_no_traceback(fault: str, watched: Watched, hub: "FakeHub") -> None:
    match, what = FAULTS[fault]
    hub.faults.append({"match": match, "times": 99} | what)
    assert watched.push() == 1
    assert watched.push(debug=False) == 1


@pytest.mark.slow
@pytest.mark.parametrize("leg", ["xet"], indirect=True)
def test_the_token_is_not_in_the_errors_of_xet(watched: Watched, hub: "FakeHub") -> None:
    hub.faults.append({"match": "/xet-write-token/", "status": 401, "times": 99})
    assert watched.push() == 1
    assert watched.push(debug=False) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGABRT])
@pytest.mark.parametrize("leg", ["xet"], indirect=True)
def test_the_token_is_in_nothing_that_a_push_leaves_when_it_is_stopped(
    how: int, watched: Watched
) -> None:
    assert watched.push(how=how) not in (0, 1, 2)


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
def test_a_file_that_holds_the_token_is_refused_without_repeating_it(
    watched: Watched, small: Path
) -> None:
    (small / "NOTICE").write_text(f"x\n{MARK}\n")
    process = subprocess.run(
        [sys.executable, "-m", "dstools", "push", str(small), REPO, "--base", "none", "--yes"],
        env=watched.environment,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 1
    assert b"NOTICE, line 2: holds your token" in process.stderr
    assert not has_mark(process.stdout + process.stderr)
    assert not watched.hub.repos
