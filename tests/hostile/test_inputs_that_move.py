"""A checkpoint that changes while a command reads its weights fails, by the name of the file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.compare import compare
from dstools_converters.errors import DstoolsError
from dstools_converters.verify.folder import verify

Checkpoint = Callable[..., Path]


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(checkpoint("tiny-llama"), tmp_path / "copy"))
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    return copy


def touch(folder: Path) -> Callable[[int], None]:
    """Return a progress callback that gives the first shard another time."""
    shard = min(folder.glob("*.safetensors"))
    return lambda nbytes: os.utime(shard, (1, 1))


def check_verify(folder: Path, other: Path, tmp_path: Path, progress: Any) -> None:
    verify(folder, progress=progress)


def check_source(folder: Path, other: Path, tmp_path: Path, progress: Any) -> None:
    verify(other, source=folder, progress=progress)


def check_first(folder: Path, other: Path, tmp_path: Path, progress: Any) -> None:
    with open_checkpoint(folder) as a, open_checkpoint(other) as b:
        compare(require_sound(a), require_sound(b), progress=progress)


def check_second(folder: Path, other: Path, tmp_path: Path, progress: Any) -> None:
    with open_checkpoint(other) as a, open_checkpoint(folder) as b:
        compare(require_sound(a), require_sound(b), progress=progress)


def check_evaluation(folder: Path, other: Path, tmp_path: Path, progress: Any) -> None:
    import torch

    from dstools_converters.layerwise.corpus import Corpus
    from dstools_converters.layerwise.evaluate import evaluate

    ids = torch.zeros(1, 8, dtype=torch.int32).numpy()
    with open_checkpoint(other) as model, open_checkpoint(folder) as against:
        evaluate(
            require_sound(model),
            require_sound(against),
            Corpus(ids, "ids", "0" * 64, 1, 8, 0, 1, 8),
            activations="none",
            tool="dstools 0",
            device="cpu",
            ram_bytes=1 << 30,
            folder=tmp_path / "spills",
            progress=progress,
        )


COMMANDS = [check_verify, check_source, check_first, check_second, check_evaluation]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_shard_that_changes_while_it_is_read_is_an_error_by_its_name(
    command: Callable[..., None], folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "spills").mkdir()
    other = checkpoint("tiny-llama")
    command(folder, other, tmp_path, lambda nbytes: None)
    shard = min(path.name for path in folder.glob("*.safetensors"))
    with pytest.raises(DstoolsError, match=rf"^{shard}: changed or was removed"):
        command(folder, other, tmp_path, touch(folder))
