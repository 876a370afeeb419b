"""States of rows from the layer-by-layer runner are those of the whole model."""

from pathlib import Path

import pytest
import torch

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.checkpoint.tensors import restored
from dstools_converters.families.names import HUGGING_FACE
from dstools_converters.layerwise.runner import Runner, Watcher
from dstools_converters.layerwise.spill import Spill
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.decoder import Decoder
from dstools_distill.store.stage import Work
from dstools_distill.training.states import groups, last_states

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def test_rows_of_similar_length_run_together() -> None:
    rows = [[1] * length for length in (5, 9, 4, 8, 1, 7)]
    grouped = groups(rows)
    assert [group.rows for group in grouped] == [[4], [0, 2, 5], [1, 3]]
    assert [list(group.ids.shape) for group in grouped] == [[1, 1], [3, 7], [2, 9]]
    assert grouped[1].ids[1].tolist() == [1] * 4 + [0] * 3


@torch.inference_mode()
def test_the_states_of_a_row_are_those_that_it_has_alone(tmp_path: Path) -> None:
    """But for rounding: sums of a product have another order where it has more rows."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 300, (n,), generator=draw).tolist() for n in (12, 9, 21)]
    with open_checkpoint(SAMPLE) as checkpoint:
        inventory = require_sound(checkpoint)
        architecture = read_architecture(checkpoint.config)
        states = last_states(inventory, architecture, rows, Work(tmp_path))
        with torch.device("meta"):
            decoder = Decoder(architecture)
        names = [name for name, _ in inventory.model.weights()]
        weights = {HUGGING_FACE.spell(n): restored(inventory, inventory.info(n)) for n in names}
        decoder.load_state_dict(weights, assign=True)
    for number, row in enumerate(rows):
        wanted = decoder.model(torch.tensor([row]))[0]
        given = decoder.model.norm(states.read(number, len(row)))
        # float32 sums of four layers: some hundred roundings of 6e-8 of values near 1
        assert (given - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert {path.name for path in tmp_path.iterdir()} == {"states-0-4", "states-1-4"}


def test_a_killed_run_resumes_at_the_layer_that_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, ran, dies_at = Runner.run_layer, [], 2

    def run_layer(self: Runner, layer: int, hidden: Spill, watcher: Watcher) -> Spill:
        if layer == dies_at:
            raise Killed
        ran.append(layer)
        return real(self, layer, hidden, watcher)

    monkeypatch.setattr(Runner, "run_layer", run_layer)
    rows = [[5, 6, 7, 8], [9, 10, 11, 12, 13]]
    (tmp_path / "straight").mkdir()
    with open_checkpoint(SAMPLE) as checkpoint:
        inventory = require_sound(checkpoint)
        architecture = read_architecture(checkpoint.config)
        with pytest.raises(Killed):
            last_states(inventory, architecture, rows, Work(tmp_path))
        dies_at = -1
        resumed = last_states(inventory, architecture, rows, Work(tmp_path))
        assert ran == [0, 1, 2, 3]
        (tmp_path / "states-0-4").write_bytes(b"short")  # is not taken for the result
        resumed = last_states(inventory, architecture, rows, Work(tmp_path))
        straight = last_states(inventory, architecture, rows, Work(tmp_path / "straight"))
    for number, row in enumerate(rows):
        assert resumed.read(number, len(row)).equal(straight.read(number, len(row)))
