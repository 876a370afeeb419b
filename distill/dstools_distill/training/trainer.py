"""Run of a trainer of TRL, for sft, kd and grpo: arguments, checks, the run, the result.

    config = SFTConfig(**arguments(settings, work), ...)   # first: it starts the process group
    model = load_student(settings, folder, None, tokenizer)
    trainer = SFTTrainer(model, config, ..., peft_config=lora(settings))
    report = run(trainer, settings, work, tokenizer, folder)

A killed run resumes from its last whole checkpoint and ends in the same bytes. Before training,
`settings.processes` and `settings.parallel` are compared with what runs: launchers may start
something else without a warning. The result is a model folder: weights (LoRA merged), config,
tokenizer with the student's chat template, generation config, curve.jsonl; with `ema` also `ema/`,
the same with averaged weights. MTP layers of a student are copied, see untrained.py.
"""

import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.training_args import OptimizerNames
from transformers.utils.logging import disable_progress_bar

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.checkpoint.parameters import TOTAL_PARAMETERS
from dstools_converters.errors import RESUME_HINT, DstoolsError, printable
from dstools_converters.model.tokenizer import end_token_id, ends_of
from dstools_converters.sidefiles.carried import carried
from dstools_converters.tables import nearest
from dstools_distill.loading import keep_freed_memory
from dstools_distill.machine import lack
from dstools_distill.recipe.settings import Training, check_settings
from dstools_distill.store.ranks import world_size
from dstools_distill.store.stage import Report, Work
from dstools_distill.training.checkpoints import (
    CHECKPOINTS,
    Keeper,
    fused_checkpoints,
    remove,
    whole_checkpoints,
)
from dstools_distill.training.launch import launch_hint, require_launcher
from dstools_distill.training.students import add_older_rope_keys
from dstools_distill.training.untrained import untrained

log = logging.getLogger(__name__)
LOSS_CURVE = ("loss", "learning_rate", "grad_norm")
EMA_FOLDER = "ema"

hub.HF_HUB_DISABLE_TELEMETRY = True  # otherwise TRL's trainers report each run
disable_progress_bar()  # type: ignore[no-untyped-call] # work.bar shows progress


def arguments(settings: Training, work: Work) -> dict[str, Any]:
    """Return the keywords that SFTConfig, DistillationConfig and GRPOConfig have in common.

    Raises DstoolsError where the settings contradict each other or the running processes.
    """
    require_machine(settings)
    running = world_size()
    if running != settings.processes:
        raise DstoolsError(
            f"processes = {settings.processes}, but {running} run", launch_hint(settings)
        )
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    if settings.parallel.startswith("zero") and not on_gpu:
        import deepspeed

        # otherwise compiled for two minutes, for a sum that gloo can do
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return {
        "output_dir": os.fspath(work.folder / CHECKPOINTS),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": settings.min_learning_rate_ratio},
        "warmup_steps": settings.warmup_steps,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.batch_size
        // (settings.micro_batch_size * settings.processes),
        "optim": "adamw_torch" if settings.optimizer == "muon" else settings.optimizer,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bf16-autocast",
        "activation_checkpointing": settings.activation_checkpointing,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "ddp_find_unused_parameters": False,  # a search in every step; students have none
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": settings.log_steps,
        "logging_nan_inf_filter": False,  # it would replace a NaN by a mean
        "save_strategy": "no",  # Keeper requests checkpoints
        "report_to": "none",
        "disable_tqdm": True,
    }


def require_machine(settings: Training) -> None:
    """Raise DstoolsError for settings that contradict each other, or need what is missing here."""
    check_settings(settings)
    require_launcher()
    require_names(settings)
    if fault := lack(settings):
        raise DstoolsError(*fault)


