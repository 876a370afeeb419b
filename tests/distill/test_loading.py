"""Tests of loading models: which weights, in which dtype, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from dstools.cli import main
from dstools_converters.errors import DstoolsError
from dstools_distill.loading import load_model

SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"


@pytest.fixture
def a_gpu_that_knows_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers asks for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def dtypes(model: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.usefixtures("a_gpu_that_knows_fp8")
def test_fp8_is_widened_where_a_gpu_knows_it_too(sample_fp8: Path) -> None:
    assert torch.float8_e4m3fn in dtypes(AutoModelForCausalLM.from_pretrained(sample_fp8))
    assert dtypes(load_model(sample_fp8, torch.float32)) == {torch.float32}
    assert dtypes(load_model(sample_fp8, torch.bfloat16)) <= {torch.float32, torch.bfloat16}


def test_what_is_widened_is_what_dequantize_writes(sample_fp8: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["dequantize", str(sample_fp8), str(tmp_path / "bf16")])
    assert made.exit_code == 0, made.output
    ours = load_model(tmp_path / "bf16", torch.bfloat16).state_dict()
    theirs = load_model(sample_fp8, torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def copied(folder: Path, **changes: Any) -> Path:
    """Copy the sample model, with some keys of its config changed."""
    shutil.copytree(SAMPLE, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_tied_model_with_another_head_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model", tie_word_embeddings=True)
    with pytest.raises(DstoolsError, match=f"{folder}: its output head differs") as raised:
        load_model(folder, torch.float32)
    assert raised.value.hint.startswith("set it to false to use the head")


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=f"{tmp_path}: cannot be loaded"):
        load_model(tmp_path, torch.float32)


def test_a_weight_that_would_be_random_is_refused(tmp_path: Path) -> None:
    larger = copied(tmp_path / "model", num_hidden_layers=9)
    with pytest.raises(DstoolsError, match="weights are missing or have another shape, such as"):
        load_model(larger, torch.float32)


def test_glibc_keeps_freed_memory_for_the_next_tensor() -> None:
    """After a large block is freed, its pages are still resident."""
    code = """if True:
        import ctypes
        from dstools_distill.loading import keep_freed_memory

        libc, size = ctypes.CDLL(None), 1 << 30  # more than the imports need
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        keep_freed_memory()
        block = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(block, 1, size)
        libc.free(block)
        pages = int(open("/proc/self/statm").read().split()[1])
        print(pages * 4096 > size)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
