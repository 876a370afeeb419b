"""Students are exported by genai's builder, checked, and there only when they are right."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import DstoolsError, ShortfallError, UnsupportedError, size
from dstools_converters.export import dense
from dstools_converters.export.dense import export_dense, require_dense
from dstools_converters.export.folder import Export, require_export
from dstools_converters.export.genai_tokenizer import remarks
from dstools_converters.export.runners.dense_loop import DenseLoop
from dstools_converters.model.tokenizer import end_ids, load_tokenizer
from dstools_converters.runtime.decode import Request
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.verify.folder import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def inventory(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def export(source: Path, out: Path, free: int = 1 << 40) -> Export:
    return export_dense(inventory(source), out, {}, tool="dstools test", free=free)


def answers(folder: Path, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    loop = DenseLoop(folder, Sampling(), frozenset())
    requests = [Request(index, prompt, tokens) for index, prompt in enumerate(prompts)]
    found: list[list[int]] = [[] for _ in prompts]
    for piece in loop.run(requests):
        found[piece.prompt_index] += piece.ids
    return found


def of_transformers(source: Path, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    found = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None}
        ids = model.generate(given, attention_mask=torch.ones_like(given), **options)
        found.append(ids[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("kind", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
def test_a_student_answers_as_transformers_does(
    kind: str, dense_source: Callable[..., Path], dense_folder: Callable[..., Path]
) -> None:
    folder = dense_folder(kind)
    note = require_export(folder)
    assert (note.kind, note.dtype, note.checks) == ("dense", "float32", {"transformers": "passed"})
    assert note.files.keys() == {path.name for path in folder.iterdir()} - {"export.json"}
    for name, digest in note.files.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    assert note.genai_tokenizer is False  # each has the sample's, see test_genai_tokenizer.py
    assert note.notes[1:] == remarks(False)
    assert verify(folder, source=dense_source(kind)).findings == []
    pad = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]
    prompts = [[5, 900, 33, pad], [1000], list(range(40))]
    wanted = of_transformers(dense_source(kind), prompts, 32)
    assert answers(folder, prompts, 32) == wanted


@pytest.mark.slow
def test_a_trained_student_answers_as_transformers_does(
    dense_source: Callable[..., Path], dense_folder: Callable[..., Path]
) -> None:
    """SmolLM2, 135 million parameters."""
    source = dense_source("smollm2")
    tokenizer = load_tokenizer(source)
    texts = ["The capital of France is", "def fibonacci(n):", "2, 4, 6, 8,"]
    prompts = [tokenizer.encode(text) for text in texts]
    wanted = of_transformers(source, prompts, 16)
    assert answers(dense_folder("smollm2"), prompts, 16) == wanted


def test_genai_ends_an_answer_where_everything_else_does(
    dense_source: Callable[..., Path], dense_folder: Callable[..., Path]
) -> None:
    source = dense_source("tiny-llama")
    config = json.loads((dense_folder("tiny-llama") / "genai_config.json").read_text())
    ends = end_ids(source, load_tokenizer(source))
    assert config["model"]["eos_token_id"] == sorted(ends) != []


def test_the_builder_gets_no_token_and_no_network_and_prints_nothing(
    dense_source: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []
    run = subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        calls.append((command, options["env"]))
        return run(command, **options)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(subprocess, "run", watched)
    export(dense_source("tiny-llama"), tmp_path / "out")
    [(command, environment)] = calls
    assert command[-1] == "hf_token=false"
    assert "HF_TOKEN" not in environment
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DstoolsError, match="exists"):
        export(dense_source("tiny-llama"), tmp_path / "out")


@pytest.mark.parametrize(
    ("builder", "message", "hint"),
    [
        ("onnxruntime_genai.models.none", "No module named", "pip install"),
        ("json.tool", "builder fails: ", "may not know a setting"),
    ],
)
def test_a_builder_that_fails_is_one_line_and_leaves_nothing(
    builder: str,
    message: str,
    hint: str,
    dense_source: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense, "BUILDER", builder)
    with pytest.raises(DstoolsError, match=message) as caught:
        export(dense_source("tiny-llama"), tmp_path / "out")
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scaling", "kind", "error"),
    [
        ({"rope_type": "linear", "factor": 4.0}, "tiny-llama", ShortfallError),  # is left out
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            "tiny-qwen3",
            DstoolsError,  # ZeroDivisionError without beta_fast, as in Qwen's own instructions
        ),
    ],
)
def test_positions_that_genai_0_18_gets_wrong_are_not_exported(
    scaling: dict[str, Any],
    kind: str,
    error: type[DstoolsError],
    dense_source: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        export(dense_source(kind, rope_scaling=scaling), tmp_path / "out")
    assert "rope_scaling" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_positions_of_llama_3_are_exported(
    dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    export(dense_source("tiny-llama", rope_scaling=scaling), tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").exists()


def test_models_that_the_builder_is_not_asked_to_write_are_refused(
    tiny: Path, checkpoint: Callable[..., Path], dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="'deepseek_v3' is not a dense model"):
        require_dense(inventory(tiny))
    with pytest.raises(DstoolsError, match="reads no block FP8") as caught:
        require_dense(inventory(checkpoint("tiny-llama", fp8="float32")))
    assert "dequantize" in caught.value.hint
    with pytest.raises(UnsupportedError, match=r"architectures None is not \['LlamaForC"):
        require_dense(inventory(dense_source("tiny-llama", architectures=None)))
    with pytest.raises(DstoolsError, match="has no tokenizer"):
        export(checkpoint("tiny-llama"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ what it takes, and kills

# A builder that ends its caller in the middle, and goes on until it may stop
KILLER = """
import os, signal, sys, time
from pathlib import Path

