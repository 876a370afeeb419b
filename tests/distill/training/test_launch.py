"""Several processes: those asked for run, with the losses of one, and kills lose nothing.

A process that imports torch and trl costs more than what it trains here, so each runs all that is
looked at (`run_all`), and the tests read what it left.
"""

import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Grpo, Sft
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.ranks import rank
from dstools_distill.store.stage import Work
from dstools_distill.training import grpo, trainer
from dstools_distill.training.checkpoints import Keeper
from dstools_distill.training.launch import launch_command, launch_config, require_launcher
from dstools_distill.training.rewards import Rewards, logging_flat_groups
from dstools_distill.training.sft import sft

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
HERE = Path(__file__).parent


class Stopped(BaseException):
    """A kill: nothing of the run handles it."""


def load(name: str) -> Any:
    """Return another module of tests."""
    spec = importlib.util.spec_from_file_location(f"launched_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------- what the processes run


def run_all(kind: Any, folder: Path, processes: int) -> None:
    """Train as a kind of processes does, and leave in `folder` what the tests look at."""
    torch.set_num_threads(1)
    short = load("test_sft").SHORT
    if kind == "refused":
        trainer.require_machine = lambda _: None  # only what runs is left to look at
        for name in ("fsdp2", "zero3"):
            refuse(replace(short, processes=2, parallel=name), folder)
        return
    if kind == "alone":
        refuse(replace(short, processes=2, parallel="ddp"), folder)
        fine_tune(short, folder, "straight")
        return
    settings = replace(short, processes=processes, parallel=kind)
    report = straight_and_stopped(lambda name: fine_tune(settings, folder, name), at=5)
    one_step = replace(settings, max_steps=1)
    report["mtp_layers"] = fine_tune(one_step, folder, "mtp", model=SAMPLE)["mtp_layers"]
    if rank() == 0:
        (folder / "report.json").write_text(json.dumps(report))
    if processes > 1 and kind == "zero3":
        (folder / "grpo").mkdir(exist_ok=True)
        straight_and_stopped(lambda name: replace_references(folder, f"grpo/{name}"), at=3)
    elif processes > 1:
        note_answers(kind, folder, processes)


def fine_tune(settings: Sft, folder: Path, name: str, **student: Any) -> dict[str, Any]:
    """Run sft. The first process makes the folder, late: the others must wait."""
    if rank() == 0:
        time.sleep(1)
        (folder / name).mkdir(exist_ok=True)
    gc.freeze()  # accelerate and DeepSpeed collect garbage in each run, among all that is imported
    student = student or {"init": load("test_sft").INIT}
    inputs = Inputs(rows=folder / "rows", tokenizer=SAMPLE, **student)
    return sft(settings, inputs, Work(folder / name))


def refuse(settings: Sft, folder: Path) -> None:
    """Write why sft refuses to run."""
    with pytest.raises(DstoolsError) as caught:
        fine_tune(settings, folder, "refused")
    if rank() == 0:
        (folder / f"{settings.parallel}.txt").write_text(str(caught.value))


def straight_and_stopped(train: Callable[[str], dict[str, Any]], at: int) -> dict[str, Any]:
    """Train "straight", and "stopped" with a stop after a step and a resume; return its report."""
    on_step_end = Keeper.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        on_step_end(self, args, state, control, **given)
        if state.global_step == at:
            raise Stopped

    train("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", stop)
        with pytest.raises(Stopped):
            train("stopped")
    return train("stopped")


def replace_references(folder: Path, name: str) -> dict[str, Any]:
    """Run grpo with ZeRO-3, rewards that differ, and the policy of step 2 as a reference."""
    tests = load("test_grpo")
    if rank() == 0:
        (folder / name).mkdir(exist_ok=True)
    changes = {"max_steps": 4, "save_steps": 1, "beta": 1.0, "replace_reference_steps": 2}
    changes |= {"micro_batch_size": 4, "processes": 2, "parallel": "zero3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "rewards", lambda *_: tests.spread_rewards())
        read = tests.inputs(folder / "asked", folder / "policy")
        return grpo.grpo(Grpo(**tests.SMALL | changes), read, Work(folder / name))


def note_answers(kind: Any, folder: Path, processes: int) -> None:
    """Train a step on answers of the loop; write this process's prompts and answers to a file."""
    tests = load("test_grpo")

    def note(prompts: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        pairs = list(zip(prompts, completion_ids, strict=True))
        (folder / f"{kind}-{rank()}.json").write_text(json.dumps(pairs))
        return [float(sum(ids) % 5) for ids in completion_ids]

    def generate(*_: Any) -> None:
        raise AssertionError("TRL generates")

    sizes = {"micro_batch_size": 8 // processes, "processes": processes, "max_steps": 1}
    (folder / kind).mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo.GRPOTrainer, "_generate_single_turn", generate)
        paid = Rewards(logging_flat_groups([note], 4), [1.0])
        patch.setattr(grpo, "rewards", lambda *_: paid)
        read = tests.inputs(folder / "asked", folder / "policy")
        grpo.grpo(Grpo(**tests.SMALL | sizes, parallel=kind), read, Work(folder / kind))


# -------------------------------------------------------------------------------------- the tests


def launch(
    kind: str, folder: Path, *launcher: str, processes: int = 2, on_gpu: bool = False
) -> Path:
    """Run `run_all` by a launcher, in a session of its own; return the folder."""
    tests = load("test_sft")
    tests.write_rows(folder / "rows", tests.some_rows(48))
    tests = load("test_grpo")
    tests.ask(folder / "asked", ["1"] * 3)
    tests.save_policy(folder / "policy")
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if not on_gpu:
        settings["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [*launcher, __file__, kind, folder, str(processes)],
        env=settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def launcher(kind: Any, processes: int = 2) -> list[str]:
    """The shipped command, up to the module it runs."""
    command = launch_command(Sft(processes=processes, parallel=kind, batch_size=8), [])
    return command[: command.index("-m", command.index("--config_file"))]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "curve.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """launched(kind): the folder of two processes of a kind, which are started once."""
    return cache(lambda kind: launch(kind, tmp_path_factory.mktemp(kind), *launcher(kind)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, which accelerate starts where it is asked for two on one machine."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    asked = ("--num_processes", "2", "--num_machines", "1")
    return launch("alone", tmp_path_factory.mktemp("alone"), *accelerate, *asked)


@pytest.fixture(scope="module")
def single(alone: Path) -> Path:
    """The model that one process trained."""
    return alone / "straight"


@pytest.fixture(scope="module")
def single_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process on a GPU, and one that was stopped."""
    folder = tmp_path_factory.mktemp("single_on_gpu")
    return launch("single", folder, sys.executable, processes=1, on_gpu=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_two_processes_repeat_the_losses_of_one_and_resume_to_the_bit(
    kind: str, single: Path, launched: Callable[[str], Path],
    mtp_is_carried_over: Callable[..., None],
) -> None:  # fmt: skip
    folder = launched(kind)
    # the mean of some 200 losses in another order of addition, float32: 1e-6 of 5.8 is three eps
    assert losses(folder / "straight") == pytest.approx(losses(single), abs=1e-6)
    report = json.loads((folder / "report.json").read_bytes())
    assert (report["parallel"], report["processes"], report["steps"]) == (kind, 2, 6)
    names = {path.name for path in single.iterdir()}
    assert names >= {"model.safetensors", "config.json", "curve.jsonl", "tokenizer.json"}
    assert names == require_equal_runs(folder)
    mtp_is_carried_over(report, SAMPLE, folder / "mtp")


@pytest.mark.slow
def test_each_process_resumes_with_its_part_of_a_replaced_reference(
    launched: Callable[[str], Path],
) -> None:
    folder = launched("zero3") / "grpo"
    require_equal_runs(folder)
    curve = (folder / "straight" / "curve.jsonl").read_bytes().splitlines()
    assert json.loads(curve[3])["kl"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2"])
def test_two_processes_draw_the_answers_of_one(kind: str, launched: Callable[[str], Path]) -> None:
    """An answer depends on its place in the whole batch; each process has half of the places."""
    folder = launched(kind)
    note_answers("single", folder, 1)
    wanted = json.loads((folder / "single-0.json").read_bytes())
    halves = [json.loads((folder / f"{kind}-{n}.json").read_bytes()) for n in (0, 1)]
    assert halves == [wanted[:4], wanted[4:]]
    assert len({tuple(ids) for _, ids in wanted}) == 8


def require_equal_runs(folder: Path) -> set[str]:
    """Compare the stopped run with the other, byte by byte; return the names of the files."""
    names = {path.name for path in (folder / "straight").iterdir()}
    assert {path.name for path in (folder / "stopped").iterdir()} == names
    for name in names:
        straight, stopped = (folder / run / name for run in ("straight", "stopped"))
        assert straight.read_bytes() == stopped.read_bytes(), name
    return names


@pytest.mark.gpu
def test_a_gpu_repeats_the_losses_of_the_cpu_and_resumes_to_the_bit(
    single: Path, single_on_gpu: Path
) -> None:
    # floats near 5.8 are 4.8e-7 apart; each of 6 steps starts from the rounding of the last.
    # A wrong batch or rate is off by 1e-2
    assert losses(single_on_gpu / "straight") == pytest.approx(losses(single), abs=1e-5)
    require_equal_runs(single_on_gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
def test_a_trial_with_one_process_and_gpu_is_what_was_asked_for_and_resumes_to_the_bit(
    kind: str, single_on_gpu: Path, tmp_path: Path
) -> None:
    launch(kind, tmp_path, *launcher(kind, processes=1), processes=1, on_gpu=True)
    # measured on an H100: the same, of ZeRO-3 one step of 4.8e-7
    assert losses(tmp_path / "straight") == pytest.approx(
        losses(single_on_gpu / "straight"), abs=1e-6
    )
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["parallel"], report["processes"], report["steps"]) == (kind, 1, 6)
    assert "model.safetensors" in require_equal_runs(tmp_path)


@pytest.mark.slow
def test_data_parallel_processes_are_not_taken_for_fsdp2_or_zero3(tmp_path: Path) -> None:
    """accelerate with its FSDP config runs plain DDP on a CPU, and says nothing."""
    command = launcher("ddp")
    command[command.index("--config_file") + 1] = str(launch_config(Sft(parallel="fsdp2")))
    launch("refused", tmp_path, *command)
    assert "but MULTI_CPU with 2 processes is running" in (tmp_path / "fsdp2.txt").read_text()
    assert "but MULTI_CPU with 2 processes is running" in (tmp_path / "zero3.txt").read_text()


@pytest.mark.slow
def test_one_process_where_two_were_asked_for_is_refused(alone: Path) -> None:
    """`accelerate launch --cpu --num_processes 2 --num_machines 1` starts one process."""
    assert "processes = 2, but 1 run" in (alone / "ddp.txt").read_text()


def test_variables_left_by_an_earlier_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DstoolsError, match="LOCAL_RANK is set and MASTER_ADDR is not") as caught:
        require_launcher()
    assert "unset LOCAL_RANK" in caught.value.hint
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    require_launcher()


if __name__ == "__main__":
    run_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
