"""A calibration writes the same bytes when repeated, spilled, stopped or killed."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.layerwise.calibrate import layer_bytes
from dstools_converters.layerwise.runner import Runner
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import LayerNote
from dstools_converters.write.stream import Report, Sink
from dstools_converters.write.writer import Writer

Make = Callable[..., Path]
PlanOf = Callable[..., Plan]
Quantize = Callable[..., Report]
Tree = Callable[[Path], dict[str, str]]


def read(folder: Path, name: str = "calibration.json") -> Any:
    return json.loads((folder / name).read_text())


def test_the_same_bytes_come_out_again_and_with_hidden_states_on_the_disk(
    tiny: Path, calibrated: Make, tmp_path: Path, plan_of: PlanOf, quantize: Quantize, tree: Tree
) -> None:
    plan = plan_of(tiny)
    quantize(plan, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(calibrated(tiny))
    quantize(plan_of(tiny), tmp_path / "spilled", ram_bytes=1000, is_synced=True)
    assert tree(tmp_path / "spilled") == tree(calibrated(tiny))


def test_progress_adds_up_to_the_total(
    tiny: Path, tiny_fp8: Path, tmp_path: Path, plan_of: PlanOf, quantize: Quantize
) -> None:
    for number, source in enumerate((tiny, tiny_fp8)):
        reported: list[int] = []
        plan = plan_of(source, method="amax")
        quantize(plan, tmp_path / str(number), progress=reported.append)
        assert sum(reported) == sum(layer_bytes(plan))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"samples": 8, "seq_len": 64, "sha256": "other"}}, "with --calibrate "),
        ({"data": {"samples": 8, "seq_len": 64, "seed": 1}}, "with --seed 0"),
        ({"data": {"samples": 9, "seq_len": 64}}, "with --samples 8"),
        ({"method": "mse"}, "with --method gptq"),
        ({"threads": 2}, "with --threads 1"),
        ({"device": "cuda"}, "with --device cpu"),
        ({"versions": {"torch": "3"}}, "with another recipe"),  # none was noted
        ({"cpu": "AVX2"}, "without CPU"),
        ({"kv_cache": True}, "without --kv-cache"),
    ],
    ids=str,
)
def test_other_data_or_settings_do_not_resume_this_run(
    changes: dict[str, Any],
    named: str,
    tiny: Path,
    begun: Path,
    plan_of: PlanOf,
    quantize: Quantize,
) -> None:
    plan = plan_of(tiny, **changes)
    with pytest.raises(DstoolsError, match=f"incomplete: was begun .*{named}"):
        quantize(plan, begun)


def stopping(call: int) -> Any:
    """round_weight, interrupted at its n-th call."""
    from dstools_converters.layerwise.calibrate import round_weight

    calls = 0

    def rounds(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return round_weight(*arguments)

    return rounds


def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every layer that is run from now on is added."""
    layers: list[int] = []
    real = Runner.run_layer

    def counted(self: Any, layer: int, hidden: Any, watcher: Any) -> Any:
        layers.append(layer)
        return real(self, layer, hidden, watcher)

    monkeypatch.setattr(Runner, "run_layer", counted)
    return layers


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, plan_of: PlanOf, quantize: Quantize
) -> Path:
    """An OUT whose run was interrupted in its second layer."""
    out = tmp_path_factory.mktemp("begun") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dstools_converters.layerwise.calibrate.round_weight", stopping(15))
        with pytest.raises(KeyboardInterrupt):
            quantize(plan_of(tiny), out)
    return out