def require_names(settings: Training, where: str = "") -> None:
    """Raise DstoolsError for an optimizer or an attention that is neither ours nor transformers'.

    where: put before the key. An attention with a / is a kernel's name on the Hub.
    """
    known = {
        "optimizer": ["muon", *(optimizer.value for optimizer in OptimizerNames)],
        "attention": ["eager", *ALL_ATTENTION_FUNCTIONS.keys()],
    }
    for key, names in known.items():
        name = getattr(settings, key)
        if name not in names and not (key == "attention" and "/" in name):
            problem = f"{where}{key}: {printable(name)} is not known"
            raise DstoolsError(problem, nearest(name, names))


# ---------------------------------------------------------------------------------------- the run


def run(
    trainer: Any,
    settings: Training,
    work: Work,
    tokenizer: Any,
    student: Path | None,
    curve: tuple[str, ...] = LOSS_CURVE,
) -> Report:
    """Train to the end, from the last whole checkpoint if there is one, and save the result.

    student: the folder that the model was loaded from, None for a new one. curve: the keys of the
    trainer's log to keep in curve.jsonl. All processes call this and get the report; the first one
    writes. Raises DstoolsError where the trainer does not run as the settings say.
    """
    wait = trainer.accelerator.wait_for_everyone
    wait()  # the folder is made by the first process
    check_launch(trainer, settings)
    mtp_layers = untrained(settings, student, trainer.model.config)
    keeper = Keeper(settings, work, curve, wait)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Sharded(trainer, settings))
    trainer.add_callback(keeper)
    parameters, trained = count(trainer.model), count(trainer.model, trained=True)
    last = keeper.resume()
    trainer._total_train_tokens = keeper.tokens_before  # SFTTrainer forgets it
    log.info("training %d of %d parameters from %s", trained, parameters, last or "the start")
    try:
        with fused_checkpoints(trainer, last):
            trainer.train(resume_from_checkpoint=os.fspath(last) if last else None)
    except ImportError as error:  # of an optimizer that is not installed
        raise DstoolsError(
            f"optimizer = {settings.optimizer!r}: {error}", "install it or choose another"
        ) from error
    finally:
        keeper.close()
    _save(trainer, settings, work.folder, tokenizer, keeper, mtp_layers.tensors)
    wait()
    report: Report = {
        "steps": trainer.state.global_step,
        "parameters": parameters,
        "trained_parameters": trained,
        "precision": settings.precision,
        "processes": settings.processes,
        "parallel": settings.parallel,
    }
    return report | {"mtp_layers": mtp_layers.fate} if mtp_layers.fate else report


def check_launch(trainer: Any, settings: Training) -> None:
    """Raise DstoolsError unless the trainer runs as the settings say."""
    if trainer.args.n_gpu > 1:
        raise DstoolsError(
            f"processes = 1, but transformers would use {trainer.args.n_gpu} GPUs for each batch",
            "set CUDA_VISIBLE_DEVICES=0, or processes and parallel",
        )
    accelerator = trainer.accelerator
    kind, processes = accelerator.distributed_type.name, accelerator.num_processes
    state = accelerator.state
    match settings.parallel:
        case "single":
            same = kind == "NO"
        case "ddp":
            same = kind.startswith("MULTI_")
        case "fsdp2":
            same = kind == "FSDP" and state.fsdp_plugin.fsdp_version == 2
        case "zero2" | "zero3":
            stage = int(settings.parallel[-1])
            same = kind == "DEEPSPEED" and state.deepspeed_plugin.zero_stage == stage
    if not same or processes != settings.processes:
        raise DstoolsError(
            f"parallel = {settings.parallel!r} and processes = {settings.processes}, but {kind} "
            f"with {processes} processes is running",
            launch_hint(settings),
        )


class _Sharded(TrainerCallback):
    """Callback that refuses to train with FSDP2 or ZeRO-3 if a parameter is not divided."""

    def __init__(self, trainer: Any, settings: Training) -> None:
        self.trainer, self.settings = trainer, settings

    def on_train_begin(self, *_args: Any, **_: Any) -> None:
        parameters = list(self.trainer.model.parameters())
        match self.settings.parallel:
            case "fsdp2":
                whole = [p for p in parameters if not isinstance(p, DTensor)]
            case "zero3":
                whole = [p for p in parameters if not hasattr(p, "ds_id")]
            case _:
                return
        if whole:
            raise DstoolsError(
                f"parallel = {self.settings.parallel!r}, but {len(whole)} of {len(parameters)} "
                "parameters are whole in each process",
                launch_hint(self.settings),
            )


