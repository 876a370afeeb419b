"""The journal: its records read back, and which of them a restart or a new beginning voids."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.calibration import LayerNote
from dstools_converters.write.journal import Done, Journal, begun_by

PLAN = {"plan": "a plan", "settings": {"tool": "dstools 1"}}
SEEN = LayerNote([3, 5], {"latent_amax": 2.5})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def begun(path: Path, boot: str = "first") -> Journal:
    """A journal open for records, as if the machine's boot had that id."""
    journal = Journal(path)
    journal.boot = boot
    journal.begin(PLAN)
    return journal


def read(path: Path, boot: str = "first") -> Journal:
    journal = Journal(path)
    journal.boot = boot
    return journal


def test_the_records_are_as_the_module_describes_them(path: Path) -> None:
    journal = begun(path)
    journal.opened(1)
    journal.job(1, 0, None)
    journal.job(1, 2, {"tensor": "w", "recovered": True})
    journal.layer(0, SEEN)
    journal.flushed({4, 1})
    journal.written(1)
    journal.synced(1)
    journal.hashed(1, "ab")
    journal.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        PLAN,
        {"boot": "first"},
        {"opened": 1},
        {"job": [1, 0]},
        {"job": [1, 2], "note": {"tensor": "w", "recovered": True}},
        {"layer": 0, "note": {"expert_load": [3, 5], "cache_amax": {"latent_amax": 2.5}}},
        {"flushed": [1, 4]},
        {"written": 1},
        {"synced": 1},
        {"hashed": [1, "ab"]},
    ]


def test_a_new_journal_has_no_plan_and_nothing_done(path: Path) -> None:
    journal = Journal(path)
    assert (begun_by(path), journal.records, journal.done()) == (None, [], Done())
    assert journal.named() == set()


@pytest.mark.parametrize(
    ("content", "plan"),
    [
        (b"", None),
        (b'{"plan": "a pl', None),  # torn by a kill, so nothing was begun
        (b'{"plan": "a plan"}', None),
        (b"\xff\n", None),
        (b"[7]\n", None),
        (b'{"boot": "first"}\n', {"boot": "first"}),  # of no plan that there is
        (b'{"plan": "a plan"}\n{"boot"', {"plan": "a plan"}),
    ],
)
def test_the_plan_is_read_without_a_change_to_the_file(
    path: Path, content: bytes, plan: dict[str, Any] | None
) -> None:
    path.write_bytes(content)
    assert begun_by(path) == plan
    assert path.read_bytes() == content


def test_a_second_run_appends_its_boot_and_no_second_plan(path: Path) -> None:
    begun(path).close()
    begun(path, "second").close()
    assert begun_by(path) == PLAN
    assert path.read_text().splitlines() == [
        '{"plan": "a plan", "settings": {"tool": "dstools 1"}}',
        '{"boot": "first"}',
        '{"boot": "second"}',
    ]


def test_jobs_notes_and_layers_of_this_boot_are_done(path: Path) -> None:
    journal = begun(path)
    journal.job(0, 3, {"tensor": "w"})
    journal.job(0, 4, None)
    journal.layer(7, SEEN)
    journal.close()
    done = read(path).done()
    assert done == Done(jobs={0: {3, 4}}, notes={(0, 3): {"tensor": "w"}}, layers={7: SEEN})


def test_after_a_restart_only_what_was_flushed_is_done(path: Path) -> None:
    journal = begun(path)
    journal.job(0, 0, None)
    journal.layer(0, SEEN)
    journal.flushed([0])
    journal.job(0, 1, None)
    journal.job(1, 0, None)
    journal.layer(1, SEEN)
    journal.close()
    done = read(path, "second").done()
    assert (done.jobs, done.layers) == ({0: {0}}, {0: SEEN})


def test_a_flush_covers_the_shards_that_it_names_alone(path: Path) -> None:
    journal = begun(path)
    journal.job(0, 0, None)
    journal.job(1, 0, None)
    journal.flushed([1])
    journal.close()
    assert read(path, "second").done().jobs == {1: {0}}
    assert read(path).done().jobs == {0: {0}, 1: {0}}


def test_a_shard_that_is_written_is_finished_until_a_restart_and_a_synced_one_after_it(
    path: Path,
) -> None:
    journal = begun(path)
    journal.written(0)
    journal.written(1)
    journal.synced(1)
    journal.close()
    done = read(path).done()
    assert (done.finished, done.synced) == ({0, 1}, {1})
    assert read(path).named() == {0, 1}
    done = read(path, "second").done()
    assert (done.finished, done.synced) == ({1}, {1})
    assert read(path, "second").named() == {1}


def test_the_sha256_of_a_shard_outlives_a_restart_but_not_a_new_beginning(path: Path) -> None:
    journal = begun(path)
    for shard in (0, 1):
        journal.written(shard)
        journal.hashed(shard, f"a{shard}")
        journal.synced(shard)
    journal.opened(0)
    journal.close()
    assert read(path, "second").done().sha256 == {1: "a1"}


def test_opening_a_shard_voids_all_that_was_recorded_of_it(path: Path) -> None:
    journal = begun(path)
    for shard in (0, 1):
        journal.job(shard, 0, None)
        journal.flushed([shard])
        journal.job(shard, 1, None)
        journal.written(shard)
        journal.synced(shard)
    journal.opened(0)
    journal.job(0, 5, None)
    journal.close()
    done = read(path).done()
    assert (done.finished, done.synced) == ({1}, {1})
    assert done.jobs == {0: {5}, 1: {0, 1}}


def test_jobs_of_a_boot_do_not_count_for_a_later_flush_of_another(path: Path) -> None:
    journal = begun(path)
    journal.job(0, 0, None)
    journal.close()
    journal = begun(path, "second")
    journal.job(0, 1, None)
    journal.flushed([0])
    journal.close()
    assert read(path, "third").done().jobs == {0: {1}}


def test_all_notes_are_those_of_every_boot(path: Path) -> None:
    journal = begun(path)
    journal.job(0, 0, {"tensor": "v"})
    journal.job(0, 1, None)
    journal.close()
    journal = begun(path, "second")
    journal.job(2, 0, {"tensor": "w"})
    journal.layer(4, SEEN)
    journal.close()
    notes, layers = read(path, "third").all_notes()
    assert notes == {(0, 0): {"tensor": "v"}, (2, 0): {"tensor": "w"}}
    assert layers == {4: SEEN}


def test_a_torn_record_is_cut_off_when_the_journal_is_read(path: Path) -> None:
    begun(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"synced": 0')
    assert read(path).done().synced == set()
    assert path.read_bytes() == whole


def test_without_a_boot_id_no_two_runs_are_of_one_boot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dstools_converters.write.journal.BOOT_ID", path / "none")
    assert Journal(path).boot != Journal(path).boot


def test_a_full_disk_is_an_error_that_names_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(path)

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DstoolsError, match=r"journal\.jsonl: No space left on device"):
        journal.written(0)
    journal.close()
