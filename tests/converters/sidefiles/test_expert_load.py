"""expert_load.json: read back as written, and refused for a model with other experts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD, ExpertLoad, read_expert_load


@pytest.fixture
def inventory(tiny: Path) -> Inventory:
    with open_checkpoint(tiny) as checkpoint:
        return take_inventory(checkpoint)


def write(folder: Path, layers: object) -> None:
    table = {"tokens": 64, "num_experts_per_tok": 4, "layers": layers}
    (folder / EXPERT_LOAD).write_text(json.dumps(table))


def test_every_token_of_a_calibration_is_counted(
    tiny: Path, calibrated: Callable[..., Path], inventory: Inventory
) -> None:
    load = read_expert_load(calibrated(tiny), inventory)
    assert load is not None
    assert load.tokens == 8 * 64
    assert sorted(load.layers) == [1, 2, 3]
    for layer in (1, 2):
        assert sum(load.layers[layer]) == load.tokens * load.num_experts_per_tok


def test_layers_come_in_order(tmp_path: Path, inventory: Inventory) -> None:
    write(tmp_path, {"2": [1] * 8, "1": [2] * 8})
    load = read_expert_load(tmp_path, inventory)
    assert load == ExpertLoad(64, 4, {1: (2,) * 8, 2: (1,) * 8})
    assert list(load.layers) == [1, 2]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"1": [1] * 7}, "layers.1: has 7 experts; the model has 8"),
        ({"4": [1] * 8}, "layers: 4 is none of the model's 4 layers"),
        ({"01": [1] * 8}, "is not a whole number"),
        ({"1": [-1] * 8}, "layers.1"),
        ([], "layers: is not a table"),
    ],
)
def test_a_load_of_another_model_is_refused(
    layers: object, message: str, tmp_path: Path, inventory: Inventory
) -> None:
    write(tmp_path, layers)
    with pytest.raises(DstoolsError, match=message):
        read_expert_load(tmp_path, inventory)


def test_no_file_is_no_load(tmp_path: Path, inventory: Inventory) -> None:
    assert read_expert_load(tmp_path, inventory) is None
