"""Bytes of an export are those of the checkpoint, in memory that does not grow with it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Weight, require_export

TORCH = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
}
SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SIDES = ("gate_proj", "up_proj", "down_proj")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored |= load_file(shard)
    return stored


def written(folder: Path, weight: Weight) -> Tensor:
    with (folder / "model.data").open("rb") as file:
        file.seek(weight.offset)
        data = bytearray(file.read(weight.nbytes))
    return torch.frombuffer(data, dtype=TORCH[weight.dtype]).view(weight.shape)


class Definition:
    """What a tensor of a graph is made of, by the tensors of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.stored = tensors_of(folder)
        self.config = json.loads((folder / "config.json").read_text())

    def of(self, name: str) -> Tensor:
        """Return a tensor in the dtype of the checkpoint, or float32 where it was FP8."""
        prefix, _, last = name.rpartition(".")
        if ".mlp.experts." in name:
            experts, _, side = prefix.rpartition(".")
            count = self.config["n_routed_experts"]
            parts = [self.one(f"{experts}.{e}.{side}", last) for e in range(count)]
            return torch.stack(parts)
        if last in ("w_k", "w_v"):
            heads, nope = self.config["num_attention_heads"], self.config["qk_nope_head_dim"]
            wide = self.wide(f"{prefix}.kv_b_proj").view(heads, -1, self.config["kv_lora_rank"])
            return wide[:, :nope] if last == "w_k" else wide[:, nope:]
        return self.one(prefix, last)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return that of the checkpoint's tensor."""
        prefix, _, last = name.rpartition(".")
        if last in ("w_k", "w_v"):
            return self.stored[f"{prefix}.kv_b_proj.weight"].dtype
        module = re.sub(r"\.experts\.(?=[a-z])", ".experts.0.", prefix)
        if f"{module}.{last}" not in self.stored:
            last = "weight_scale"  # of compressed-tensors
        return self.stored[f"{module}.{last}"].dtype

    def one(self, module: str, part: str) -> Tensor:
        if part == "weight_scale_inv":
            return self.scales(module)
        return self.stored[f"{module}.{part}"]

    def scales(self, module: str) -> Tensor:
        named = (f"{module}.weight_scale_inv", f"{module}.weight_scale")
        return next(self.stored[name] for name in named if name in self.stored).float()

    def wide(self, module: str) -> Tensor:
        weight = self.stored[f"{module}.weight"]
        if weight.dtype != torch.float8_e4m3fn:
            return weight
        scales = self.scales(module).repeat_interleave(128, 0).repeat_interleave(128, 1)
        return weight.float() * scales[: weight.shape[0], : weight.shape[1]]


def f16(folder: Path, out: Path) -> Path:
    """Return a checkpoint in float16, whose router is float32."""
    shutil.copytree(folder, out)
    out.chmod(0o755)
    for shard in out.glob("*.safetensors"):
        shard.chmod(0o644)
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            is_router = name.endswith("mlp.gate.weight")
            tensors[name] = tensor.float() if is_router or "bias" in name else tensor.half()
        save_file(tensors, shard, metadata={"format": "pt"})
    return out


