from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dstools_converters.checkpoint import rows
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.export.ranges import Piece
from dstools_converters.verify.exported.pieces import differences, stored

VALUES = np.arange(12 * 10, dtype=np.float32).reshape(12, 10)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A checkpoint of VALUES, read five rows at a time."""
    monkeypatch.setattr(rows, "SLAB_BYTES", 5 * 40)
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": VALUES}, tmp_path / "model.safetensors", {"format": "pt"})
    return open_checkpoint(tmp_path)


def places(source: Checkpoint, path: Path, values: np.ndarray) -> list[str]:
    """Compare rows 1 to 10 and columns 3 to 6 with what a file has after 7 bytes."""
    piece = Piece(source.tensors["w"], (1, 11), (3, 7))
    path.write_bytes(bytes(7) + values.tobytes())
    with path.open("rb") as file:
        return list(differences(file.fileno(), 7, piece, 4, stored(source, piece)))


def test_rows_and_columns_that_are_equal_differ_nowhere(source: Checkpoint, tmp_path: Path) -> None:
    assert places(source, tmp_path / "data", VALUES[1:11, 3:7]) == []


@pytest.mark.parametrize("where", [(0, 0), (4, 3), (5, 0), (9, 3)])  # two slabs of five rows
def test_the_first_place_that_differs_is_that_of_the_whole_tensor(
    where: tuple[int, int], source: Checkpoint, tmp_path: Path
) -> None:
    values = VALUES[1:11, 3:7].copy()
    values[where] += 1
    values[9, 3] += 1  # another, at the end
    (place,) = places(source, tmp_path / "data", values)
    row, column = where[0] + 1, where[1] + 3
    assert place == f"model.safetensors: w: they differ at row {row}, column {column}"


def test_a_file_that_ends_before_is_an_error(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        places(source, tmp_path / "data", VALUES[1:10, 3:7])
