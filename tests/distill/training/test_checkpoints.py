"""Tests of the files of a running training: whole checkpoints, the curve, the average."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Training
from dstools_distill.store.stage import Work
from dstools_distill.training import checkpoints
from dstools_distill.training.checkpoints import (
    CHECKPOINTS,
    CURVE,
    WHOLE,
    Keeper,
    fused_checkpoints,
    remove,
    whole_checkpoints,
)


def work(folder: Path) -> Work:
    return Work(folder)


def nothing() -> None:
    """Wait for no other process."""


def checkpoint(folder: Path, step: int, whole: bool = True) -> Path:
    place = folder / CHECKPOINTS / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"x")
    if whole:
        (place / WHOLE).touch()
    return place


def write_curve(folder: Path, steps: range, rest: bytes = b"") -> None:
    lines = [json.dumps({"step": n, "tokens": 100 * n, "loss": 1 / n}).encode() for n in steps]
    (folder / CURVE).write_bytes(b"\n".join(lines) + b"\n" + rest)


def test_what_was_not_finished_does_not_count(tmp_path: Path) -> None:
    """Killed while checkpoint 12 was written, and before checkpoint 4 was removed for 8."""
    for step, whole in ((4, True), (8, True), (12, False)):
        checkpoint(tmp_path, step, whole)
    (tmp_path / CHECKPOINTS / "README.md").touch()
    write_curve(tmp_path, range(1, 14), b'{"step": 14, "tok')
    keeper = Keeper(Training(), work(tmp_path), ("loss",), nothing)
    assert keeper.resume() == tmp_path / CHECKPOINTS / "checkpoint-8"
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["checkpoint-8"]
    lines = (tmp_path / CURVE).read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert keeper.tokens_before == 800


def test_a_checkpoint_that_is_half_removed_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = checkpoint(tmp_path, 4)

    def killed(path: Path) -> None:
        assert path == place
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove([place])
    assert (place / "model.safetensors").exists()
    assert whole_checkpoints(tmp_path) == []


def test_a_run_without_a_whole_checkpoint_begins_anew(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4, whole=False)
    write_curve(tmp_path, range(1, 6))
    keeper = Keeper(Training(), work(tmp_path), ("loss",), nothing)
    assert keeper.resume() is None
    assert (tmp_path / CURVE).read_bytes() == b""
    assert keeper.tokens_before == 0


def test_checkpoints_are_counted_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        checkpoint(tmp_path, step)
    assert [path.name for path in whole_checkpoints(tmp_path)] == [
        "checkpoint-3", "checkpoint-20", "checkpoint-100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "unexpected", "named"),
    [(["head.weight"], [], ""), ([], ["extra"], "extra"), (["body.weight"], ["x"], "body.weight")],
)
def test_a_checkpoint_of_other_weights_is_refused(
    missing: list[str], unexpected: list[str], named: str
) -> None:
    """A tied weight is read under one of its names."""
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("in", "body", "head")})
    model["head"].weight = model["in"].weight
    trainer = SimpleNamespace(model=model, _issue_warnings_after_load=None)
    read = SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected)
    with fused_checkpoints(trainer, Path("checkpoint-4")):
        check: Any = trainer._issue_warnings_after_load
        if not named:
            return check(read)
        with pytest.raises(DstoolsError, match=f"checkpoint-4: does not .* such as {named}") as end:
            check(read)
    assert end.value.hint.startswith("delete that checkpoint")


def test_the_average_moves_as_worked_by_hand() -> None:
    """Weight 0, then 1, then 3; decay min(0.2, (1 + t) / (10 + t)): 2/11 and 0.2, not 3/12."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = checkpoints.Average(0.2)
    average.start(model)
    nn.init.ones_(model.weight)
    average.update(model, 1)
    first = 1 - 2 / 11
    assert average.values["weight"].item() == pytest.approx(first, rel=1e-6)
    nn.init.constant_(model.weight, 3.0)
    average.update(model, 2)
    assert average.values["weight"].item() == pytest.approx(0.2 * first + 0.8 * 3, rel=1e-6)
    average.put(model)
    assert model.weight.item() == average.values["weight"].item()
    assert math.isfinite(model.weight.item())