@pytest.fixture
def source_of(checkpoint: Callable[..., Path], quantized: Any, tmp_path: Path) -> Any:
    made = {
        "BF16": lambda: checkpoint("tiny"),
        "one shard": lambda: checkpoint("tiny", shard_bytes=10**9),
        "F32": lambda: checkpoint("tiny", dtype="fp32"),
        "F16 with a float32 router": lambda: f16(checkpoint("tiny"), tmp_path / "f16"),
        "FP8": lambda: checkpoint("tiny", fp8="float32"),
        "FP8, powers of two": lambda: checkpoint("tiny", fp8="ue8m0"),
        "FP8, scales elsewhere": lambda: checkpoint("tiny", fp8="float32", scales_apart=True),
        "compressed-tensors": lambda: quantized(checkpoint("tiny"), format="compressed-tensors"),
    }
    return lambda kind: made[kind]()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "kind",
    [
        "BF16",
        pytest.param("one shard", marks=pytest.mark.slow),
        pytest.param("F32", marks=pytest.mark.slow),
        "F16 with a float32 router",
        "FP8",
        pytest.param("FP8, powers of two", marks=pytest.mark.slow),
        pytest.param("FP8, scales elsewhere", marks=pytest.mark.slow),
        "compressed-tensors",
    ],
)
def test_every_tensor_is_that_of_the_checkpoint_or_what_it_is_defined_to_be(
    kind: str, dtype: Any, source_of: Any, exported: Any
) -> None:
    """Copied ones byte for byte; converted ones, of which kinds the list is complete, rounded."""
    source = source_of(kind)
    out = exported(source, Options(dtype, context=128))
    defined = Definition(source)
    for weight in require_export(out).weights["model.data"]:
        found = written(out, weight)
        if weight.making == "make":
            assert weight.name.endswith((".map", "rotary.cos", "rotary.sin"))
            continue
        wanted = defined.of(weight.name)
        is_same = TORCH[weight.dtype] == defined.stored_dtype(weight.name)
        assert weight.making == ("copy" if is_same else "convert")
        wanted = wanted.to(TORCH[weight.dtype])
        assert torch.equal(found.view(torch.uint8), wanted.contiguous().view(torch.uint8)), weight


# ------------------------------------------------------------------------------------------ memory

CHILD = r"""
import re, sys
from contextlib import contextmanager
from pathlib import Path
from dstools.cli import main
from dstools.commands import export

def progress(nbytes):
    print(nbytes, flush=True)
    sys.stdin.readline()  # the other side says when to go on

@contextmanager
def waits(total, label):
    yield progress

export.progress_bar = waits
main(["export", *sys.argv[1:]], standalone_mode=False)
# ru_maxrss is also that of the process that this one was forked from
status = Path("/proc/self/status").read_text()
print("peak", int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10)
"""


def child(
    source: Path, out: Path, dtype: str = "bfloat16", stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[str]":
    """Start `dstools export`, which prints a line a tensor, and its peak of memory in MiB."""
    options = ("--onnx", "--mtp", "--dtype", dtype, "--context", "128", "--workers", "2")
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, source, out, *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
    )


def with_tokenizer(folder: Path) -> Path:
    """Return a folder that is given the sample's tokenizer."""
    folder.chmod(0o755)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLE / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_peak_of_memory_does_not_grow_with_the_checkpoint(
    dtype: str, make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of V3's own sizes with MTP, FP8, about 0.8 and 1.1 GB; most is torch itself."""
    peaks = []
    for experts in (2, 6):
        sizes = {"n_routed_experts": experts, "num_experts_per_tok": 2}
        config = make_checkpoint.v3_layer(1) | sizes | {"num_nextn_predict_layers": 1}
        monkeypatch.setitem(make_checkpoint.CONFIGS, "v3-mtp", config)
        made = make_checkpoint.make("v3-mtp", tmp_path / f"{experts}", fp8="float32")
        source = with_tokenizer(made)
        run = child(source, tmp_path / "out", dtype)
        said = run.communicate()[0].split()
        assert run.returncode == 0
        assert {"mtp.onnx", "tokenizer.json"} <= require_export(tmp_path / "out").files.keys()
        peaks.append(int(said[-1]))
        for folder in (source, tmp_path / "out"):
            shutil.rmtree(folder)
    assert max(peaks) <= 700  # MiB
    assert abs(peaks[1] - peaks[0]) <= 40  # what threads and allocators leave to chance


def test_an_export_that_was_killed_resumes_to_the_same_bytes(
    tiny: Path, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    whole, out, work = (tmp_path / name for name in ("whole", "out", "out.incomplete"))
    source = with_tokenizer(Path(shutil.copytree(tiny, tmp_path / "tiny")))
    run = child(source, whole)
    run.communicate()
    assert run.returncode == 0
    run = child(source, out, stdin=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write("\n" * 10)  # so many tensors
    run.stdin.flush()
    for _ in range(12):  # and one of each worker
        run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not out.exists()
    assert len((work / "journal.jsonl").read_text().splitlines()) == 13  # and the plan
    run = child(source, out)
    run.communicate()
    assert run.returncode == 0
    assert tree(out) == tree(whole)
    assert not work.exists()
