"""The folder of an export is complete or is not there, and a stopped run is resumed."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.settings import Settings

SETTINGS: Settings = {"tool": "dstools 1", "source": "ab", "--dtype": "float32", "--mtp": True}


def fill(out: Path, stop_after: int = 9, settings: Settings = SETTINGS) -> list[int]:
    """Write a file of four parts, 4 bytes each; return the parts that this run wrote."""
    wrote = []
    with Unfinished(out, settings) as folder:
        if not folder.is_published:
            file, done = folder.open("data", 16)
            for part in range(done, 4):
                if part == stop_after:
                    os.close(file)
                    raise KeyboardInterrupt
                os.pwrite(file, b"%04d" % part, 4 * part)
                folder.done("data", file, part + 1)
                wrote.append(part)
            os.close(file)
            folder.publish({"note": b"of a kind"})
        folder.clean_up()
    return wrote


def stopped(out: Path, after: int, settings: Settings = SETTINGS) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fill(out, after, settings)
    return out.with_name("out.incomplete")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def is_whole(out: Path) -> bool:
    return {path.name: path.read_bytes() for path in out.iterdir()} == {
        "data": b"0000000100020003",
        "note": b"of a kind",
    } and not out.with_name("out.incomplete").exists()


def test_a_folder_is_there_at_the_end_alone(out: Path) -> None:
    stopped(out, 2)
    assert not out.exists()
    assert fill(out) == [2, 3]
    assert is_whole(out)


def test_a_folder_that_exists_is_left_alone(out: Path) -> None:
    fill(out)
    with pytest.raises(DstoolsError, match="exists") as caught:
        fill(out)
    assert "delete this one" in caught.value.hint
    assert is_whole(out)


def test_a_folder_made_while_another_run_was_stopped_is_left_alone(out: Path) -> None:
    work = stopped(out, 2)
    out.mkdir()
    with pytest.raises(DstoolsError, match="exists"):
        fill(out)
    assert (work / "model" / "data").exists()


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"--dtype": "float16"}, "with --dtype float32"),
        ({"--mtp": False}, "with --mtp"),
        ({"tool": "dstools 2"}, "by dstools 1"),
        ({"source": "cd", "--dtype": "float16"}, "from another source and with --dtype float32"),
    ],
)
def test_the_work_of_other_options_is_not_resumed_and_the_option_is_named(
    changes: Settings, how: str, out: Path
) -> None:
    work = stopped(out, 2)
    with pytest.raises(DstoolsError) as caught:
        fill(out, settings={**SETTINGS, **changes})
    assert str(caught.value) == f"{work}: was begun {how}"
    assert fill(out) == [2, 3]


def test_the_work_of_a_dstools_with_another_journal_is_not_resumed(out: Path) -> None:
    journal = stopped(out, 2) / "journal.jsonl"
    journal.write_text(json.dumps({"settings": "a line"}) + "\n")
    with pytest.raises(DstoolsError, match="was begun by another dstools"):
        fill(out)


def test_a_second_run_at_the_same_time_is_refused(out: Path) -> None:
    work = stopped(out, 2)
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(DstoolsError, match="another run is writing it"):
        fill(out)
    os.close(lock)
    assert fill(out) == [2, 3]


def test_a_stranger_s_file_stops_the_run(out: Path) -> None:
    work = stopped(out, 2)
    (work / "mine").touch()
    with pytest.raises(DstoolsError, match="mine: dstools did not write it"):
        fill(out)


def test_a_torn_record_is_written_again(out: Path) -> None:
    journal = stopped(out, 3) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-4])  # of the third part
    assert fill(out) == [2, 3]
    assert is_whole(out)


def test_a_file_cut_short_begins_anew(out: Path) -> None:
    data = stopped(out, 2) / "model" / "data"
    os.truncate(data, 10)
    assert fill(out) == [0, 1, 2, 3]
    assert is_whole(out)


def test_a_file_of_an_earlier_run_that_is_not_wanted_now_is_removed(out: Path) -> None:
    (stopped(out, 2) / "model" / "old").touch()
    fill(out)
    assert is_whole(out)


def test_a_run_killed_between_the_rename_and_the_end_cleans_up(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "clean_up", lambda self: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            fill(out)
    assert out.exists()
    assert fill(out) == []
    assert is_whole(out)


def test_what_a_run_killed_at_the_very_end_leaves_is_no_reason_to_go_on(out: Path) -> None:
    fill(out)
    out.with_name("out.incomplete").mkdir()  # killed between the journal's end and its own
    with pytest.raises(DstoolsError, match="exists"):
        fill(out)
    assert is_whole(out)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(out: Path) -> None:
    with Unfinished(out, SETTINGS) as folder, pytest.raises(DstoolsError, match="the disk has"):
        folder.require_space(1 << 60)
    assert list(out.parent.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DstoolsError, match="No space left") as caught:
        fill(out)
    assert "the same command resumes" in caught.value.hint
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_of_another_program_is_moved_into_the_folder(out: Path) -> None:
    with Unfinished(out, SETTINGS) as folder:  # stopped
        (folder.start_over() / "half").write_bytes(b"of a graph")
    with Unfinished(out, SETTINGS) as folder:
        scratch = folder.start_over()
        assert list(scratch.iterdir()) == []
        (scratch / "graph").write_bytes(b"of a builder")
        folder.take(scratch / "graph")
        folder.publish({"note": b"beside it"})
        folder.clean_up()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "graph").read_bytes() == b"of a builder"
    assert (out / "note").read_bytes() == b"beside it"
