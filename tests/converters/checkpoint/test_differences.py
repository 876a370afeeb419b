"""Every weight that the config requires is compared by name, shape and dtype."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.differences import compare, differences_found
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.families.shapes import read_model

Checkpoint = Callable[..., Path]


@pytest.mark.parametrize("fp8", [None, "float32"])
@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-v32", "tiny-llama", "tiny-qwen2"])
def test_a_good_checkpoint_has_none(kind: str, fp8: str | None, checkpoint: Checkpoint) -> None:
    inventory = take_inventory(open_checkpoint(checkpoint(kind, **({"fp8": fp8} if fp8 else {}))))
    assert compare(inventory.model, inventory.tensors, inventory.names).total == 0


def test_each_kind_of_difference_is_told_apart(tiny: Path) -> None:
    inventory = take_inventory(open_checkpoint(tiny))
    tensors = dict(inventory.tensors)
    gone = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    tensors["model.norm.weight"] = tensors["model.norm.weight"]._replace(shape=(8,))
    tensors["model.layers.3.shared_head.head.weight"] = gone._replace(shape=(1, 2))  # optional
    tensors["lm_head.weight"] = tensors["lm_head.weight"]._replace(dtype="I64")
    extra = "model.layers.0.mlp.gate.weight"  # of a dense layer
    tensors[extra] = TensorInfo(extra, "BF16", (8, 256), "a", 0, 4096)
    names = {n: inventory.model.spelling.parse(n, 3) for n in tensors}
    names["vision.weight"] = None
    differences = compare(inventory.model, tensors, names)
    assert [inventory.model.spell(name) for name in differences.missing] == [gone.name]
    assert [(info.name, wanted) for info, wanted in differences.shapes] == [
        ("model.norm.weight", (256,)),
        (gone.name, (1024, 256)),
    ]
    assert [info.name for info in differences.dtypes] == ["lm_head.weight"]
    assert [info.name for info in differences.unasked] == [extra]
    assert differences.total == 5
    assert [finding.code for finding in differences_found(inventory.model, differences)] == [
        "weight-missing", "shape", "shape", "dtype", "weight-unasked",
    ]  # fmt: skip


def test_a_config_of_millions_of_layers_is_not_counted_to_the_end(tiny: Path) -> None:
    inventory = take_inventory(open_checkpoint(tiny))
    config: dict[str, Any] = inventory.checkpoint.config | {"num_hidden_layers": 1 << 23}
    differences = compare(read_model(config), inventory.tensors, inventory.names)
    assert 0 < differences.total < 10_000
