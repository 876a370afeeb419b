"""Reinforcement learning with group-relative advantages, by TRL's GRPOTrainer.

    A_i = (r_i - mean(r)) / std(r)                           over the answers to one prompt
    J = 1/G sum_i min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) - beta KL(policy, reference)

Source: arXiv 2402.03300; settings of DeepSeek-R1, arXiv 2501.12948. TRL 1.16 divides by std + 1e-4,
the std with n - 1. A group whose rewards are all equal teaches nothing and is counted. Answers are
drawn as rollouts.py says.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import opens_think
from dstools_converters.model.tokenizer import end_token_id, prompt_text
from dstools_distill import records
from dstools_distill.data.contamination import clean_prompts
from dstools_distill.judge.prose import require_language
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Grpo
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.ranks import rank
from dstools_distill.store.stage import Report, Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training.rewards import FLAT, rewards
from dstools_distill.training.rollouts import rollout_func
from dstools_distill.training.students import load_student, lora, optimizers, require_room
from dstools_distill.training.trainer import LOSS_CURVE, answer_ends, arguments, run
from dstools_distill.training.untrained import without_mtp_warning

CURVE = (
    *LOSS_CURVE, "reward", "reward_std", FLAT, "rewards/accuracy/mean",
    "rewards/format/mean", "rewards/language/mean", "kl", "clip_ratio/region_mean", "entropy",
    "completions/mean_length", "completions/clipped_ratio",
)  # fmt: skip


def grpo(settings: Grpo, inputs: Inputs, work: Work) -> Report:
    """Train `inputs.model` on the prompts, and write a model folder to `work.folder`.

    Problems of the indexes are not trained on. A step takes `batch_size` answers: group_size of
    each of batch_size / group_size prompts. curve.jsonl has rewards, their spread, the share of
    groups without spread, KL in nats per token, and the share of clipped tokens. Raises
    DstoolsError if the batch is not a whole number of groups, or no prompt can be scored.
    """
    _check(settings)
    tokens = load_tokenizer(inputs.tokenizer, inputs.template)
    tokens.eos_token = tokens.convert_ids_to_tokens(end_token_id(tokens))  # TRL cuts answers there
    source = inputs.prompts / "records.jsonl"
    clean, contaminated = clean_prompts(source, inputs.indexes)
    asked, without_gold = dataset(clean, source, tokens)
    config = trl_config(settings, work)
    student = load_student(settings, inputs.model, None, tokens)
    require_room(student, settings.max_completion_tokens, "grpo.max_completion_tokens")
    ends = answer_ends(student, tokens)
    student.generation_config.eos_token_id = ends  # TRL generates, cuts and masks by these
    with closing(Judge(inputs.judge)) as judge:
        paid = rewards(settings, judge, tokens, ends)
        config.reward_weights = paid.weights
        with without_mtp_warning(student.config):  # it loads the reference from the folder
            trainer: Any = GRPOTrainer(
                student,
                list(paid.functions),
                args=config,
                train_dataset=asked,
                processing_class=tokens,
                peft_config=lora(settings),
                optimizers=optimizers(settings, student),
            )
        trainer.rollout_func = rollout_func(trainer.model, settings, tokens)  # with its updates
        if config.sync_ref_model:
            trainer.add_callback(Reference(trainer.ref_model, settings.replace_reference_steps))
        elif _replaces_reference(settings):
            trainer.add_callback(LoraReference(trainer.model, settings.replace_reference_steps))
        report = run(trainer, settings, work, tokens, inputs.model, CURVE)
    return {
        "in": len(clean) + contaminated,
        "out": len(asked),
        "dropped": {"contaminated": contaminated, "no-gold": without_gold},
        **report,
        **groups(work.folder / "curve.jsonl", settings),
    }


def _check(settings: Grpo) -> None:
    if settings.batch_size % settings.group_size:
        raise DstoolsError(
            f"grpo.batch_size: {settings.batch_size} answers are not a whole number of groups of "
            f"{settings.group_size}",
            "choose a multiple of group_size",
        )
    if not settings.accuracy_weight + settings.format_weight + settings.language_weight:
        raise DstoolsError("grpo: every reward has weight 0", "set accuracy_weight = 1.0")
    if settings.language_weight:
        require_language(settings.language, "grpo.language")


def trl_config(settings: Grpo, work: Work) -> GRPOConfig:
    """Return TRL's config of a run."""
    return GRPOConfig(
        **arguments(settings, work),
        num_generations=settings.group_size,
        max_completion_length=settings.max_completion_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        epsilon=settings.clip,
        loss_type="grpo",
        scale_rewards="group",
        num_iterations=1,
        sync_ref_model=_replaces_reference(settings) and settings.lora is None,
        ref_model_mixup_alpha=1.0,  # replaced, not mixed
        ref_model_sync_steps=settings.replace_reference_steps or 1,
        shuffle_dataset=True,
    )


