"""Tests of a run of TRL's trainer: refused settings, launch commands, kills."""

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
from safetensors import safe_open
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import end_ids
from dstools_distill.recipe.settings import Lora, Training
from dstools_distill.store.stage import Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training import trainer as training
from dstools_distill.training.launch import launch_command, launch_config
from dstools_distill.training.trainer import arguments, check_launch, require_machine

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
TWO = Training(processes=2, parallel="ddp")
TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1,
}  # fmt: skip


EH_PROJ = "model.layers.1.eh_proj.weight"
MTP = {EH_PROJ: torch.arange(16 * 32, dtype=torch.bfloat16).view(16, 32)}


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
    for refuse in (lambda: arguments(settings, work(tmp_path)), lambda: require_machine(settings)):
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

    with pytest.raises(
        DstoolsError, match="processes = 1, but transformers would use 8 GPUs"
    ) as caught:
        check_launch(Trainer(), Training())
    assert "CUDA_VISIBLE_DEVICES=0" in caught.value.hint


def test_several_processes_without_a_launcher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="processes = 2, but 1 run") as caught:
        arguments(TWO, work(tmp_path))
    assert "ddp.yaml --num_processes 2" in caught.value.hint


def test_one_process_under_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DstoolsError, match="processes = 1, but 2 run") as caught:
        arguments(Training(), work(tmp_path))
    assert "without a launcher" in caught.value.hint


def test_zero_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstools_distill.machine.find_spec", lambda name: None)
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
    name = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}.get(type_)
    assert extra.items() <= (getattr(config, name) if name else {}).items()


def test_each_way_of_running_has_a_config_in_the_package() -> None:
    shipped = {path.name for path in (files("dstools_distill") / "launch").iterdir()}
    assert shipped == {"ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"}


def test_the_command_runs_the_stage_again_in_each_process() -> None:
    command = launch_command(TWO, ["sft", "toy.toml", "--out", "a b"])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-7:] == ["-m", "dstools", "distill", "sft", "toy.toml", "--out", "a b"]


# ----------------------------------------------------------------------------------------- result


class Sharded(LlamaForCausalLM):
    """A model that transformers writes in several shards, and counts wrongly, as with ZeRO-3."""

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        super().save_pretrained(*args, max_shard_size="4KB", **options)

    def num_parameters(self, *_args: Any, **_: Any) -> int:
        return 0


def test_the_result_has_no_local_path_and_the_right_number_of_parameters(tmp_path: Path) -> None:
    shape = {key: value for key, value in TINY.items() if key != "model_type"}
    model = Sharded(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **shape))
    model.generation_config = GenerationConfig(_name_or_path="/home/jane/run-3", max_length=5)
    training._write(model, tmp_path, load_tokenizer(SAMPLE, None), None, MTP)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["max_length"] == 5
    assert "_name_or_path" not in generation
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    # embedding 64 x 16, tied to the head; q, k, v, o, gate, up, down 16 x 16; three norms of 16
    parameters = 64 * 16 + 7 * 16 * 16 + 3 * 16
    assert index["metadata"]["total_parameters"] == parameters + 32 * 16
    assert index["metadata"]["total_size"] == 4 * parameters + 2 * 32 * 16
    with safe_open(tmp_path / index["weight_map"][EH_PROJ], framework="pt") as file:
        assert file.get_tensor(EH_PROJ).equal(MTP[EH_PROJ])


def test_the_result_names_every_end_of_an_answer_that_of_the_template_first(tmp_path: Path) -> None:
    shape = {key: value for key, value in TINY.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape | {"eos_token_id": 5}))
    model.generation_config = GenerationConfig(eos_token_id=[7, 4])
    tokenizer = load_tokenizer(SAMPLE, None)
    model.generation_config = training._generation_config(model, tokenizer)
    training._write(model, tmp_path, tokenizer, None, {})
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 4, 5, 7]
    assert end_ids(tmp_path, tokenizer) == {1, 4, 5, 7}


# ------------------------------------------------------------------------------------------ kills


# Kills a run again and again. It forks, so that torch is imported once. Each child counts its
# fsync, torch.save, save_pretrained, rmtree and lines of the curve, and dies at one of them.
KILLED = """
import os, random, shutil, signal, sys
from pathlib import Path

import deepspeed  # by accelerate, in each child, if not here
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
