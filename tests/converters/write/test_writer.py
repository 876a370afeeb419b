"""The folder of a run: locked by one, resumed after a kill, complete under its name."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan, plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.sidefiles.sums import read_sums, sha256_of
from dstools_converters.write.stream import run
from dstools_converters.write.writer import Writer

PlanOf = Callable[[Path], Plan]
Quantize = Callable[..., int]
Interrupted = Callable[..., Checkpoint]
Tree = Callable[[Path], dict[str, str]]
Copy = Callable[[Path, Path], Path]


def test_the_run_after_ctrl_c_resumes(
    tiny: Path, tmp_path: Path, quantize: Quantize, tree: Tree, interrupted: Interrupted
) -> None:
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=5_000_000)
    assert not (tmp_path / "out").exists()
    assert quantize(tiny, tmp_path / "out") >= 5_000_000
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_after_a_power_failure_only_flushed_shards_are_trusted(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Quantize,
    tree: Tree,
    interrupted: Interrupted,
) -> None:
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=5_000_000)
    model = tmp_path / "out.incomplete" / "model"
    for path in model.iterdir():  # the header was flushed, the data was not
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(4096)
            file.truncate(size)
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    assert quantize(tiny, tmp_path / "out") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_what_was_flushed_is_trusted_after_a_power_failure(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Quantize,
    interrupted: Interrupted,
) -> None:
    interrupted(tiny, tmp_path / "out", after=5_000_000, is_synced=True)
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    assert quantize(tiny, tmp_path / "out") > 1_000_000


def test_a_shard_laid_out_anew_voids_what_the_journal_said_of_it(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Quantize,
    tree: Tree,
    interrupted: Interrupted,
) -> None:
    """Two kills, a power failure between: jobs of the first run must not count in the third."""
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=1_500_000)
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    interrupted(tiny, tmp_path / "out", after=100_000)
    monkeypatch.undo()  # as if the machine had come back under its first name
    quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_another_plan_does_not_resume_this_one(
    tiny: Path, tmp_path: Path, quantize: Quantize, interrupted: Interrupted
) -> None:
    interrupted(tiny, tmp_path / "out", after=1_000_000)
    inventory = require_sound(open_checkpoint(tiny))
    other = plan_quantize(inventory, Recipe(), "native", "ue8m0")
    with pytest.raises(DstoolsError, match="was begun with --scale-fmt float32"):
        run(other, tmp_path / "out", tool="dstools test", workers=1)
    assert quantize(tiny, tmp_path / "out") >= 1_000_000


def test_a_journal_without_settings_is_of_an_older_dstools(
    tiny: Path, tmp_path: Path, interrupted: Interrupted, plain_plan: PlanOf
) -> None:
    interrupted(tiny, tmp_path / "out", after=1_000_000)
    journal = tmp_path / "out.incomplete" / "journal.jsonl"
    first, *rest = journal.read_text().splitlines(keepends=True)
    older = json.dumps({"plan": json.loads(first)["plan"]}) + "\n"
    journal.write_text("".join([older, *rest]))
    with pytest.raises(DstoolsError, match="was begun by an older dstools"):
        run(plain_plan(tiny), tmp_path / "out", tool="dstools test", workers=1)


def test_a_second_run_at_the_same_time_is_refused(
    tiny: Path, tmp_path: Path, quantize: Quantize, plain_plan: PlanOf
) -> None:
    plan = plain_plan(tiny)
    with (
        Writer(
            plan,
            tmp_path / "out",
            lambda writer: {},
            "",
            is_synced=False,
            writes_sums=True,
            sign=None,
        ),
        pytest.raises(DstoolsError, match="another run is writing it"),
    ):
        quantize(tiny, tmp_path / "out")


def test_an_existing_folder_is_never_touched(
    tiny: Path, tmp_path: Path, quantize: Quantize
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DstoolsError, match="exists"):
        quantize(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_too_small_a_disk_is_an_error_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: Quantize
) -> None:
    monkeypatch.setattr(
        "dstools_converters.write.writer.shutil.disk_usage",
        lambda path: SimpleNamespace(free=1_000_000),
    )
    with pytest.raises(DstoolsError, match=r"needs 6\.\d+ MB, the disk has 1 MB free"):
        quantize(tiny, tmp_path / "out")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_torn_line_of_the_journal_hides_no_later_one(
    tiny: Path, tmp_path: Path, quantize: Quantize, tree: Tree, interrupted: Interrupted
) -> None:
    """Were the torn line kept, "opened" after it would be lost, and old jobs would count."""
    quantize(tiny, tmp_path / "wanted")
    journal = tmp_path / "out.incomplete" / "journal.jsonl"
    interrupted(tiny, tmp_path / "out", after=1_500_000)
    with journal.open("ab") as file:
        file.write(b'{"job": [0')  # cut short by a full disk or a kill
    partials = list(journal.parent.rglob("*.partial"))
    assert partials
    for path in partials:  # lost, so that the next run opens them anew
        path.unlink()
    interrupted(tiny, tmp_path / "out", after=100_000)
    assert b'{"job": [0{' not in journal.read_bytes()
    quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


@pytest.mark.parametrize("tail", [b"5\n", b"[1]\n", b"\xff\n", b'{"job": [0, 1]}'])
def test_a_tail_of_the_journal_that_is_not_a_record_is_cut_off(
    tiny: Path,
    tmp_path: Path,
    tail: bytes,
    quantize: Quantize,
    tree: Tree,
    interrupted: Interrupted,
) -> None:
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=1_500_000)
    with (tmp_path / "out.incomplete" / "journal.jsonl").open("ab") as file:
        file.write(tail)
    assert quantize(tiny, tmp_path / "out") > 1_000_000
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_a_shard_that_the_disk_did_not_take_is_made_again(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Quantize,
    tree: Tree,
    plain_plan: PlanOf,
) -> None:
    """Linux reports a failed write-back once; the next fsync succeeds, without the data."""
    quantize(tiny, tmp_path / "wanted")
    first = plain_plan(tiny).shards[0].name

    def failing(path: Path) -> None:
        if path.name == first:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dstools_converters.write.writer.sync", failing)
    with pytest.raises(DstoolsError, match=f"{first}: the disk did not take it"):
        quantize(tiny, tmp_path / "out", is_synced=True)
    assert not (tmp_path / "out").exists()
    with (tmp_path / "out.incomplete" / "model" / first).open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))  # what was lost
    monkeypatch.undo()
    quantize(tiny, tmp_path / "out", is_synced=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_a_finished_folder_of_another_plan_is_not_taken_for_ours(
    tiny: Path, tmp_path: Path, quantize: Quantize, tree: Tree
) -> None:
    inventory = require_sound(open_checkpoint(tiny))
    other = plan_quantize(inventory, Recipe(), "native", "ue8m0")
    run(other, tmp_path / "out", tool="dstools test", workers=1)
    before = tree(tmp_path / "out")
    (tmp_path / "out.incomplete").mkdir()
    with pytest.raises(DstoolsError, match="exists"):
        quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_work_folder_that_holds_something_else_is_refused(
    tiny: Path, tmp_path: Path, quantize: Quantize
) -> None:
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "precious.txt").write_text("mine")
    with pytest.raises(DstoolsError, match=r"precious\.txt: dstools did not write it"):
        quantize(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a writer hashes from now on."""
    names: list[str] = []

    def note(path: Path, *progress: Progress) -> str:
        names.append(path.name)
        return sha256_of(path, *progress)

    monkeypatch.setattr("dstools_converters.write.writer.sha256_of", note)
    monkeypatch.setattr("dstools_converters.sidefiles.sums.sha256_of", note)
    return names


