"""Conversions: the same bytes whatever the workers and the kills on the way."""

import errno
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint import folder as checkpoints
from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan
from dstools_converters.write.jobs import jobs_of
from dstools_converters.write.stream import run

PlanOf = Callable[[Path], Plan]
Quantize = Callable[..., int]
Interrupted = Callable[..., Checkpoint]
Tree = Callable[[Path], dict[str, str]]
Copy = Callable[[Path, Path], Path]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_changes_no_byte(
    tiny: Path, tmp_path: Path, workers: int, quantize: Quantize, tree: Tree
) -> None:
    quantize(tiny, tmp_path / "one", workers=1)
    quantize(tiny, tmp_path / "some", workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "some")


def test_the_input_is_left_as_it_was(
    tiny: Path, tmp_path: Path, quantize: Quantize, tree: Tree
) -> None:
    before = tree(tiny)
    quantize(tiny, tmp_path / "out")
    assert tree(tiny) == before


def test_files_are_as_readable_as_the_umask_says(
    tiny: Path, tmp_path: Path, quantize: Quantize
) -> None:
    old = os.umask(0o027)
    try:
        quantize(tiny, tmp_path / "out")
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


def test_progress_adds_up_to_the_input(tiny: Path, tmp_path: Path, plain_plan: PlanOf) -> None:
    told: list[int] = []
    plan = plain_plan(tiny)
    run(plan, tmp_path / "out", tool="dstools test", workers=2, progress=told.append)
    assert sum(told) == plan.bytes_in


def test_a_shard_that_becomes_shorter_meanwhile_is_an_error(
    tiny: Path, tmp_path: Path, writable_copy: Copy, plain_plan: PlanOf
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    plan = plain_plan(folder)
    shard = folder / plan.shards[-1].name
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(DstoolsError, match=shard.name):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_written_to_meanwhile_is_an_error(
    tiny: Path, tmp_path: Path, writable_copy: Copy, plain_plan: PlanOf
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    plan = plain_plan(folder)
    os.utime(folder / plan.shards[0].name, ns=(1, 1))
    with pytest.raises(DstoolsError, match="changed or was removed while it was being read"):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_an_error_in_one_line_and_the_next_run_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: Quantize, tree: Tree
) -> None:
    wanted = tmp_path / "wanted"
    quantize(tiny, wanted)
    real, calls = os.pwrite, []

    def full(file: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 40:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DstoolsError, match="No space left on device") as caught:
        quantize(tiny, tmp_path / "out", workers=1)
    assert "the same command resumes" in caught.value.hint
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert quantize(tiny, tmp_path / "out") > 0
    assert tree(tmp_path / "out") == tree(wanted)


@pytest.mark.slow
def test_fifty_random_kills_lose_no_byte_and_repeat_less_than_a_shard(
    checkpoint: Callable[..., Path], tmp_path: Path, tree: Tree, plain_plan: PlanOf
) -> None:
    """kill -9 of the real command at random moments, again and again until a run gets through."""
    source = checkpoint("v3-layer", gb=0.5, shard_bytes=150e6)
    wanted, out = tmp_path / "wanted", tmp_path / "out"
    command = [sys.executable, "-m", "dstools", "quantize", str(source), "--json", "--workers", "2"]
    start = time.perf_counter()
    subprocess.run([*command, str(wanted)], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    dice, kills, runs = random.Random(1), 0, 0
    while kills < 50:
        before = journaled_bytes(plain_plan(source), out)
        process = subprocess.Popen(
            [*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        # kill within a random share of the time that a whole run takes; often enough, let it be
        try:
            stdout, stderr = process.communicate(timeout=seconds * dice.uniform(0.1, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            if not out.exists() or out.with_name("out.incomplete").exists():
                continue
            # killed between the end of its work and the end of the process
        else:
            assert process.returncode == 0, stderr
            # what the journal held was not done again
            assert json.loads(stdout)["bytes_resumed"] >= before
        assert tree(out) == tree(wanted)
        assert not out.with_name("out.incomplete").exists()
        shutil.rmtree(out)
        runs += 1
    assert runs >= 3, "kills came too early to prove anything"
    # what was written and not yet in the journal is a job a worker, far less than a shard
    plan = plain_plan(source)
    largest_job = max(job.bytes_in for shard in plan.shards for job in jobs_of(plan, shard))
    assert 2 * largest_job < min(shard.nbytes for shard in plan.shards)


def journaled_bytes(plan: Plan, out: Path) -> int:
    """Return the input bytes whose jobs the journal of a killed run holds."""
    journal = out.with_name(out.name + ".incomplete") / "journal.jsonl"
    if not journal.exists():
        return 0
    sizes = [{job.number: job.bytes_in for job in jobs_of(plan, shard)} for shard in plan.shards]
    done: set[tuple[int, int]] = set()
    for line in journal.read_text().splitlines():
        if not line.endswith("}"):
            break
        record = json.loads(line)
        if "opened" in record:
            done = {pair for pair in done if pair[0] != record["opened"]}
        elif "job" in record:
            done.add((record["job"][0], record["job"][1]))
    return sum(sizes[shard][job] for shard, job in done)


def test_a_disk_that_cannot_give_a_page_is_an_error_by_file_and_tensor(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: Quantize
) -> None:
    class Broken(mmap.mmap):
        def madvise(self, option: int, *span: int) -> None:
            if option == checkpoints.MADV_POPULATE_READ:
                raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(mmap, "mmap", Broken)
    with pytest.raises(DstoolsError, match=r"model-\d+-of-\d+\.safetensors: \S+: cannot be read"):
        quantize(tiny, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["tool", "piece"])
def test_another_version_does_not_resume_this_one(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    interrupted: Interrupted,
    plain_plan: PlanOf,
) -> None:
    """Jobs are journaled by their numbers, which another version may give to other bytes."""
    interrupted(tiny, tmp_path / "out", after=1_000_000)
    if what == "piece":
        monkeypatch.setattr("dstools_converters.write.jobs.PIECE_BYTES", 1 << 20)
    tool = "dstools test" if what == "piece" else "dstools next"
    named = "with pieces of " if what == "piece" else "by dstools test"
    with pytest.raises(DstoolsError, match=f"was begun {named}"):
        run(plain_plan(tiny), tmp_path / "out", tool=tool, workers=1)
