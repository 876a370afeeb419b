"""The text that `quantize --calibrate` and `eval` run the model on: its options and its reader."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dstools.options import SIZE, gather, option
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.layerwise.corpus import Corpus


@dataclass(frozen=True)
class TextOptions:
    """How much of a text the model is run on, and with what."""

    samples: int
    seq_len: int
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
            default=512,
            help="Take this many samples of the text.",
        ),
        add(
            "--seq-len",
            type=click.IntRange(2),
            default=2048,
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
        add(
            "--device",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            help="Run the model on this device.",
        ),
    )


def read_text(data: Path, inventory: "Inventory", options: TextOptions) -> "Corpus":
    """Return samples of the text in `data`, as tokens of the checkpoint's own tokenizer."""
    from dstools_converters.layerwise.corpus import read_corpus

    return read_corpus(
        data,
        inventory.checkpoint.folder,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=options.seed,
        vocab_size=inventory.model.vocab_size,
    )


def require_torch(device: str) -> None:
    """Raise DstoolsError if torch or transformers is not installed, or the device is not there."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise DstoolsError(f"running a model needs {name}", 'pip install "dstools-llm[torch]"')
    # Threads that spin while they wait take the core from the one they wait for, on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DstoolsError("--device cuda: torch finds no CUDA device", "leave it out for the CPU")
