"""Check of a dense model that was written as ONNX, against transformers.

The tables of rotary positions are compared in whole, since a wrong scaling shows only far into a
sequence; then the logits after a few prompts and after each of the tokens that follow them. Where
these are within the bound, the most probable token is the same, unless two are nearer to each
other than twice the bound.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dstools_converters.errors import ShortfallError
from dstools_converters.export.folder import GRAPH
from dstools_converters.export.ranges import read_at
from dstools_converters.export.rounding import ROUNDING
from dstools_converters.export.rounding import bound as rounding_bound
from dstools_converters.export.runners.dense_loop import Steps, open_model, read_sizes
from dstools_converters.families.shapes import Attention
from dstools_converters.model.architecture import Architecture
from dstools_converters.model.rotary import frequencies, rotary

PROMPTS = (1, 7, 33)  # tokens, drawn at random
FOLLOWING = 16  # tokens that follow each, one at a time
UNKNOWN = "its builder may not know a setting of config.json, such as rope_scaling"
FLOAT = 1  # onnx.TensorProto


class Agreement(NamedTuple):
    """The distance of the logits from those of transformers in float32."""

    max_abs_logits: float  # the largest difference
    bound: float  # what rounding alone may make of it
    tokens: int  # compared

    @property
    def sentence(self) -> str:
        """Return it for people."""
        return (
            f"logits of {self.tokens} tokens differ by {self.max_abs_logits:.2g} at most from "
            f"those of transformers in float32; rounding explains {self.bound:.2g}"
        )


class Reference(NamedTuple):
    """A prompt and what follows it, and the logits of transformers."""

    prompt: list[int]
    following: list[int]
    logits: Tensor  # [1 + FOLLOWING, V] float32, after the prompt and after each of the others


def refer(folder: Path) -> list[Reference]:
    """Return what transformers computes in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    finally:
        logging.set_verbosity(verbosity)
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    references = []
    with torch.inference_mode():
        for length in PROMPTS:
            ids = torch.randint(0, vocab_size, (1, length + FOLLOWING), generator=generator)
            logits = model(ids, use_cache=False).logits[0, length - 1 :]
            tokens = ids[0].tolist()
            references.append(Reference(tokens[:length], tokens[length:], logits))
    return references


def check(folder: Path, references: list[Reference], architecture: Architecture) -> Agreement:
    """Return how near the model in `folder` is to the references.

    Raises ShortfallError where it differs by more than rounding explains, DstoolsError where it
    does not run.
    """
    _check_positions(folder, architecture)
    model, sizes = open_model(folder), read_sizes(folder)
    largest, worst, compared = 0.0, 0.0, 0
    for prompt, following, wanted in references:
        steps = Steps(model, len(prompt) + len(following), sizes.vocab_size)
        for row, new in zip(wanted, [prompt, *([token] for token in following)], strict=True):
            difference = float((steps.add(new)[0] - row).abs().max())
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
            largest = max(largest, float(row.abs().max()))
            compared += 1
    bound = rounding_bound(architecture.model) * largest
    if worst > bound:
        raise ShortfallError(
            f"the logits of onnxruntime-genai's graph differ by {worst:.3g} from those of "
            f"transformers, where rounding explains {bound:.3g}; it is not kept",
            UNKNOWN,
        )
    return Agreement(worst, bound, compared)


def _check_positions(folder: Path, architecture: Architecture) -> None:
    """Raise ShortfallError where the rotation of a position is not the model's.

    Its angle is a product in float32, so cosine and sine may differ by the rounding of it.
    """
    assert isinstance(architecture.model.attention, Attention)
    positions = torch.arange(read_sizes(folder).positions)
    wanted = rotary(architecture, positions)
    angles = positions[:, None] * frequencies(architecture.rope)
    bound = 8 * ROUNDING * (angles + 1)
    for name, table in (("cos_cache", wanted.cos), ("sin_cache", wanted.sin)):
        found = _initializer(folder, name)
        wrong = (found.shape != table.shape) or bool(((found - table).abs() > bound).any())
        if wrong:
            raise ShortfallError(
                f"{name} of onnxruntime-genai's graph is not the rotation that config.json "
                "describes; it is not kept",
                UNKNOWN,
            )


def _initializer(folder: Path, name: str) -> Tensor:
    """Return a float32 table of the graph; empty where it has none of this name."""
    import onnx

    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    found = [tensor for tensor in graph.initializer if tensor.name == name]
    if not found or found[0].data_type != FLOAT:
        return torch.empty(0)
    entries = {entry.key: entry.value for entry in found[0].external_data}
    with (folder / Path(entries["location"]).name).open("rb") as file:
        data = read_at(file.fileno(), int(entries.get("offset", 0)), int(entries["length"]))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(*found[0].dims)
