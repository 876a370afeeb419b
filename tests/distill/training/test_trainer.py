"""What sft, kd and grpo share: settings that are refused, launch commands, checkpoints that count."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import constants
from transformers import AutoTokenizer

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Lora, Training
from dstools_distill.store.stage import Work
from dstools_distill.training import trainer as training
from dstools_distill.training.checkpoints import (
    CHECKPOINTS,
    CURVE,
    WHOLE,
    Keeper,
    whole_checkpoints,
)
from dstools_distill.training.launch import launch_command, launch_config
from dstools_distill.training.students import load_student
from dstools_distill.training.trainer import arguments, check_launch, require_machine

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
TWO = Training(processes=2, parallel="ddp")
TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1,
}  # fmt: skip


def work(folder: Path) -> Work:
    return Work(folder)


def nothing() -> None:
    """Wait for no other process."""


# --------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "reason", "hint"),
    [
        (Training(processes=2), "contradict each other", '"ddp"'),
        (Training(parallel="ddp"), "contradict each other", '"single"'),
        (
            Training(batch_size=6, micro_batch_size=4),
            "not a multiple of micro_batch_size",
            "multiple",
        ),
        (replace(TWO, parallel="fsdp2"), "fsdp2 needs GPUs", '"zero3"'),
        (Training(parallel="fsdp2"), "fsdp2 needs GPUs", '"zero3"'),
        (replace(TWO, parallel="zero3", ema=0.9), "divides each weight", "leave out"),
        (replace(TWO, parallel="zero3", lora=Lora()), "divides each weight", "leave out"),
        (replace(TWO, parallel="zero2", precision="bfloat16"), "bfloat16 weights", "autocast"),
        (replace(TWO, parallel="zero2", optimizer="muon"), "muon needs each weight", '"ddp"'),
        (Training(parallel="zero2", optimizer="muon"), "muon needs each weight", '"single"'),
        (Training(optimizer="muon", lora=Lora()), "muon trains whole weights", "another"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_launched(
    settings: Training, reason: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for refuse in (
        lambda: arguments(settings, work(tmp_path)),
        lambda: require_machine(settings),
    ):
        with pytest.raises(DstoolsError, match=reason) as caught:
            refuse()
        assert hint in caught.value.hint


@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_one_process_may_try_what_several_will_do(parallel: Any) -> None:
    require_machine(Training(parallel=parallel))
    command = launch_command(Training(parallel=parallel), [])
    assert command[command.index("--num_processes") + 1] == "1"


def test_one_process_that_would_use_several_gpus_is_refused() -> None:
    """transformers then runs nn.DataParallel, on batches as many times as large."""

    class Trainer:
        class args:
            n_gpu = 8

    with pytest.raises(DstoolsError, match="each batch over 8 GPUs") as caught:
        check_launch(Trainer(), Training())
    assert "CUDA_VISIBLE_DEVICES=0" in caught.value.hint


def test_several_processes_without_a_launcher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="processes = 2 were asked for, and 1 run") as caught:
        arguments(TWO, work(tmp_path))
    assert "ddp.yaml --num_processes 2" in caught.value.hint


def test_one_process_under_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DstoolsError, match="processes = 1 were asked for, and 2 run") as caught:
        arguments(Training(), work(tmp_path))
    assert "without a launcher" in caught.value.hint


def test_zero_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(DstoolsError, match="needs DeepSpeed") as caught:
        require_machine(replace(TWO, parallel="zero2"))
    assert caught.value.hint == "pip install deepspeed"


def test_a_step_has_the_rows_asked_for_over_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = arguments(replace(TWO, batch_size=64, micro_batch_size=4), work(tmp_path))
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * 2 == 64


def test_nobody_is_told_of_a_run() -> None:
    """TRL reports each trainer to its makers unless this is set."""
    assert constants.HF_HUB_DISABLE_TELEMETRY


# ----------------------------------------------------------------------------------------- launch


@pytest.mark.parametrize(
    ("kind", "type_", "extra"),
    [
        ("ddp", "MULTI_GPU", {}),
        ("fsdp2", "FSDP", {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}),
        ("zero2", "DEEPSPEED", {"zero_stage": 2}),
        ("zero3", "DEEPSPEED", {"zero_stage": 3, "zero3_save_16bit_model": True}),
    ],
)
def test_the_shipped_configs_are_read_by_accelerate(
    kind: Any, type_: str, extra: dict[str, Any]
) -> None:
    config = load_config_from_file(str(launch_config(replace(TWO, parallel=kind))))
    assert config.distributed_type == type_
    assert config.mixed_precision == "no"
    said = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}.get(type_)
    assert extra.items() <= (getattr(config, said) if said else {}).items()


def test_each_way_of_running_has_a_config_in_the_package() -> None:
    shipped = {path.name for path in (files("dstools_distill") / "launch").iterdir()}
    assert shipped == {"ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"}


def test_the_command_runs_the_stage_again_in_each_process() -> None:
    command = launch_command(TWO, ["sft", "toy.toml", "--out", "a b"])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-7:] == ["-m", "dstools", "distill", "sft", "toy.toml", "--out", "a b"]


# ------------------------------------------------------------------------------------ the student


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ({"hidden_size": 16}, "has no model_type"),
        ({"model_type": "no-such"}, "cannot be loaded"),
        (TINY | {"vocab_size": 300}, "vocab_size is 300, the tokenizer has 319"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(init: dict[str, Any], reason: str) -> None:
    with pytest.raises(DstoolsError, match=reason):
        load_student(Training(), None, init, AutoTokenizer.from_pretrained(SAMPLE))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=f"{tmp_path}: cannot be loaded"):
        load_student(Training(), tmp_path, None, AutoTokenizer.from_pretrained(SAMPLE))


def test_a_quantized_model_is_not_trained(tmp_path: Path) -> None:
    config = TINY | {"vocab_size": 320, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DstoolsError, match="is quantized"):
        load_student(Training(), tmp_path, None, AutoTokenizer.from_pretrained(SAMPLE))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", torch.float32),
        ("bf16-autocast", torch.float32),
        ("bfloat16", torch.bfloat16),
    ],
)
def test_weights_have_the_precision_asked_for(precision: Any, dtype: torch.dtype) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    student = load_student(Training(precision=precision), None, TINY, tokenizer)
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert student.config.eos_token_id == tokenizer.eos_token_id
    assert student.config.vocab_size == len(tokenizer)


# ------------------------------------------------------------------------------------ checkpoints


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


# A process that is killed again and again: it forks, so that torch is imported once. Each child counts
# what it writes, by fsync, torch.save, save_pretrained, rmtree and lines of the curve, and dies at one of them.
KILLED = """
import os, random, shutil, signal, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from dataclasses import replace
from test_sft import INIT, SHORT, SAMPLE, work, write_rows, some_rows
from transformers import PreTrainedModel
from dstools_distill.training.checkpoints import Keeper
from dstools_distill.recipe.stages import Inputs
from dstools_distill.training.sft import sft

