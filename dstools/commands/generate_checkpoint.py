"""A checkpoint as `dstools generate` runs it, before and after its weights are read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dstools.commands.generate_memory import Held
from dstools.source import open_folder
from dstools_converters.errors import DstoolsError, printable

if TYPE_CHECKING:
    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.model.architecture import Architecture
    from dstools_converters.runtime.decode import Loop
    from dstools_converters.runtime.pages import Pool
    from dstools_converters.runtime.sampling import Sampling

ENDPOINT = "serve it with an engine that has the family, such as vLLM, and ask that endpoint"
TORCH = "torch"
TRITON = "Triton, which have not been run on a GPU yet"
ROUTING = "torch; routing has Triton kernels, which have not been run on a GPU yet"
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class KnownCheckpoint:
    """What is known of a checkpoint before its weights are read."""

    name: str  # as the user gave it: the folder of a Hub cache has the name of a commit
    inventory: "Inventory"
    architecture: "Architecture"
    positions: int
    held: Held
    ops: str
    keeps_codes: bool
    most_pages: None = None  # of the pool: as many as memory holds
    is_cut: bool = False  # all of the model's positions can be used

    @property
    def folder(self) -> Path:
        """Return the folder with its tokenizer and settings."""
        return self.inventory.checkpoint.folder

    @property
    def vocab_size(self) -> int:
        """Return how many tokens it has."""
        return self.architecture.model.vocab_size

    @property
    def is_sparse_beyond(self) -> bool:
        """Return whether its positions end where attention would be sparse."""
        return self.positions == self.architecture.index_topk

    @property
    def runs_in(self) -> str:
        """Return what computes."""
        return f"{self.held.precision} on {self.held.device}, ops of {self.ops}"

    def step_bytes(self, limit: int) -> int:
        """Return the bytes that a step takes besides weights and cache."""
        import torch

        from dstools_converters.runtime.serving import step_elements

        dtype: torch.dtype = getattr(torch, self.held.precision)
        return step_elements(self.architecture.model.attention, limit) * dtype.itemsize

    def loop(self, pool: "Pool", sampling: "Sampling", ends: frozenset[int], drafts: int) -> "Loop":
        """Return the loop that answers a prompt, its weights read."""
        import torch

        from dstools_converters.runtime.decode import Loop
        from dstools_converters.runtime.session import Session
        from dstools_converters.runtime.weights import serving_of

        dtype: torch.dtype = getattr(torch, self.held.precision)
        device = torch.device(self.held.device)
        with self.inventory.checkpoint:
            serving = serving_of(self.inventory, dtype, device, self.keeps_codes)
        return Loop(Session(serving, pool), pool, sampling, ends, rows=1, drafts=drafts)


def look_at_checkpoint(
    name: str, folder: Path, mtp: bool, precision: Precision | None, device: str
) -> KnownCheckpoint:
    """Return what generating needs to know of a checkpoint. Raises DstoolsError if it cannot."""
    import torch

    from dstools_converters.model.architecture import read_architecture
    from dstools_converters.runtime.serving import entry_shape
    from dstools_converters.runtime.weights import (
        held_bytes,
        holds_mtp,
        read_positions,
        sound_inventory,
        takes_codes,
    )
    from dstools_kernels.ops.dispatch import form

    checkpoint = open_folder(folder)
    config = checkpoint.config
    _require_family(folder, config)
    architecture = read_architecture(config)
    if mtp and not holds_mtp(checkpoint):
        raise DstoolsError(
            f"{folder}: has no MTP layer", "leave --mtp out: it changes the speed alone"
        )
    inventory = sound_inventory(checkpoint, mtp)
    precision = precision or ("bfloat16" if device == "cuda" else "float32")
    dtype: torch.dtype = getattr(torch, precision)
    keeps_codes = takes_codes(dtype, torch.device(device))
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    is_triton = form(device, capability).name == "triton"
    wide = ROUTING if is_triton and inventory.model.moe else TORCH  # products and MLA take BF16
    ops = TRITON if keeps_codes else wide
    used = inventory.model
    token = used.num_layers * math.prod(entry_shape(used.attention)) * dtype.itemsize
    weights = held_bytes(inventory, dtype, keeps_codes)
    smaller = "--precision bfloat16" if precision == "float32" else ""
    held = Held(precision, device, weights, token, smaller)
    positions = read_positions(config, architecture)
    return KnownCheckpoint(name, inventory, architecture, positions, held, ops, keeps_codes)


def _require_family(folder: Path, config: dict[str, Any]) -> None:
    """Raise DstoolsError for a model_type that the decoder does not implement."""
    from dstools_converters.families.shapes import SUPPORTED

    kind = config.get("model_type")
    if kind is None:
        raise DstoolsError(
            f"{folder}: config.json has no model_type", "restore config.json from the release"
        )
    if kind not in SUPPORTED:
        shown = printable(str(kind))
        raise DstoolsError(f"{folder}: model_type {shown!r} does not run here", ENDPOINT)
