"""A tensor is float32 in the file's shape: FP8 as code times scale, damage refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.checkpoint.tensors import restored, restored_rows
from dstools_converters.errors import DstoolsError

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def test_weights_are_the_files_numbers_and_fp8_is_code_times_scale(tiny_fp8: Path) -> None:
    stored = {n: t for path in tiny_fp8.glob("*.safetensors") for n, t in load_file(path).items()}
    inventory = require_sound(open_checkpoint(tiny_fp8))
    quantized = 0
    for info, _ in inventory.weights():
        wanted = stored[info.name].float()
        if inventory.is_quantized(info):
            quantized += 1
            scales = stored[f"{info.name}_scale_inv"]
            scales = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
            wanted = wanted * scales[: wanted.shape[0], : wanted.shape[1]]
        found = restored(inventory, info)
        assert (found.dtype, found.shape) == (torch.float32, wanted.shape)
        assert torch.equal(found, wanted)
        if found.dim() == 2 and len(found) > 128:  # rows from the second row of blocks on
            assert torch.equal(restored_rows(inventory, info, 128, len(found)), wanted[128:])
    assert quantized > 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(bad: float, tmp_path: Path) -> None:
    tensors = load_file(SAMPLE / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"][5, 9] = bad
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((SAMPLE / "config.json").read_bytes())
    inventory = require_sound(open_checkpoint(tmp_path))
    info = inventory.tensors["model.layers.2.self_attn.o_proj.weight"]
    with pytest.raises(DstoolsError, match=r"layers\.2\.self_attn\.o_proj.*at \[5, 9\]"):
        restored(inventory, info)