folder = Path(sys.argv[1])
rows = write_rows(folder / "rows", some_rows(48))
settings = replace(SHORT, max_steps=12, ema=0.9, batch_size=4)
until = 0

def deadly(owner, name):
    original = getattr(owner, name)

    def counted(*args, **kwargs):
        global until
        until -= 1
        if until == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)

for owner, name in (
    (os, "fsync"), (torch, "save"), (PreTrainedModel, "save_pretrained"), (shutil, "rmtree"),
    (Keeper, "on_log"), (Keeper, "on_step_end"), (Keeper, "on_save"),
):
    deadly(owner, name)

def child(name, dies_at):
    global until
    process = os.fork()
    if process == 0:
        until = dies_at
        try:
            sft(settings, Inputs(rows=rows, init=INIT, tokenizer=SAMPLE), work(folder / name))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFSIGNALED(status)

assert not child("straight", -1)
draw = random.Random(0)
kills = 0
for _ in range(100):
    if not child("killed", draw.randrange(1, 45)):
        break
    kills += 1
(folder / "kills").write_text(str(kills))
"""


@pytest.mark.slow
def test_a_run_killed_wherever_it_writes_ends_in_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py", tmp_path, Path(__file__).parent],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int((tmp_path / "kills").read_text()) >= 4
    straight, killed = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("straight", "killed")
    )
    assert straight == killed
