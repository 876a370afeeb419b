"""Supervised fine-tuning on rendered rows, by TRL's SFTTrainer.

The trainer gets ids and labels and must leave them unchanged. That is checked before training: each
row must have the length it was rendered with, and the first batch of the trainer's own data loader
must hold rendered rows, token by token and label by label.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Sft
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Report, Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training.head import score_targets_alone
from dstools_distill.training.students import load_student, lora, optimizers
from dstools_distill.training.trainer import arguments, run

ROWS, PACKED = "rows.arrow", "packed.arrow"
disable_progress_bars()  # work.bar shows progress


def sft(settings: Sft, inputs: Inputs, work: Work) -> Report:
    """Train a student, from `inputs.model` or new from `inputs.init`, on rendered rows.

    Writes a model folder, see trainer.py. `batch_size` counts rows or, with packing, sequences as
    long as the longest row. With several processes, some of the first rows fill up the last step.
    Raises DstoolsError where there are no rows, the student has too few positions or tokens for
    them, or the trainer would see others.
    """
    student_tokenizer = load_tokenizer(inputs.tokenizer, inputs.template)
    overrides: dict[str, Any] = {
        "max_length": None,  # nothing is cut: render has dropped rows that are too long
        "padding_free": settings.packing,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "train_sampling_strategy": "sequential",  # `order` lists all epochs
        "num_train_epochs": 1,
        "max_steps": -1,
    }
    config = SFTConfig(**arguments(settings, work) | overrides)
    rendered = load_rows(inputs.rows / ROWS)
    lengths = _lengths(rendered, "input_ids")
    student = load_student(settings, inputs.model, inputs.init, student_tokenizer)
    text = student.config.get_text_config()
    check_rows(inputs.rows / ROWS, rendered, text.vocab_size, text.max_position_embeddings)
    sequences = _packed(rendered, int(lengths.max()), work) if settings.packing else rendered
    chosen = order(_lengths(sequences, "input_ids"), settings)
    trainer: Any = SFTTrainer(
        student,
        args=config,
        train_dataset=sequences.select(chosen),
        processing_class=student_tokenizer,
        peft_config=lora(settings),
        optimizers=optimizers(settings, student),
    )
    _check_dataset(trainer, sequences, chosen, lengths)
    _check_first_batch(trainer, rendered, lengths)
    if settings.packing:
        dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
        trainer.add_callback(_Isolation(trainer, dtype))
    if config.use_cpu:
        score_targets_alone(trainer.model.get_base_model() if settings.lora else trainer.model)
    report = run(trainer, settings, work, student_tokenizer, inputs.model)
    if trainer.accelerator.is_main_process:
        (work.folder / PACKED).unlink(missing_ok=True)
    return {
        "in": len(rendered),
        "out": len(rendered),
        "dropped": {},
        "sequences": len(sequences),
        "longest": int(lengths.max()),
        "tokens": int(lengths.sum()),
    } | report


def load_rows(path: Path) -> Dataset:
    """Map ids and labels of rendered rows into memory; raise DstoolsError if there are none."""
    try:
        rendered = Dataset.from_file(str(path)).select_columns(["input_ids", "labels"])
    except (OSError, ValueError) as error:
        raise DstoolsError(f"{path}: cannot be read: {error}", "run render again") from error
    if not len(rendered):
        raise DstoolsError(f"{path}: holds no row", "did `select` keep any?")
    return rendered


def _lengths(dataset: Dataset, column: str) -> NDArray[np.int64]:
    """Return the length of each list in a column, without reading the lists."""
    return np.concatenate(
        [pc.list_value_length(chunk).to_numpy() for chunk in dataset.data.column(column).chunks]
    ).astype(np.int64)


def check_rows(path: Path, rendered: Dataset, vocabulary: int, positions: int) -> None:
    """Raise DstoolsError, naming the row, unless a model can be trained on all rendered rows."""
    lengths = _lengths(rendered, "input_ids")
    if (lengths != _lengths(rendered, "labels")).any():
        raise DstoolsError(f"{path}: a row has more ids than labels", "run render again")
    longest = int(lengths.max())
    if longest > positions:
        raise DstoolsError(
            f"{path}: the longest row has {longest} tokens, the student {positions} positions",
            f"set render.max_length = {positions}, or give the student more: "
            f"sft.context = {longest}",
        )
    before = 0
    for chunk in rendered.data.column("input_ids").chunks:
        ids = chunk.flatten().to_numpy()
        strange = np.flatnonzero((ids < 0) | (ids >= vocabulary))
        if len(strange):
            row = int(np.searchsorted(lengths.cumsum(), before + strange[0], side="right"))
            raise DstoolsError(
                f"{path}: row {row + 1} has token {ids[strange[0]]}, the student {vocabulary}",
                "the rows were rendered with another tokenizer; render them with the student's",
            )
        before += len(ids)


def _packed(rendered: Dataset, longest: int, work: Work) -> Dataset:
    """Return sequences of whole rows, best fit decreasing, none longer than the longest row."""
    with PartialState().main_process_first():
        return pack_dataset(
            rendered, longest, "bfd", {"cache_file_name": str(work.folder / PACKED)}
        )


def order(lengths: NDArray[np.int64], settings: Sft) -> list[int]:
    """Return the numbers of the sequences of the whole run; each epoch is a new permutation.

    With `group_by_length` a step has sequences of similar length: of each fifty steps drawn, the
    sequences are sorted and the steps shuffled.
    """
    total, size = len(lengths), settings.batch_size
    count = settings.max_steps * size or max(1, round(settings.epochs * total))
    numbers: list[int] = []
    for epoch in range(-(-count // total)):
        draw = torch.Generator().manual_seed(settings.seed + epoch)
        drawn = torch.randperm(total, generator=draw).numpy()
        if settings.group_by_length:
            steps = []
            for part in np.split(drawn, range(50 * size, total, 50 * size)):
                by_length = part[np.argsort(lengths[part], kind="stable")]
                parts = np.split(by_length, range(size, len(part), size))
                steps += [parts[n] for n in torch.randperm(len(parts), generator=draw).tolist()]
            steps.sort(key=lambda step: len(step) < size)  # an incomplete step comes last
            drawn = np.concatenate(steps)
        numbers += drawn.tolist()
    return numbers[:count]


# ---------------------------------------------------------------- checks of what the trainer sees


def _check_dataset(
    trainer: Any, sequences: Dataset, chosen: list[int], lengths: NDArray[np.int64]
) -> None:
    """Raise DstoolsError unless the trainer's rows are as long as the rendered ones, row by row."""
    dataset = trainer.train_dataset
    raw = _lengths(dataset, "input_ids")
    seen = raw if dataset._indices is None else raw[dataset._indices.column(0).to_numpy()]
    same = np.array_equal(seen, _lengths(sequences, "input_ids")[chosen])
    if "seq_lengths" in sequences.column_names:
        kept = [size for row in sequences["seq_lengths"] for size in row]
        same = same and sorted(kept) == sorted(lengths.tolist())
    if not same:
        raise DstoolsError(
            "the trainer's rows differ in length from the rendered ones", CHANGED_HINT
        )


