"""What side files share: the text something was measured on, and layers of a model."""

from collections.abc import Iterable
from dataclasses import dataclass

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.tables import Reader


@dataclass(frozen=True)
class Data:
    """A corpus and what was drawn of it, in the order of the files; see layerwise.corpus."""

    name: str
    sha256: str
    samples: int
    seq_len: int
    seed: int
    documents: int
    tokens_sha256: str = ""  # of the token ids: it depends on tokenizer and chat template, too


def require_layers(layers: Iterable[int], key: str, inventory: Inventory, reader: Reader) -> None:
    """Raise DstoolsError for a layer that the model does not have."""
    count = inventory.model.num_layers
    for layer in layers:
        if layer >= count:
            raise reader.error(key, f"{layer} is none of the model's {count} layers")
