"""What is known of a checkpoint before it generates; test_generate.py has the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools.commands.generate_checkpoint import ROUTING, TORCH, TRITON, look_at_checkpoint

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


@pytest.mark.parametrize(
    ("kind", "precision", "capability", "ops"),
    [
        ("sample-v3", "bfloat16", (9, 0), TRITON),
        ("sample-v3", "float32", (9, 0), ROUTING),
        ("tiny-llama", "float32", (9, 0), TORCH),
        ("sample-v3", "bfloat16", (8, 0), TORCH),
    ],
)
def test_the_model_line_says_which_ops_run(
    kind: str,
    precision: Any,
    capability: tuple[int, int],
    ops: str,
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernels of products and of MLA take BF16 alone."""
    pytest.importorskip("triton", reason="needs triton, a development extra")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    folder = SAMPLE if kind == "sample-v3" else checkpoint(kind)
    assert look_at_checkpoint("a", folder, False, precision, "cuda").ops == ops
