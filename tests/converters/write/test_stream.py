"""Converting: the right bytes, whatever the order, the number of workers, and the kills on the way."""

import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dstools_converters.checkpoint import folder as checkpoints
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.write.jobs import jobs_of
from dstools_converters.write.stream import run
from dstools_converters.write.writer import Writer


def plan_of(folder: Path) -> Plan:
    return plan_quantize(require_sound(open_checkpoint(folder)), Recipe(), "native", None)


def quantize(folder: Path, out: Path, workers: int = 2, is_synced: bool = False) -> int:
    """Return the input bytes that an earlier run had done."""
    return run(
        plan_of(folder), out, tool="dstools test", workers=workers, is_synced=is_synced
    ).bytes_resumed


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def writable_copy(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def tensor_file(folder: Path, name: str) -> tuple[Path, int]:
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
    return folder / info.shard, info.offset


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_changes_no_byte(tiny: Path, tmp_path: Path, workers: int) -> None:
    quantize(tiny, tmp_path / "one", workers=1)
    quantize(tiny, tmp_path / "some", workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "some")


def test_the_input_is_left_as_it_was(tiny: Path, tmp_path: Path) -> None:
    before = tree(tiny)
    quantize(tiny, tmp_path / "out")
    assert tree(tiny) == before


def test_files_are_as_readable_as_the_umask_says(tiny: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        quantize(tiny, tmp_path / "out")
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


def test_progress_adds_up_to_the_input(tiny: Path, tmp_path: Path) -> None:
    told: list[int] = []
    plan = plan_of(tiny)
    run(plan, tmp_path / "out", tool="dstools test", workers=2, progress=told.append)
    assert sum(told) == plan.bytes_in


def test_progress_of_fp8_counts_the_scales_with_their_weights(tiny_fp8: Path) -> None:
    plan = plan_dequantize(require_sound(open_checkpoint(tiny_fp8)))
    scales = sum(s.scale.nbytes for s in plan.inventory.quantized().values())
    told = sum(job.bytes_in for shard in plan.shards for job in jobs_of(plan, shard))
    assert told + scales == plan.bytes_in


VALUES = {  # little-endian bit patterns of what no engine can use, in BF16
    "inf": 0x7F80, "-inf": 0xFF80, "nan": 0x7FC0, "a signalling nan": 0x7F81,
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_b_proj.weight", "model.embed_tokens.weight", "model.norm.weight"],
)
def test_nan_and_infinity_are_refused_by_file_tensor_and_place(
    tiny: Path, tmp_path: Path, name: str, value: int
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
    element = info.numel - 1
    with (folder / info.shard).open("r+b") as file:
        file.seek(info.offset + 2 * element)
        file.write(value.to_bytes(2, "little"))
    place = [size - 1 for size in info.shape]
    with pytest.raises(DstoolsError) as caught:
        quantize(folder, tmp_path / "out")
    assert str(caught.value) == f"{info.shard}: {name}: NaN or infinity at {place}"
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make_plan", [plan_dequantize, "quantize"], ids=["dequantize", "pass through"]
)
def test_a_nan_code_is_refused(
    tiny_fp8: Path, tmp_path: Path, make_plan: Callable[..., Plan] | str
) -> None:
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    name = "model.layers.0.self_attn.o_proj.weight"
    shard, offset = tensor_file(folder, name)
    with shard.open("r+b") as file:
        file.seek(offset + 5)
        file.write(b"\xff")
    inventory = require_sound(open_checkpoint(folder))
    plan = plan_of(folder) if isinstance(make_plan, str) else make_plan(inventory)
    with pytest.raises(DstoolsError, match=rf"{name}: NaN or infinity at \[0, 5\]"):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_becomes_shorter_meanwhile_is_an_error(tiny: Path, tmp_path: Path) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    plan = plan_of(folder)
    shard = folder / plan.shards[-1].name
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(DstoolsError, match=shard.name):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_written_to_meanwhile_is_an_error(tiny: Path, tmp_path: Path) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    plan = plan_of(folder)
    os.utime(folder / plan.shards[0].name, ns=(1, 1))
    with pytest.raises(DstoolsError, match="changed or was removed while it was being read"):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_one_line_and_can_be_gone_on_from(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


# ------------------------------------------------------------------------------------- killed

KILL_AT_CALL = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.plan import plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.write.stream import run

source, out, first, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
CALLS = ["pwrite", "write", "rename", "fsync", "posix_fallocate", "rmdir", "unlink", "mkdir"]

def quantize(kill_at):
    seen = 0
    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapper
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    plan = plan_quantize(require_sound(open_checkpoint(source)), Recipe(), "native", None)
    run(plan, out, tool="dstools test", workers=1)
    return seen

def tree():
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

def clear():
    import shutil
    shutil.rmtree(out, ignore_errors=True)

# an uninterrupted run, in a child: how many calls there are, and what they make
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, str(quantize(0)).encode())
    os._exit(0)
os.wait()
calls, wanted = int(os.read(read, 20)), tree()
clear()
killed = 0
at = [*range(first, calls - 25, step), *range(calls - 25, calls + 1)]
for kill_at in at:
    for attempt in (kill_at, 0):
        pid = os.fork()
        if pid == 0:
            try:
                quantize(attempt)
                os._exit(0)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if attempt:
            assert os.WIFSIGNALED(status), (kill_at, status)
            killed += 1
            assert not out.exists() or tree() == wanted, f"looks done after a kill at {kill_at}"
    assert status == 0, f"the second run failed after a kill at {kill_at}"
    assert tree() == wanted, f"other bytes after a kill at {kill_at}"
    assert not out.with_name(out.name + ".incomplete").exists()
    clear()
print(calls, killed)
"""


def test_killed_before_any_system_call_that_writes_the_next_run_makes_the_same_bytes(
    tiny: Path, tmp_path: Path
) -> None:
    """Every 4th call, and each of the last 25, where files are added and names are given."""
    command = [sys.executable, "-c", KILL_AT_CALL, str(tiny), str(tmp_path / "out"), "1", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls, killed = map(int, done.stdout.split())
    assert calls > 300
    assert killed > 90


@pytest.mark.slow
def test_fifty_random_kills_lose_no_byte_and_repeat_less_than_a_shard(
    checkpoint: Callable[..., Path], tmp_path: Path
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
        before = journaled_bytes(source, out)
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
    plan = plan_of(source)
    largest_job = max(job.bytes_in for shard in plan.shards for job in jobs_of(plan, shard))
    assert 2 * largest_job < min(shard.nbytes for shard in plan.shards)


def journaled_bytes(source: Path, out: Path) -> int:
    """Return the input bytes whose jobs the journal of a killed run holds."""
    journal = out.with_name(out.name + ".incomplete") / "journal.jsonl"
    if not journal.exists():
        return 0
    plan = plan_of(source)
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


# ------------------------------------------------------------------------------- the work folder


def interrupted(source: Path, out: Path, after: int, is_synced: bool = False) -> Checkpoint:
    """Stop a run with an error after some progress, as Ctrl-C would."""
    plan = plan_of(source)
    told = 0

    def stop(nbytes: int) -> None:
        nonlocal told
        told += nbytes
        if told > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, out, tool="dstools test", workers=1, is_synced=is_synced, progress=stop)
    return plan.inventory.checkpoint


def test_ctrl_c_leaves_what_the_next_run_goes_on_from(tiny: Path, tmp_path: Path) -> None:
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=5_000_000)
    assert not (tmp_path / "out").exists()
    assert quantize(tiny, tmp_path / "out") >= 5_000_000
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_after_a_power_failure_only_flushed_shards_are_trusted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tiny, tmp_path / "out", after=5_000_000, is_synced=True)
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    assert quantize(tiny, tmp_path / "out") > 1_000_000


def test_a_shard_laid_out_anew_voids_what_the_journal_said_of_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kills, with a power failure between: jobs of the first run must not count in the third."""
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=1_500_000)
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    interrupted(tiny, tmp_path / "out", after=100_000)
    monkeypatch.undo()  # as if the machine had come back under its first name
    quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_another_plan_does_not_go_on_from_this_one(tiny: Path, tmp_path: Path) -> None:
    interrupted(tiny, tmp_path / "out", after=1_000_000)
    inventory = require_sound(open_checkpoint(tiny))
    other = plan_quantize(inventory, Recipe(), "native", "ue8m0")
    with pytest.raises(DstoolsError, match="was begun from another source"):
        run(other, tmp_path / "out", tool="dstools test", workers=1)
    assert quantize(tiny, tmp_path / "out") >= 1_000_000


def test_two_runs_do_not_meet(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny)
    with (
        Writer(plan, tmp_path / "out", lambda writer: {}, "", is_synced=False),
        pytest.raises(DstoolsError, match="another run is writing it"),
    ):
        quantize(tiny, tmp_path / "out")


def test_an_existing_folder_is_never_touched(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DstoolsError, match="exists"):
        quantize(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_too_small_a_disk_is_said_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dstools_converters.write.writer.shutil.disk_usage",
        lambda path: SimpleNamespace(free=1_000_000),
    )
    with pytest.raises(DstoolsError, match=r"needs 0\.0 GB, the disk has 0\.0 GB free"):
        quantize(tiny, tmp_path / "out")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_disk_that_cannot_give_a_page_is_an_error_by_file_and_tensor(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(mmap.mmap):
        def madvise(self, option: int, *span: int) -> None:
            if option == checkpoints.MADV_POPULATE_READ:
                raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(mmap, "mmap", Broken)
    with pytest.raises(DstoolsError, match=r"model-\d+-of-\d+\.safetensors: \S+: cannot be read"):
        quantize(tiny, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_torn_line_of_the_journal_hides_none_that_follow(tiny: Path, tmp_path: Path) -> None:
    """Were the torn line left in, "opened" lines behind it would be lost, and old jobs believed."""
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
def test_what_is_no_whole_line_of_the_journal_is_cut_off(
    tiny: Path, tmp_path: Path, tail: bytes
) -> None:
    quantize(tiny, tmp_path / "wanted")
    interrupted(tiny, tmp_path / "out", after=1_500_000)
    with (tmp_path / "out.incomplete" / "journal.jsonl").open("ab") as file:
        file.write(tail)
    assert quantize(tiny, tmp_path / "out") > 1_000_000
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_a_shard_that_the_disk_did_not_take_is_made_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells of a failed write-back once; the next fsync succeeds, without the data."""
    quantize(tiny, tmp_path / "wanted")
    first = plan_of(tiny).shards[0].name

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
    tiny: Path, tmp_path: Path
) -> None:
    inventory = require_sound(open_checkpoint(tiny))
    other = plan_quantize(inventory, Recipe(), "native", "ue8m0")
    run(other, tmp_path / "out", tool="dstools test", workers=1)
    before = tree(tmp_path / "out")
    (tmp_path / "out.incomplete").mkdir()
    with pytest.raises(DstoolsError, match="exists"):
        quantize(tiny, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_work_folder_that_holds_something_else_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "precious.txt").write_text("mine")
    with pytest.raises(DstoolsError, match=r"precious\.txt: dstools did not write it"):
        quantize(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(
    tiny_fp8: Path, tmp_path: Path, value: float
) -> None:
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    shard, offset = tensor_file(folder, name)
    with shard.open("r+b") as file:
        file.seek(offset + 4)
        file.write(struct.pack("<f", value))
    inventory = require_sound(open_checkpoint(folder))
    for plan in (plan_of(folder), plan_dequantize(inventory)):
        with pytest.raises(DstoolsError, match=rf"{name}: holds {value:g} at \[1, 0\]"):
            run(plan, tmp_path / "out", tool="dstools test", workers=2)
        shutil.rmtree(tmp_path / "out.incomplete")


def test_a_checkpoint_of_more_shards_than_files_may_be_open_is_converted(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("tiny", shard_bytes=60e3)
    assert len(list(source.glob("*.safetensors"))) > 60
    command = [sys.executable, "-m", "dstools", "quantize", str(source), str(tmp_path / "out")]
    limited = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["tool", "piece"])
def test_another_version_does_not_go_on_from_this_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Jobs are journaled by their numbers, which another version may give to other bytes."""
    interrupted(tiny, tmp_path / "out", after=1_000_000)
    if what == "piece":
        monkeypatch.setattr("dstools_converters.write.jobs.PIECE_BYTES", 1 << 20)
    tool = "dstools test" if what == "piece" else "dstools next"
    with pytest.raises(DstoolsError, match="or by another dstools"):
        run(plan_of(tiny), tmp_path / "out", tool=tool, workers=1)
