"""Files that a training run writes as it goes: checkpoints, the loss curve, an average of weights.

    FOLDER/checkpoints/checkpoint-40/   state of transformers' Trainer, ema.safetensors, WHOLE
    FOLDER/curve.jsonl                  {"step", "tokens", "loss", "learning_rate", "grad_norm"}

WHOLE is written last, after the rest is on the disk; a checkpoint without it is removed. A resumed
run cuts the curve back to its checkpoint, and draws the order of its epoch as an uninterrupted run
does, so that the result is the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.utils import RepeatSampler

from dstools_converters.errors import DstoolsError
from dstools_converters.files import append_record, recover_log, sync, write_synced
from dstools_distill.recipe.settings import Training
from dstools_distill.store.ranks import rank
from dstools_distill.store.stage import Work

SAVE = "save_pretrained"  # a constant, as ruff refuses setattr of a literal name
CHECKPOINTS, CURVE, EMA, WHOLE = "checkpoints", "curve.jsonl", "ema.safetensors", "whole"


class Keeper(TrainerCallback):
    """Writes checkpoints, curve and average while a Trainer of transformers runs.

    Checkpoints are made only at multiples of `settings.log_steps`: the Trainer forgets the losses
    since it last logged. All processes take part; the first one writes the files.
    """

    def __init__(
        self, settings: Training, work: Work, curve: tuple[str, ...], wait: Callable[[], None]
    ) -> None:
        self.settings, self.folder, self.keys, self.wait = settings, work.folder, curve, wait
        self.ema = Average(settings.ema) if settings.ema else None
        self.is_first = rank() == 0
        self.every = 0  # steps between checkpoints
        self.tokens_before = 0  # what the Trainer counted before it was killed
        self._bars, self._bar = ExitStack(), work.bar

    def resume(self) -> Path | None:
        """Return the last whole checkpoint; remove all others, and cut the curve back to it."""
        checkpoints = whole_checkpoints(self.folder)
        last = checkpoints[-1] if checkpoints else None
        self.wait()
        if self.is_first:
            for path in (self.folder / CHECKPOINTS).glob("*"):
                if path != last:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _cut_curve(self.folder / CURVE, _step(last) if last else 0)
        self.wait()
        if last is not None:
            lines = (self.folder / CURVE).read_bytes().splitlines()
            self.tokens_before = json.loads(lines[-1])["tokens"]
            if self.ema and self.is_first:
                self.ema.values = load_file(last / EMA)
        return last

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        """Set the interval of checkpoints and the order of rows; start average and progress bar."""
        every = self.settings.save_steps or max(1, state.max_steps // 10)
        self.every = ceil(every / self.settings.log_steps) * self.settings.log_steps
        _pass_epochs(context["train_dataloader"], int(state.epoch or 0))
        if self.is_first:
            if self.ema and not self.ema.values:
                self.ema.start(context["model"])
            self._progress = self._bars.enter_context(self._bar(state.max_steps, "steps"))
            self._progress(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        """Update the average, and request logs and checkpoints that are due."""
        step, is_last = state.global_step, state.global_step >= state.max_steps
        control.should_log = control.should_log or is_last
        control.should_save = step % self.every == 0 and not is_last
        if self.is_first:
            if self.ema:
                self.ema.update(context["model"], step)
            self._progress(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        """Add a line to the curve."""
        logs = context["logs"]
        if not self.is_first or "loss" not in logs:
            return
        line = {"step": state.global_step, "tokens": int(logs["num_tokens"])}
        line |= {key: logs[key] for key in self.keys if key in logs}
        with (self.folder / CURVE).open("ab") as file:
            append_record(file.fileno(), line)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Make a checkpoint whole, and remove those before it."""
        self.wait()  # each process has written its part
        if self.is_first:
            checkpoint = self.folder / CHECKPOINTS / f"checkpoint-{state.global_step}"
            if self.ema:
                save_file(self.ema.values, checkpoint / EMA)
            for path in (*checkpoint.rglob("*"), checkpoint, self.folder / CURVE):
                sync(path)
            write_synced(checkpoint / WHOLE, b"")
            sync(checkpoint)
            sync(checkpoint.parent)
            remove(whole_checkpoints(self.folder)[:-1])
        self.wait()

    def close(self) -> None:
        """End the progress bar."""
        self._bars.close()