def _replaces_reference(settings: Grpo) -> bool:
    return settings.beta > 0 and settings.replace_reference_steps > 0


class LoraReference(TrainerCallback):
    """Callback that replaces the reference of low-rank updates, which TRL refuses to do.

    The reference is the base model with an adapter of its own, which TRL takes if its name is
    "ref"; at first it adds nothing. Checkpoints have it as they have every adapter.
    """

    def __init__(self, model: Any, replace_steps: int) -> None:
        self.model, self.replace_steps = model, replace_steps
        (adapter,) = model.active_adapters
        model.add_adapter("ref", replace(model.peft_config[adapter], lora_dropout=0.0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Copy the updates to the reference, where it is due."""
        if state.global_step % self.replace_steps == 0:
            (adapter,) = self.model.active_adapters
            updates = get_peft_model_state_dict(self.model, adapter_name=adapter)
            set_peft_model_state_dict(self.model, updates, "ref")


class Reference(TrainerCallback):
    """Callback that keeps a replaced reference in checkpoints: TRL resumes with the first one.

    Each process keeps the part of the weights that it holds.
    """

    def __init__(self, model: nn.Module, replace_steps: int) -> None:
        self.model, self.replace_steps = model, replace_steps

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the reference to a checkpoint."""
        if state.global_step >= self.replace_steps:
            parts = {name: part.contiguous() for name, part in self._parts()}
            save_file(parts, _reference(args, state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the reference out of the checkpoint that a run resumes from."""
        if state.global_step >= self.replace_steps:
            kept = load_file(_reference(args, state))
            for name, part in self._parts():
                part.copy_(kept[name])

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.model.named_parameters():
            local = value.to_local() if isinstance(value, DTensor) else value
            yield name, getattr(local, "ds_tensor", local).detach()  # ZeRO-3


def _reference(args: TrainingArguments, state: TrainerState) -> Path:
    checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    return checkpoint / f"reference-{rank()}.safetensors"


def dataset(prompts: list[Record], source: Path, tokenizer: Any) -> tuple[Dataset, int]:
    """Return the prompts that can be scored, in TRL's format, and how many cannot be scored."""
    rows: list[dict[str, Any]] = []
    without_gold = 0
    for record in prompts:
        if record["gold"] is None and record["task"] is None:
            without_gold += 1
            continue
        opened = opens_think(prompt_text(tokenizer, record["messages"]))
        line = json.dumps(record | {"prefilled_think": opened}, ensure_ascii=False)
        rows.append({"prompt": record["messages"], "record": line})
    if not rows:
        raise DstoolsError(
            f"{source}: no prompt outside the benchmarks has a gold answer",
            "accuracy can be rewarded only if it can be judged",
        )
    return Dataset.from_list(rows), without_gold


def groups(curve: Path, settings: Grpo) -> dict[str, Any]:
    """Return the number of groups, and of those without spread of rewards, from the curve."""
    logged = [record for record in records.read(curve) if FLAT in record]
    shares = [record[FLAT] for record in logged]
    steps = [record["step"] for record in logged]
    weights = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    per_step = settings.batch_size // settings.group_size
    flat = sum(share * weight for share, weight in zip(shares, weights, strict=True)) * per_step
    return {"groups": steps[-1] * per_step if steps else 0, "groups_without_spread": round(flat)}
