"""Distillation of the teacher's whole next-token distribution, on the student's own answers.

TRL's DistillationTrainer does the training. It compares the models by `vocab_size` alone, which
refuses one vocabulary padded to two sizes, and accepts two of equal size; here the tokenizers are
compared.
"""

from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.tokenizer import end_token_id, prompt_text
from dstools_distill.data.contamination import clean_prompts
from dstools_distill.loading import load_model
from dstools_distill.recipe.settings import Kd
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Report, Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training.students import load_student, lora, optimizers, require_room
from dstools_distill.training.trainer import LOSS_CURVE, arguments, run

CURVE = (*LOSS_CURVE, "entropy", "completions/mean_length", "completions/clipped_ratio")
PROBED = 200  # prompts


def kd(settings: Kd, inputs: Inputs, work: Work) -> Report:
    """Train `inputs.model` against the teacher, and write a model folder to `work.folder`.

    The student answers each prompt; on its tokens the divergence of the two distributions is
    minimised: beta 0 is KL(teacher || student), 1 is KL(student || teacher), values between are
    generalised Jensen-Shannon (arXiv 2306.13649). Problems of the indexes are not trained on.
    Raises DstoolsError where the two do not share a tokenizer.
    """
    tokens = load_tokenizer(inputs.tokenizer, inputs.template)
    tokens.eos_token = tokens.convert_ids_to_tokens(end_token_id(tokens))  # TRL cuts answers there
    asked, teacher = inputs.prompts / "records.jsonl", inputs.teacher
    clean, contaminated = clean_prompts(asked, inputs.indexes)
    conversations = [record["messages"] for record in clean]
    if not conversations:
        raise DstoolsError(
            f"{asked}: holds no prompt outside the benchmarks", "give [prompts] more sources"
        )
    probes = [prompt_text(tokens, messages) for messages in conversations[:PROBED]]
    check_identity(tokens, load_tokenizer(teacher), probes, teacher)
    config = DistillationConfig(
        **arguments(settings, work),
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_tokens,
        generation_kwargs={"eos_token_id": tokens.eos_token_id},
    )
    student = load_student(settings, inputs.model, None, tokens)
    require_room(student, settings.max_completion_tokens, "kd.max_completion_tokens")
    master = load_model(teacher, student.dtype, attn_implementation=settings.attention)
    if config.use_cpu:
        master.set_experts_implementation("eager")  # of a MoE: on a CPU the others are slower
    else:
        master.to("cuda")
    rows = match_sizes(student, master)
    trainer = DistillationTrainer(
        student,
        master,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": messages} for messages in conversations]),
        processing_class=tokens,
        peft_config=lora(settings),
        optimizers=optimizers(settings, student),
    )
    report = run(trainer, settings, work, tokens, inputs.model, CURVE)
    return {
        "in": len(clean) + contaminated,
        "out": len(clean),
        "dropped": {"contaminated": contaminated},
        "vocabulary": rows._asdict(),
        **report,
    }


class Vocabulary(NamedTuple):
    """Rows of the embeddings: of each model before, and of both in training."""

    student: int
    teacher: int
    used: int


def match_sizes(student: Any, teacher: Any) -> Vocabulary:
    """Cut the larger embedding where one vocabulary was padded to two sizes."""
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    used = min(ours, theirs)
    for model, size in ((student, ours), (teacher, theirs)):
        if size > used:
            model.resize_token_embeddings(used)
    return Vocabulary(ours, theirs, used)


def check_identity(student: Any, teacher: Any, probes: list[str], folder: Path) -> None:
    """Raise DstoolsError unless both tokenizers give the same ids to the same text.

    Every token of either must have the same id in both, and the probes must be split alike: equal
    vocabularies with other merges or another pre-tokenizer differ there.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))
    hint = "logits can be compared only over one vocabulary; use generate and sft instead"
    if differing:
        token, number = differing[0]
        whose = "student" if ours.get(token) == number else "teacher"
        raise DstoolsError(
            f"{folder}: teacher and student do not share a tokenizer: {len(differing)} tokens "
            f"differ, the first is {printable(token)!r}, id {number} of the {whose} only",
            hint,
        )
    for text in probes:
        if student.encode(text, add_special_tokens=False) != teacher.encode(
            text, add_special_tokens=False
        ):
            raise DstoolsError(
                f"{folder}: teacher and student split text differently: {printable(text)!r}", hint
            )