def test_sha256sum_finds_every_file_but_its_own_list_as_it_was_written(
    tiny: Path, tmp_path: Path, quantize: Quantize, tree: Tree
) -> None:
    out = tmp_path / "out"
    quantize(tiny, out)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    assert read_sums(out) == {n: digest for n, digest in tree(out).items() if n != "SHA256SUMS"}


def test_a_shard_of_an_earlier_run_is_read_again_and_made_again_if_it_has_changed(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Quantize,
    tree: Tree,
    interrupted: Interrupted,
) -> None:
    source, out = checkpoint("tiny", shard_bytes=1e6), tmp_path / "out"
    quantize(source, tmp_path / "wanted")
    names = hashed(monkeypatch)
    interrupted(source, out, after=5_000_000)
    first = list(names)
    assert first
    shard = tmp_path / "out.incomplete" / "model" / first[0]
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(DstoolsError, match=f"{first[0]}: has changed since an earlier run"):
        quantize(source, out)
    assert not out.exists()
    quantize(source, out)
    assert tree(out) == tree(tmp_path / "wanted")


@pytest.mark.parametrize("name", ["model.sig", "SHA256SUMS", "notes.txt", "figures/a.svg"])
def test_no_side_file_of_an_earlier_run_is_left(
    tiny: Path,
    tmp_path: Path,
    quantize: Quantize,
    tree: Tree,
    interrupted: Interrupted,
    plain_plan: PlanOf,
    name: str,
) -> None:
    """That run had other options, or a source with other files."""
    run(plain_plan(tiny), tmp_path / "wanted", tool="dstools test", workers=2, writes_sums=False)
    interrupted(tiny, tmp_path / "out", after=5_000_000)
    stale = tmp_path / "out.incomplete" / "model" / name
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("stale")
    run(plain_plan(tiny), tmp_path / "out", tool="dstools test", workers=2, writes_sums=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_a_shard_that_an_earlier_run_did_not_hash_is_read(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Tree,
    quantize: Quantize,
    plain_plan: PlanOf,
) -> None:
    quantize(tiny, tmp_path / "wanted")
    names = hashed(monkeypatch)

    def stop(writer: Writer, workers: int) -> None:
        raise KeyboardInterrupt

    plan = plain_plan(tiny)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "out", tool="dstools test", workers=2, writes_sums=False)
    assert not names
    quantize(tiny, tmp_path / "out")
    assert {shard.name for shard in plan.shards} < set(names)
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_hashing_ends_when_the_run_is_stopped_and_the_next_one_hashes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree, quantize: Quantize
) -> None:
    quantize(tiny, tmp_path / "wanted")
    real = Writer.shard_done

    def stopped(self: Writer, number: int) -> None:
        self.is_stopped = True  # as after Ctrl-C in another thread
        real(self, number)
        assert number not in self.sha256
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "shard_done", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny, tmp_path / "out", workers=1)
    quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_a_run_without_sums_hashes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_plan: PlanOf
) -> None:
    names = hashed(monkeypatch)
    run(plain_plan(tiny), tmp_path / "out", tool="dstools test", workers=2, writes_sums=False)
    assert not names
    assert not (tmp_path / "out" / "SHA256SUMS").exists()


def test_a_finished_folder_without_the_sums_asked_for_is_not_taken_for_ours(
    tiny: Path, tmp_path: Path, quantize: Quantize
) -> None:
    quantize(tiny, tmp_path / "out")
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out" / "SHA256SUMS").unlink()
    with pytest.raises(DstoolsError, match="exists"):
        quantize(tiny, tmp_path / "out")


def test_a_checkpoint_of_more_shards_than_files_may_be_open_is_converted(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("tiny", shard_bytes=60e3)
    assert len(list(source.glob("*.safetensors"))) > 60
    command = [sys.executable, "-m", "dstools", "quantize", str(source), str(tmp_path / "out")]
    limited = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
