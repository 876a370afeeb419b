"""Last hidden states of a model on rows of tokens, by the layer-by-layer runner of calibration.

    FOLDER/states-3-7    the input of layer 7 of the fourth group; a killed run resumes there

Rows of similar length are padded to one length and run as a group. What follows a token changes
nothing in a causal model, so padding costs time and changes no state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.families.names import TensorName
from dstools_converters.layerwise.runner import Runner
from dstools_converters.model.architecture import Architecture
from dstools_distill.store.stage import Work

RAM_BYTES = 8 << 30  # of states; more are kept in the folder


class Group(NamedTuple):
    """Rows that run together."""

    rows: list[int]
    ids: Tensor  # [rows, length] int64, padded


class States:
    """States of rows, before the final norm, mapped from files."""

    def __init__(self) -> None:
        self._of_row: dict[int, Tensor] = {}

    def add(self, group: Group, file: Path, width: int) -> None:
        """Add the states of a group, which are in a file."""
        rows, length = group.ids.shape
        mapped = torch.from_file(str(file), size=rows * length * width, dtype=torch.float32)
        states_RSD = mapped.view(rows, length, width)
        self._of_row |= {row: states_RSD[n] for n, row in enumerate(group.rows)}

    def read(self, row: int, length: int) -> Tensor:
        """Return the states [length, D] float32 of a row."""
        return self._of_row[row][:length]


class _Unwatched:
    """Watcher that sees nothing."""

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Do nothing, as do the others."""

    def see(self, source: str, values_TD: Tensor) -> None: ...

    def end(self) -> None: ...

    def route(self, experts_TK: Tensor, load: list[int]) -> None: ...

    def cache(self, first: Tensor, second: Tensor) -> None: ...


def last_states(
    inventory: Inventory, architecture: Architecture, rows: list[list[int]], work: Work
) -> States:
    """Return the states of rows of ids after the last hidden layer; MTP layers do not run.

    Files stay in `work.folder`. Raises DstoolsError, naming the layer, for NaN or infinity.
    """
    states, layers = States(), inventory.model.num_hidden_layers
    grouped = groups(rows)
    with work.bar(len(grouped) * layers, "layers") as progress:
        for number, group in enumerate(grouped):
            runner = Runner(
                inventory,
                architecture,
                group.ids,
                device="cpu",
                folder=work.folder,
                ram_bytes=RAM_BYTES,
            )
            files = [work.folder / f"states-{number}-{layer}" for layer in range(layers + 1)]
            _run(runner, files, progress)
            states.add(group, files[-1], inventory.model.hidden_size)
    return states


def _run(runner: Runner, files: list[Path], progress: Callable[[int], object]) -> None:
    """Run the layers that are not done and leave the last file; one of another size is not done."""
    nbytes = runner.ids.numel() * runner.inventory.model.hidden_size * torch.float32.itemsize
    whole = (n for n, file in enumerate(files) if file.is_file() and file.stat().st_size == nbytes)
    done = max(whole, default=0)
    progress(done)
    if done == len(files) - 1:
        return
    hidden = runner.load_states(done, files[done])
    if hidden is None:
        done, hidden = 0, runner.embed(runner.ids.flatten())
    for layer in range(done, len(files) - 1):
        hidden = runner.run_layer(layer, hidden, _Unwatched())
        runner.require_finite(layer, hidden)
        hidden.save(files[layer + 1])
        files[layer].unlink(missing_ok=True)
        progress(1)
    hidden.close()


def groups(rows: list[list[int]]) -> list[Group]:
    """Return the rows in groups whose longest is less than twice as long as their shortest."""
    numbers: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(len(row).bit_length(), []).append(number)
    return [Group(some, padded([rows[n] for n in some], 0)) for _, some in sorted(numbers.items())]


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Return rows [rows, longest] int64, filled up with a value."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
