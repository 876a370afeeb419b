"""The text something was measured on is read by its keys; layers that a model lacks are refused."""

from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.data import Data, require_layers
from dstools_converters.tables import Reader

READER = Reader("eval.json", "json")
TABLE = {"name": "a", "sha256": "b", "samples": 1, "seq_len": 2, "seed": 3, "documents": 4}


def test_data_without_the_hash_of_tokens_are_read_too() -> None:
    assert READER.read(Data, TABLE) == Data("a", "b", 1, 2, 3, 4, "")
    assert READER.read(Data, TABLE | {"tokens_sha256": "c"}).tokens_sha256 == "c"


def test_a_negative_count_is_named() -> None:
    with pytest.raises(DstoolsError, match=r"eval\.json: data\.seed"):
        READER.read(Data, TABLE | {"seed": -1}, "data")


def test_layers_end_with_those_of_mtp(tiny: Path) -> None:
    with open_checkpoint(tiny) as checkpoint:
        inventory = take_inventory(checkpoint)
    require_layers(range(4), "kv", inventory, READER)  # three and one of MTP
    with pytest.raises(DstoolsError, match="kv: 4 is none of the model's 4 layers"):
        require_layers([0, 4], "kv", inventory, READER)
