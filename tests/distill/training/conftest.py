"""Runs that stop after each of their checkpoints."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_distill.training.checkpoints import Keeper


class Stopped(BaseException):
    """A kill: nothing of the run handles it."""


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """resumed(train): train(folder) once straight, and once with a stop after each checkpoint.

    Asserts that both end in the same bytes, and returns the number of stops.
    """
    on_save = Keeper.on_save

    def stop(*words: Any, **context: Any) -> None:
        on_save(*words, **context)
        raise Stopped

    def run(train: Callable[[Path], Any]) -> int:
        straight, stopped, stops = tmp_path / "straight", tmp_path / "stopped", 0
        train(straight)
        monkeypatch.setattr(Keeper, "on_save", stop)
        while True:
            try:
                train(stopped)
                break
            except Stopped:
                stops += 1
        curves = [(folder / "curve.jsonl").read_text() for folder in (straight, stopped)]
        assert curves[0] == curves[1]
        assert _content(straight) == _content(stopped)
        return stops

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