@contextmanager
def fused_checkpoints(trainer: Any, last: Path | None) -> Iterator[None]:
    """Let a Trainer of transformers write and read checkpoints under the model's own names.

    transformers saves fused experts one by one, as on the Hub, and its Trainer does not fuse them
    again: a resumed run would go on with the experts of the untrained model, and say so in a
    warning (huggingface/transformers#48805). A checkpoint `last` of such names, or one that lacks a
    weight for another reason, raises DstoolsError when it is read.
    """
    model = trainer.model
    assert hasattr(trainer, "_issue_warnings_after_load"), "transformers has renamed it"
    trainer._issue_warnings_after_load = partial(_require_all, model, last)
    if not isinstance(model, PreTrainedModel):  # of peft, which saves the low-rank updates alone
        yield
        return
    setattr(model, SAVE, partial(model.save_pretrained, save_original_format=False))
    try:
        yield
    finally:
        delattr(model, SAVE)


def _require_all(model: nn.Module, last: Path | None, read: Any) -> None:
    """Raise DstoolsError unless all weights were read, tied ones under one of their names."""
    weights, missing = model.state_dict(), set(read.missing_keys)
    places = {value.data_ptr() for name, value in weights.items() if name not in missing}
    lost = sorted(name for name in missing if weights[name].data_ptr() not in places)
    if lost or read.unexpected_keys:
        raise DstoolsError(
            f"{last}: does not hold the weights of this model, such as "
            f"{(lost or read.unexpected_keys)[0]}",
            "delete that checkpoint and run it again: training starts over",
        )


class Average:
    """An exponential moving average of the trained weights, float32, on the CPU.

    After step t it moves by 1 - min(decay, (1 + t) / (10 + t)), so that a short run is not an
    average of its random beginning. Source: TensorFlow, tf.train.ExponentialMovingAverage,
    `num_updates`.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    def start(self, model: nn.Module) -> None:
        """Start from the weights of a model."""
        self.values = {name: _copied(value) for name, value in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after a step; the first step is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.values[name] for name, _ in _trained(model)]
        weights = [value.detach().to("cpu", torch.float32) for _, value in _trained(model)]
        get_ema_multi_avg_fn(decay)(averages, weights, step)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Overwrite the weights of a model by their average."""
        for name, value in _trained(model):
            value.copy_(self.values[name])


def remove(checkpoints: list[Path]) -> None:
    """Remove checkpoints; one that a kill leaves half removed is no longer whole."""
    for checkpoint in checkpoints:
        (checkpoint / WHOLE).unlink()
        shutil.rmtree(checkpoint)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, the oldest first."""
    return sorted((mark.parent for mark in folder.glob(f"{CHECKPOINTS}/*/{WHOLE}")), key=_step)


def _pass_epochs(loader: "DataLoader[Any]", epochs: int) -> None:
    """Draw the orders of epochs that were trained before the checkpoint.

    TRL's sampler, of kd and grpo, draws the order of each epoch from one generator. It starts anew
    in a resumed run, which would see the rows of the first epoch again.
    """
    batches: Any = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # divided among processes
        batches = batches.batch_sampler
    if isinstance(batches.sampler, RepeatSampler):
        for _ in range(epochs):
            next(iter(batches.sampler))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _cut_curve(path: Path, step: int) -> None:
    """Cut a curve after a step and flush it; make an empty file if there is none."""
    with path.open("a+b") as file:
        later = [offset for offset, line in recover_log(file) if line["step"] > step]
        if later:
            file.truncate(later[0])
    sync(path)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()