def test_what_is_done_is_not_done_again(
    tiny: Path,
    begun: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    """Fourteen weights are done; the next run starts at the layer of the fifteenth."""
    out = tmp_path / "out"
    shutil.copytree(begun.with_name("out.incomplete"), tmp_path / "out.incomplete")
    layers = layers_run(monkeypatch)
    rounded: list[Any] = []
    round_weight = stopping(0)
    monkeypatch.setattr(
        "dstools_converters.layerwise.calibrate.round_weight",
        lambda *arguments: (rounded.append(1), round_weight(*arguments))[1],
    )
    plan = plan_of(tiny)
    quantize(plan, out)
    assert layers == [1, 2, 3]
    assert len(rounded) == plan.counts["calibrate"] - 14
    assert tree(out) == tree(calibrated(tiny))


def test_after_the_last_layer_nothing_is_calibrated_again(
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    plan = plan_of(tiny)
    stopped_before_publishing(quantize, plan, tmp_path / "out")
    monkeypatch.setattr("dstools_converters.layerwise.runner.Runner.run_layer", None)
    quantize(plan, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(calibrated(tiny))


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_finished_shard_whose_line_was_lost_keeps_its_weights(
    boot: str,
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    """As after a kill between rename and line, or a power failure before the line was flushed."""
    plan, wanted = plan_of(tiny), tree(calibrated(tiny))
    stopped_before_publishing(quantize, plan, tmp_path / "out", is_synced=True)
    journal = tmp_path / "out.incomplete" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(('{"written"', '{"synced"'))]
    assert len(kept) < len(lines)
    journal.write_text("".join(kept))
    if boot == "another":
        monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    monkeypatch.setattr("dstools_converters.layerwise.runner.Runner.run_layer", None)
    quantize(plan, tmp_path / "out", is_synced=True)
    assert tree(tmp_path / "out") == wanted


def stopped_before_publishing(
    quantize: Quantize, plan: Plan, out: Path, is_synced: bool = False
) -> None:
    """Stop with all jobs done and journaled, before the folder gets its final name."""

    def stop(self: Writer, workers: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(plan, out, is_synced=is_synced)


def test_a_shard_that_was_lost_has_its_weights_calibrated_again(
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    """All layers are done, and the hidden states between them are gone."""
    plan = plan_of(tiny)
    stopped_before_publishing(quantize, plan, tmp_path / "out")
    with open_checkpoint(tiny) as opened:
        shard = opened.tensors["model.layers.1.self_attn.o_proj.weight"].shard
        lost = {i.name for i in opened.tensors.values() if i.shard == shard}
    (tmp_path / "out.incomplete" / "model" / shard).unlink()
    names = {n for n in lost if n in read(calibrated(tiny))["tensors"]}
    assert 0 < len(names) < plan.counts["calibrate"]
    rounded: list[int] = []
    round_weight = stopping(0)
    monkeypatch.setattr(
        "dstools_converters.layerwise.calibrate.round_weight",
        lambda *arguments: (rounded.append(1), round_weight(*arguments))[1],
    )
    layers = layers_run(monkeypatch)
    quantize(plan, tmp_path / "out")
    assert len(rounded) == len(names)
    last = max(int(name.split(".")[2]) for name in names)
    assert layers == list(range(last + 1))  # and no further than needed
    assert tree(tmp_path / "out") == tree(calibrated(tiny))


@pytest.mark.parametrize(("is_synced", "wanted"), [(True, [1, 2, 3]), (False, [0, 1, 2, 3])])
def test_after_a_power_failure_only_flushed_layers_are_trusted(
    is_synced: bool,
    wanted: list[int],
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    plan, out = plan_of(tiny), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("dstools_converters.layerwise.calibrate.round_weight", stopping(15))
        with pytest.raises(KeyboardInterrupt):
            quantize(plan, out, is_synced=is_synced)
    if not is_synced:  # what the machine had not written yet
        for path in (tmp_path / "out.incomplete" / "model").iterdir():
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(bytes(path.stat().st_size - 4096))
    monkeypatch.setattr("dstools_converters.write.journal.boot_id", lambda: "another boot")
    layers = layers_run(monkeypatch)
    quantize(plan, out, is_synced=is_synced)
    assert layers == wanted
    assert tree(out) == tree(calibrated(tiny))


def test_a_full_disk_leaves_no_spilled_states_and_the_run_can_be_resumed(
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    plan, real, calls = plan_of(tiny), os.pwrite, 0
    begun = tmp_path / "out.incomplete" / "calibration" / "hidden-1"

    def full(file: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += begun.exists()
        if calls > 10:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DstoolsError, match="No space left on device"):
            quantize(plan, tmp_path / "out", ram_bytes=1000)
    work = tmp_path / "out.incomplete"
    assert [path.name for path in (work / "calibration").iterdir()] == ["hidden-1"]
    quantize(plan, tmp_path / "out", ram_bytes=1000)
    assert tree(tmp_path / "out") == tree(calibrated(tiny))


def test_a_nan_is_refused_by_file_tensor_and_place(
    tiny: Path, tmp_path: Path, plan_of: PlanOf, quantize: Quantize
) -> None:
    for name in ("model.layers.1.mlp.experts.3.up_proj.weight", "model.embed_tokens.weight"):
        folder = tmp_path / name
        folder.mkdir()
        for path in tiny.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        with open_checkpoint(folder) as opened:
            info = opened.tensors[name]
        with (folder / info.shard).open("r+b") as file:
            file.seek(info.offset + info.nbytes - 2)
            file.write(struct.pack("<H", 0x7FC0))
        place = [size - 1 for size in info.shape]
        with pytest.raises(DstoolsError) as caught:
            quantize(plan_of(folder), tmp_path / "out")
        assert str(caught.value) == f"{info.shard}: {name}: NaN or infinity at {place}"
        assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "out.incomplete")


def test_a_lower_coverage_resumes_to_the_same_bytes_and_a_higher_one_counts_finished_layers(
    tiny: Path,
    calibrated: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    plan, out = plan_of(tiny), tmp_path / "out"
    layer_done = Sink.layer_done

    def stop_at_3(self: Sink, layer: int, note: LayerNote) -> None:
        if layer == 3:
            raise ShortfallError("as if the experts of layer 3 fell short")
        layer_done(self, layer, note)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "layer_done", stop_at_3)
        with pytest.raises(ShortfallError, match="as if"):
            quantize(plan, out)
    with pytest.raises(ShortfallError, match=r"^layer 1: .*: expert 6 174, expert 7 174$"):
        quantize(plan, out, min_coverage=175)  # layer 1 is done, and still counts
    quantize(plan, out, min_coverage=100)
    assert tree(out) == tree(calibrated(tiny))


# ------------------------------------------------------------------------------------------- killed

# One process loads torch and the tokenizer, which takes longer than to calibrate, and forks a child
# for each run. The parent computes nothing, so no thread is lost in a fork.
KILLED = """
import functools, os, re, shutil, signal, sys
from pathlib import Path
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import torch, transformers
from dstools.cli import main
from dstools_converters.layerwise import calibrate, corpus, evaluate
from dstools_converters.verify import folder as verify
from dstools_converters.write import stream

source, data, out = sys.argv[1:4]
folder = Path(out)
corpus.load_tokenizer = functools.cache(corpus.load_tokenizer)
corpus.load_tokenizer(Path(source))
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
    main(["quantize", source, out, "--calibrate", data, "--samples", "5", "--seq-len", "60",
          "--ram", "0", "--workers", "1", "--kv-cache", "fp8"], standalone_mode=False)
    return seen

def child(kill_at):
    # the status of a run, and how many calls it made
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            real = os.write
            real(write, str(quantize(kill_at)).encode())
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(write)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(read) as file:
        return status, int(file.read() or 0)

def tree():
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(files)}

status, calls = child(0)
assert status == 0
wanted = tree()
shutil.rmtree(folder)
journal = folder.with_name(folder.name + ".incomplete") / "journal.jsonl"
# nine across the run, and those at which files are added, names given, and the work cleaned up
at = [*range(calls // 10, calls - 50, calls // 10), *range(calls - 48, calls + 1, 6)]
at += [calls - 1, calls]
within = 0
for kill_at in at:
    status, _ = child(kill_at)
    assert os.WIFSIGNALED(status), (kill_at, status)
    assert not folder.exists() or tree() == wanted, f"looks done after a kill at {kill_at}"
    if journal.exists() and not folder.exists():
        lines = journal.read_text()
        # jobs after the last layer that is done
        within += '"job"' in lines[max(lines.rfind('"layer"'), 0):]
    status, _ = child(0)
    assert status == 0, f"the second run failed after a kill at {kill_at}"
    assert tree() == wanted, f"other bytes after a kill at {kill_at}"
    assert not journal.parent.exists()
    shutil.rmtree(folder)
print(calls, len(at), within)
"""


@pytest.mark.slow
def test_killed_anywhere_the_next_run_makes_the_same_bytes(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Hidden states are on the disk: among the writing calls are those that fill a file of them."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": " a b c d e f g h i j k l m n o p"}\n' * 30)
    arguments = [str(checkpoint("tiny-v2-lite")), str(data), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls, kills, within = map(int, done.stdout.split()[-3:])
    assert calls > 1000
    assert kills >= 12
    assert within >= 4
