"""Rows run through workers: the same bytes by any number of them, after any kill."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.store.rows import Chunk, Rows, each_record, map_rows
from dstools_distill.store.stage import Work


def work(folder: Path, workers: int = 1) -> Work:
    return Work(folder, workers)


def make_doubler(source: Path, delay: float = 0.0) -> Any:
    def double(rows: Rows) -> Chunk:
        time.sleep(delay)
        kept, odd = b"", b""
        for record in each_record(source, rows):
            line = records.dump(record | {"twice": 2 * record["n"]})
            if record["n"] % 2:
                odd += line
            else:
                kept += line
        return Chunk({"kept": kept, "odd": odd}, Counter(rows=len(rows)))

    return double


def make_nothing(source: Path) -> Any:
    raise DstoolsError(f"{source}: cannot begin", "mend it")


def make_death(source: Path) -> Any:
    def die(rows: Rows) -> Chunk:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return die


def numbers(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"n": {n}}}\n' + "\n" * (n % 700 == 0) for n in range(count)))
    return path


def double(source: Path, folder: Path, workers: int = 1, delay: float = 0.0) -> Counter[str]:
    folder.mkdir(exist_ok=True)
    files = ("kept", "odd")
    return map_rows(source, work(folder, workers), files, make_doubler, source, delay, what="x")


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("kept", "odd")}


def test_rows_come_out_the_same_by_any_number_of_workers(tmp_path: Path) -> None:
    source = numbers(tmp_path / "source", 5000)
    counts = [double(source, tmp_path / str(workers), workers) for workers in (1, 2, 3)]
    assert counts == [Counter(rows=5000)] * 3
    one, two, three = (read(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two == three
    assert one["odd"].startswith(b'{"n": 1, "twice": 2}\n{"n": 3, "twice": 6}\n')
    assert one["kept"].count(b"\n") == 2500


@pytest.mark.parametrize("damage", ["none", "torn line", "longer files"])
def test_a_run_goes_on_from_its_journal(tmp_path: Path, damage: str) -> None:
    source = numbers(tmp_path / "source", 5000)
    double(source, tmp_path / "whole")
    folder = tmp_path / "part"
    double(source, folder)
    journal = folder / "journal.jsonl"
    notes = journal.read_bytes().splitlines(keepends=True)
    assert len(notes) == 5  # of 1024 lines each
    journal.write_bytes(b"".join(notes[:2]) + (notes[2][:-9] if damage == "torn line" else b""))
    if damage == "longer files":
        with (folder / "kept").open("ab") as file:
            file.write(b"half a li")
    assert double(source, folder) == Counter(rows=5000)
    assert read(folder) == read(tmp_path / "whole")


def test_a_run_killed_at_any_moment_gives_the_same_bytes(tmp_path: Path) -> None:
    source = numbers(tmp_path / "source", 12_000)
    double(source, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1]); import test_rows as t\n"
        "if __name__ == '__main__': t.double(Path(sys.argv[2]), Path(sys.argv[3]), 1, 0.04)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(source)]
    kills = 0
    for seconds in (0.05, 0.2, 0.33, 0.45):
        run = subprocess.Popen([*command, str(tmp_path / "part")])
        journal = tmp_path / "part" / "journal.jsonl"
        before = journal.stat().st_size if journal.exists() else -1
        while run.poll() is None and (journal.stat().st_size if journal.exists() else -1) <= before:
            time.sleep(0.005)  # until it has begun to write
        time.sleep(seconds / 10)
        run.kill()
        kills += run.wait() == -signal.SIGKILL
    assert kills >= 3
    assert double(source, tmp_path / "part") == Counter(rows=12_000)
    assert read(tmp_path / "part") == read(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_is_named_by_file_and_line_and_what_was_done_stays(
    tmp_path: Path, workers: int
) -> None:
    source = numbers(tmp_path / "source", 3000)
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join([*lines[:2500], "{bad\n", *lines[2500:]]))
    with pytest.raises(DstoolsError, match=r"source: line 2501: is not valid JSON") as caught:
        double(source, tmp_path / "part", workers)
    assert caught.value.hint
    source.write_text("".join(lines))  # mended: the first 2048 lines are not done again
    double(source, tmp_path / "part")
    double(source, tmp_path / "whole")
    assert read(tmp_path / "part") == read(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_begin_says_why(tmp_path: Path, workers: int) -> None:
    source = numbers(tmp_path / "source", 10)
    with pytest.raises(DstoolsError, match="cannot begin") as caught:
        map_rows(source, work(tmp_path, workers), ("kept",), make_nothing, source, what="x")
    assert caught.value.hint == "mend it"


def test_a_worker_that_is_killed_does_not_leave_the_run_waiting(tmp_path: Path) -> None:
    source = numbers(tmp_path / "source", 3000)
    with pytest.raises(DstoolsError, match="worker process was killed"):
        map_rows(source, work(tmp_path, 2), ("kept",), make_death, source, what="x")