out = Path(sys.argv[sys.argv.index("-o") + 1])
out.mkdir()
(out / "model.onnx.data").write_bytes(b"half of a model")
os.kill(os.getppid(), signal.SIGKILL)
while not Path(__file__).with_name("stop").exists():
    time.sleep(0.02)
"""
RUN = """
import sys
from pathlib import Path

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.export import dense

dense.BUILDER, dense.refer = "killer", lambda source: []
inventory = require_sound(open_checkpoint(Path(sys.argv[1])))
dense.export_dense(inventory, Path(sys.argv[2]), {}, tool="dstools test", free=1 << 40)
"""


def test_a_killed_run_leaves_its_own_folder_alone_and_the_next_one_begins_anew(
    dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    source, out, programs = dense_source("tiny-llama"), tmp_path / "to" / "out", tmp_path / "p"
    programs.mkdir()
    (programs / "killer.py").write_text(KILLER)
    path = os.pathsep.join((str(programs), *sys.path))
    command = [sys.executable, "-c", RUN, str(source), str(out)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ran.returncode == -signal.SIGKILL
    work = out.with_name("out.incomplete")
    assert list(out.parent.iterdir()) == [work]
    with pytest.raises(DstoolsError, match="another run is writing it"):  # the builder still does
        export(source, out)
    (programs / "stop").touch()
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.close(lock)
    note = export(source, out)
    assert list(out.parent.iterdir()) == [out]
    assert (
        sha256((out / "model.onnx.data").read_bytes()).hexdigest()
        == (note.files["model.onnx.data"])
    )


def test_too_little_memory_is_said_with_the_figure(
    dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    """Twice the weights in float32."""
    source = dense_source("tiny-llama")
    count = sum(info.numel for info in inventory(source).tensors.values())
    with pytest.raises(DstoolsError, match=r"takes .* of memory, and 1 kB is free") as caught:
        export(source, tmp_path / "out", free=1000)
    assert size(2 * 4 * count) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_the_builder_runs(
    dense_source: Callable[..., Path],
    dense_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of as many bytes as the builder then writes, but for the graph."""
    wanted = (dense_folder("tiny-llama") / "model.onnx.data").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr(dense, "refer", None)
    with pytest.raises(DstoolsError, match=r"out: needs .*, the disk has 1 kB free") as caught:
        export(dense_source("tiny-llama"), tmp_path / "out")
    assert f"needs {size(wanted)}," in str(caught.value)
    assert list(tmp_path.iterdir()) == []