CHANGED_HINT = "this version of TRL changes prepared rows; install trl==1.16.0"


def _check_first_batch(trainer: Any, rendered: Dataset, lengths: NDArray[np.int64]) -> None:
    """Raise DstoolsError unless each row of the first batch is a rendered one, ids and labels."""
    with torch.random.fork_rng(devices=[]):  # the check must not change what is drawn later
        batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in documents(batch):
        candidates = np.flatnonzero(lengths == len(ids))
        is_rendered = any(
            row["input_ids"] == ids and row["labels"] == labels
            for row in (rendered[int(n)] for n in candidates)
        )
        if not is_rendered:
            raise DstoolsError(
                "the trainer's first batch has a row that was not rendered", CHANGED_HINT
            )


def documents(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return ids and labels of each row in a batch, padded [rows, length] or packed [1, length]."""
    ids, labels = batch["input_ids"], batch["labels"]
    if "attention_mask" in batch:
        ends = batch["attention_mask"].sum(1).tolist()
        parts = [(ids[n, :end], labels[n, :end]) for n, end in enumerate(ends)]
    else:
        sizes = batch["cu_seq_lens_q"].diff().tolist()
        parts = list(zip(ids[0].split(sizes), labels[0].split(sizes), strict=True))
    return [(a.tolist(), b.tolist()) for a, b in parts]


# ---------------------------------------------------------------------------------------- packing


class _Isolation(TrainerCallback):
    """Callback that refuses to train if packed rows can see each other."""

    def __init__(self, trainer: Any, dtype: torch.dtype) -> None:
        self.trainer, self.dtype = trainer, dtype

    def on_train_begin(self, *_args: Any, **_: Any) -> None:
        check_isolation(self.trainer.model_wrapped, self.trainer.model.config, self.dtype)


@torch.no_grad()
def check_isolation(model: nn.Module, config: Any, dtype: torch.dtype) -> None:
    """Raise DstoolsError unless a row in a packed sequence is computed as if it were alone.

    dtype: of the matrix products. Two checks. Exact: the logits of the second of two rows must not
    change in any bit when the tokens of the first change, since a masked score weighs exactly 0.
    Numeric: they must equal those of the row alone up to rounding. Each of the 2 x layers + 1 sums
    on a token's path adds a relative error of about eps, so sqrt(2 x layers + 1) x eps in the root
    mean square; the bound is 8 times that, for the sums inside a product.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    text = config.get_text_config()
    draw = torch.Generator().manual_seed(0)
    first, other, second = (
        torch.randint(0, text.vocab_size, (1, size), generator=draw).to(device)
        for size in (33, 33, 31)
    )
    packed = _logits(model, [first, second])[:, 33:]
    changed = _logits(model, [other, second])[:, 33:]
    alone = _logits(model, [second])
    model.train(was_training)
    error = ((packed - alone).pow(2).mean() / alone.pow(2).mean()).sqrt().item()
    bound = 8 * torch.finfo(dtype).eps * (2 * text.num_hidden_layers + 1) ** 0.5
    if not torch.equal(packed, changed) or not error <= bound:
        raise DstoolsError(
            f"packing: {text._attn_implementation} attention lets rows of a sequence see each "
            f"other (relative error of the logits {error:.1e}, rounding explains {bound:.1e})",
            'set packing = false, or another attention, such as "sdpa" or "flash_attention_2"',
        )


def _logits(model: nn.Module, rows: list[Tensor]) -> Tensor:
    """Return the logits of rows packed as TRL's collator does, [1, length, vocabulary]."""
    positions = torch.cat([torch.arange(row.shape[1], device=row.device) for row in rows])[None]
    starts = (positions[0] == 0).nonzero().flatten()
    total = torch.tensor([positions.shape[1]], device=positions.device)
    cuts = torch.cat([starts, total]).to(torch.int32)
    longest = int(cuts.diff().max())
    logits: Tensor = model(
        input_ids=torch.cat(rows, 1),
        position_ids=positions,
        cu_seq_lens_q=cuts,
        cu_seq_lens_k=cuts,
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
    ).logits.float()
    return logits
