"""The number of parameters: what transformers counts, or what the files hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.parameters import is_count, parameters

Checkpoint = Callable[..., Path]


def inventory(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def counted_by_transformers(folder: Path, tmp_path: Path) -> int:
    """Load and save the model in shards; return what the index says."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    count = index["metadata"]["total_parameters"]
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-qwen2", "tiny-qwen3", "tiny-llama"])
def test_it_is_what_transformers_writes(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of MTP (tiny has it), a router's bias (tiny) and tied heads (tiny-qwen2), too."""
    folder = checkpoint(kind)
    assert parameters(inventory(folder)) == counted_by_transformers(folder, tmp_path)


def test_a_weight_in_fp8_counts_once_and_its_scales_do_not(tiny: Path, tiny_fp8: Path) -> None:
    assert parameters(inventory(tiny_fp8)) == parameters(inventory(tiny))


def test_what_files_hold_is_right_too_with_or_without_each_group(tiny: Path) -> None:
    """`tiny` has MTP and two layers with a bias of 8 experts, and is not tied."""
    found = inventory(tiny)
    count = parameters(found)
    mtp = sum(info.numel for info, name in found.weights() if name and name.is_mtp)
    assert mtp > 0
    assert sum(info.numel for info, _ in found.weights()) == count + mtp + 16
    for more in (0, mtp, 16, mtp + 16):
        assert is_count(found, count + more)
        assert is_count(found, float(count + more))
    for more in (-1, 1, 8, mtp - 1, 2 * mtp):
        assert not is_count(found, count + more)


def test_what_is_not_a_number_is_not_a_count(tiny: Path) -> None:
    found = inventory(tiny)
    count = parameters(found)
    for value in (str(count), None, True, [count], {}, -count, float("inf")):
        assert not is_count(found, value)
