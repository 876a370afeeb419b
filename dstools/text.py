"""The text that `quantize --calibrate` and `eval` run the model on: its options and its reader."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dstools.options import SIZE, device_option, gather, option, terminal
from dstools_converters.errors import DstoolsError, install_hint

if TYPE_CHECKING:
    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.layerwise.corpus import Corpus

SAMPLES, SEQ_LEN = 512, 2048  # of them at most, unless the user asks


@dataclass(frozen=True)
class TextOptions:
    """How much of a text the model is run on, and with what."""

    samples: int | None  # None: up to SAMPLES
    seq_len: int | None  # None: up to SEQ_LEN, as long as the model allows
    seed: int
    ram_bytes: int
    device: str


def text_options(section: str) -> Callable[[Any], Any]:
    """Declare the options of a text; the command gets them as one argument, `text`."""
    add = partial(option, section=section)
    return gather(
        "text",
        TextOptions,
        add(
            "--samples",
            type=click.IntRange(1),
            show_default=f"{SAMPLES}, or as many as the text has",
            help="Take this many samples of the text.",
        ),
        add(
            "--seq-len",
            type=click.IntRange(2),
            show_default=f"{SEQ_LEN}, or the model's limit",
            help="Make each sample this many tokens long.",
        ),
        add("--seed", type=click.IntRange(0), default=0, help="Draw the samples with this seed."),
        add(
            "--ram",
            "ram_bytes",
            type=SIZE,
            default="4GB",
            help="Spill hidden states beyond this size to disk; a layer's weights come on top.",
        ),
        device_option(section=section),
    )


def read_text(data: Path, inventory: "Inventory", options: TextOptions) -> "Corpus":
    """Return samples of the text in `data`, as tokens of the checkpoint's own tokenizer.

    Without `options.samples`, what the text has is taken, and said on stderr where it is less than
    SAMPLES; so is what is missing of its conversations.
    """
    from dstools_converters.layerwise.corpus import read_corpus

    corpus = read_corpus(
        data,
        inventory.checkpoint.folder,
        samples=options.samples or SAMPLES,
        seq_len=sample_length(inventory, options),
        seed=options.seed,
        vocab_size=inventory.model.vocab_size,
        at_least=options.samples or 1,
    )
    for warning in corpus.warnings:
        click.echo(terminal(f"warning: {warning}"), err=True)
    if options.samples is None and corpus.samples < SAMPLES:
        click.echo(
            terminal(
                f"note: {data} holds {corpus.tokens_available:,} tokens: {corpus.samples} samples "
                f"of {corpus.seq_len} are taken, fewer than {SAMPLES}"
            ),
            err=True,
        )
    return corpus


def sample_length(inventory: "Inventory", options: TextOptions) -> int:
    """Return the tokens of a sample. Raises DstoolsError if the model cannot run on as many."""
    from dstools_converters.model.architecture import read_architecture

    config = inventory.checkpoint.config
    lengths = [config.get("max_position_embeddings"), read_architecture(config).index_topk]
    limit = min((length for length in lengths if isinstance(length, int)), default=None)
    if options.seq_len is None:
        return SEQ_LEN if limit is None else min(SEQ_LEN, limit)
    if limit is not None and options.seq_len > limit:
        raise DstoolsError(
            f"--seq-len {options.seq_len}: config.json limits the model to {limit} tokens",
            f"--seq-len {limit} or less",
        )
    return options.seq_len


def require_torch(device: str) -> None:
    """Raise DstoolsError if torch or transformers is not installed, or the device is not there."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise DstoolsError(f"running a model needs {name}", install_hint("torch"))
    # Threads that spin while they wait take the core from the one they wait for, on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DstoolsError("--device cuda: torch finds no CUDA device", "leave it out for the CPU")
