"""Runs that stop after each of their checkpoints, and MTP layers that no training changes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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


@pytest.fixture(scope="session")
def mtp_is_carried_over() -> Callable[[dict[str, Any], Path, Path], None]:
    """mtp_is_carried_over(report, sample, out): all bytes of the layer, and nothing but trained."""

    def check(report: dict[str, Any], sample: Path, out: Path) -> None:
        assert report["mtp_layers"] == "carried over, not trained"
        before, after = (load_file(folder / "model.safetensors") for folder in (sample, out))
        assert after.keys() == before.keys()
        layer = {name for name in after if name.startswith("model.layers.4.")}
        same = {name for name in after if after[name].equal(before[name].to(after[name].dtype))}
        assert layer <= same < after.keys()  # and some others were trained
        assert all(after[name].dtype == before[name].dtype for name in layer)
        assert json.loads((out / "config.json").read_bytes())["num_nextn_predict_layers"] == 1

    return check
