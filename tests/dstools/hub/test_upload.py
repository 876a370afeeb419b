"""Contents first, then commits of them, and a commit whose answer was lost is not made twice."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub import upload as module
from dstools.hub.client import Hub
from dstools.hub.upload import Addition, upload
from dstools_converters.errors import DstoolsError
from dstools_converters.verify.hashes import Blob

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"
Connect = Callable[..., Hub]


def addition(content: Path | bytes) -> Addition:
    if isinstance(content, bytes):
        return Addition(content, Blob.of(content))
    return Addition.of(content, Blob.of(content.read_bytes()))


@pytest.fixture
def send(connect: Connect, clock: Any) -> Callable[..., list[int]]:
    """send(files, ...): upload to main of a new repository; the progress that was reported."""
    connected = connect()
    connected.api.create_repo(REPO, exist_ok=True)

    def send(
        files: Mapping[str, Path | bytes],
        deletions: tuple[str, ...] = (),
        parent: str | None = None,
    ) -> list[int]:
        steps: list[int] = []
        upload(
            connected,
            {name: addition(content) for name, content in files.items()},
            deletions,
            revision="main",
            message="Upload",
            parent=parent,
            progress=steps.append,
        )
        return steps

    return send


def commits(hub: "FakeHub") -> int:
    return len([entry for entry in hub.log if "/commit/" in entry["p"]])


def test_files_arrive_byte_for_byte_and_progress_counts_each_byte(
    hub: "FakeHub", send: Callable[..., list[int]], model: Path
) -> None:
    files = {"a/model [1] #%.safetensors": model / "model.safetensors", "b.json": b"{}"}
    assert sum(send(files)) == 25_600 + 2
    assert hub.content(REPO, "a/model [1] #%.safetensors") == bytes(range(256)) * 100
    assert hub.content(REPO, "b.json") == b"{}"
    assert commits(hub) == 1


def test_many_files_are_several_commits_and_with_a_parent_one(
    hub: "FakeHub", send: Callable[..., list[int]]
) -> None:
    files = {f"{n}.json": b"%d" % n for n in range(230)}
    send(files)
    assert commits(hub) == 3
    titles = [commit["title"] for commit in hub.commits.values()][1:]
    assert titles == [f"Upload ({n} of 3)" for n in (1, 2, 3)]
    send({name: content + b"x" for name, content in files.items()}, parent=hub.head(REPO)[0])
    assert commits(hub) == 4
    assert hub.content(REPO, "229.json") == b"229x"


def test_files_are_deleted_in_the_last_commit(
    hub: "FakeHub", send: Callable[..., list[int]]
) -> None:
    send({"old.bin": b"x", "kept": b"x"})
    send({"new.bin": b"y"}, deletions=("old.bin",))
    assert set(hub.head(REPO)[1]) == {".gitattributes", "kept", "new.bin"}
    send({}, deletions=("kept",))
    assert set(hub.head(REPO)[1]) == {".gitattributes", "new.bin"}


def test_a_file_that_changes_after_it_was_checked_is_not_committed(
    hub: "FakeHub", connect: Connect, clock: Any, model: Path
) -> None:
    connected = connect()
    connected.api.create_repo(REPO)
    path = model / "model.safetensors"
    checked = addition(path)
    path.write_bytes(b"y" + path.read_bytes()[1:])
    options: Any = {"revision": "main", "message": "x", "parent": None}
    options["progress"] = lambda nbytes: None
    with pytest.raises(DstoolsError, match=r"model\.safetensors: changed while"):
        upload(connected, {path.name: checked}, (), **options)
    assert commits(hub) == 0


def test_a_gitignore_of_the_repository_makes_nothing_be_skipped(
    hub: "FakeHub", send: Callable[..., list[int]], model: Path
) -> None:
    send({".gitignore": b"*.safetensors\n"})
    hub.rules["gitignore"] = True
    send({"model.safetensors": model / "model.safetensors"})
    assert "model.safetensors" in hub.head(REPO)[1]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    hub: "FakeHub", send: Callable[..., list[int]], clock: Any
) -> None:
    hub.faults.append({"match": "/commit/", "drop": "after"})
    send({"a.json": b"{}"})
    assert commits(hub) == 1
    assert not clock.pauses


@pytest.mark.parametrize("fault", [{"drop": "before"}, {"drop": "body"}, {"status": 500}])
def test_a_commit_that_was_not_made_is_made_again(
    fault: dict[str, Any], hub: "FakeHub", send: Callable[..., list[int]], clock: Any, model: Path
) -> None:
    hub.faults.append({"match": "/commit/"} | fault)
    send({"model.safetensors": model / "model.safetensors", "a.json": b"{}"})
    assert clock.pauses == [1]
    assert {"a.json", "model.safetensors"} <= set(hub.head(REPO)[1])


def test_a_deletion_is_part_of_a_commit_that_was_not_made(
    hub: "FakeHub", send: Callable[..., list[int]], clock: Any
) -> None:
    send({"old.bin": b"x", "a.json": b"{}"})
    hub.faults.append({"match": "/commit/", "status": 500})
    send({"a.json": b"{}", "b.json": b"{}"}, deletions=("old.bin",))
    assert clock.pauses == [1]
    assert "old.bin" not in hub.head(REPO)[1]


def test_a_parent_that_is_not_the_head_any_more_is_refused(
    hub: "FakeHub", send: Callable[..., list[int]]
) -> None:
    first = hub.head(REPO)[0]
    send({"a.json": b"{}"})
    with pytest.raises(DstoolsError, match="says 412") as error:
        send({"b.json": b"{}"}, parent=first)
    assert "same command again" in error.value.hint
    assert "b.json" not in hub.head(REPO)[1]


def test_a_hub_that_moves_no_byte_for_minutes_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = threading.Event()
    moments = iter([0.0, 10.0, 200.0, 300.0])

    def now() -> float:
        try:
            return next(moments)
        except StopIteration:
            looked.set()
            return 400.0

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(module, "_bytes_read", lambda: 7)
    monkeypatch.setattr(module.time, "monotonic", now)
    steps: list[int] = []
    with module._meter(100, steps.append):
        assert looked.wait(10)
    assert capsys.readouterr().err.count("no byte was read for 3 minutes") == 1
    assert steps == [100]


def test_bytes_that_this_process_reads_are_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([5, 5, 9, 9, 400])
    counts: list[int] = []
    reached = threading.Event()

    def progress(count: int) -> None:
        counts.append(count)
        if sum(counts) == 100:
            reached.set()

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(module, "_bytes_read", lambda: next(read, 400))
    with module._meter(100, progress):
        assert reached.wait(10)
    assert counts == [4, 96]