def count(model: nn.Module, trained: bool = False) -> int:
    """Return the number of weights over all processes; with `trained`, of the trained ones."""
    return sum(
        int(getattr(p, "ds_numel", p.numel()))  # ZeRO-3 leaves an empty tensor
        for p in model.parameters()
        if p.requires_grad or not trained
    )


# ------------------------------------------------------------------------------------- the result


def _save(
    trainer: Any,
    settings: Training,
    folder: Path,
    tokenizer: Any,
    keeper: Keeper,
    mtp_tensors: Mapping[str, Tensor],
) -> None:
    """Write the model folder and the averaged one in `ema/`; remove the checkpoints."""
    sharded = settings.parallel in ("fsdp2", "zero3")
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not keeper.is_first:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.generation_config = _generation_config(model, tokenizer)
    model.config.use_cache = True  # training switches it off
    _write(_merged(model), folder, tokenizer, state, mtp_tensors)
    if keeper.ema:
        keeper.ema.put(model)
        _write(_merged(model), folder / EMA_FOLDER, tokenizer, None, mtp_tensors)
    remove(whole_checkpoints(folder))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _merged(model: Any) -> Any:
    """Return a plain model: a copy with the low-rank updates added, if there are any."""
    return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _write(
    model: Any,
    folder: Path,
    tokenizer: Any,
    state: dict[str, Any] | None,
    mtp_tensors: Mapping[str, Tensor],
) -> None:
    """Write a model folder, and raise DstoolsError unless it has all weights.

    mtp_tensors: tensors that the model lacks, written beside its weights as they are.
    """
    own = model.state_dict() if state is None else state
    model.save_pretrained(folder, state_dict={**own, **mtp_tensors})
    add_older_rope_keys(folder / "config.json")
    tokenizer.save_pretrained(folder)
    parameters = count(model) + sum(tensor.numel() for tensor in mtp_tensors.values())
    _mend(folder, parameters)
    saved = 0
    for path in sorted(folder.glob("*.safetensors")):
        path.chmod((folder / "config.json").stat().st_mode)  # save_pretrained makes it 0600
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            saved += sum(torch.Size(file.get_slice(k).get_shape()).numel() for k in names)
    if saved < parameters:
        raise DstoolsError(
            f"{folder}: {saved} of {parameters} weights were saved",
            f"this is a bug of dstools; {RESUME_HINT}",
        )


def _mend(folder: Path, parameters: int) -> None:
    """Take local paths out of the JSON in a folder, and correct the count in its index.

    With ZeRO-3, transformers counts the empty tensors that the weights leave in each process.
    """
    for path in folder.glob("*.json"):
        content = carried(path)
        if isinstance(content, bytes):
            path.write_bytes(content)
    index = folder / INDEX
    if index.exists():
        table = json.loads(index.read_text())
        table["metadata"][TOTAL_PARAMETERS] = parameters
        index.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


def _generation_config(model: Any, tokenizer: Any) -> GenerationConfig:
    """Return the model's own, which also stops at the other ends, that of the template first."""
    config: GenerationConfig = copy.deepcopy(model.generation_config)
    config.eos_token_id = answer_ends(model, tokenizer)
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    return config


def answer_ends(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer of a model in training, that of the template first.

    They are those that `end_ids` gives for its folder, and the tokenizer's own.
    """
    ends = ends_of(
        tokenizer,
        {
            "generation_config.json": model.generation_config.eos_token_id,
            "config.json": getattr(model.config, "eos_token_id", None),
            "tokenizer_config.json": tokenizer.eos_token_id,
        },
    )
    end = end_token_id(tokenizer)
    return [end, *sorted(ends - {end})]
