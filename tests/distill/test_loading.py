"""What of a model's weights is loaded, and as what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from dstools.cli import main
from dstools_distill.loading import load_model


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
