"""Judges whether a model's states fit into float16, by a run of the serving form in float32.

A session of ONNX Runtime on a CPU cannot tell: it computes chains of float16 in float32 and drops
the casts in between, so what becomes infinite on a GPU is finite there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError, size
from dstools_converters.runtime.pages import PAGE, Batch
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.weights import held_bytes, serving_of

LIMIT = 65504 / 4  # of float16, with room for prompts that were not tried
PROMPTS = (
    "What is 17 + 25?",
    "The capital of France is Paris. The Seine flows through it, and 2 million people live there.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
)


def judge_float16(
    inventory: Inventory, prompts: Sequence[list[int]], free_bytes: int
) -> str | None:
    """Return a sentence where a model is too large to be judged, None where its states fit.

    prompts: token ids. Raises DstoolsError, naming the first layer in which a number exceeds a
    quarter of what float16 holds.
    """
    needed = held_bytes(inventory, torch.float32, keeps_codes=False)
    if needed > free_bytes:
        return (
            f"float16 was not judged: a run in float32 takes {size(needed)}, "
            f"{size(free_bytes)} is free; states above 65504 become infinite"
        )
    cpu = torch.device("cpu")
    serving = serving_of(inventory, torch.float32, cpu, keeps_codes=False)
    for place, value in largest_values(serving, prompts).items():
        if not value <= LIMIT:
            raise DstoolsError(
                f"{place}: a number of {value:.4g} in float32; float16 ends at 65504, and "
                f"from {LIMIT:.0f} on another prompt may exceed that",
                "export with --dtype bfloat16 or float32",
            )
    return None


def largest_values(serving: Serving, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Return the largest |x| that enters or leaves a module, by place: `layer 0`, ..., `the head`.

    So the states between layers are among them, each expert's between its products, and queries
    absorbed as the graph has them. MTP is a layer. NaN where there is one.
    """
    largest: dict[str, Tensor] = {}

    def watched(place: str, values: tuple[object, ...]) -> None:
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                largest[place] = torch.maximum(largest[place], value.abs().max())

    def watch(place: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            watched(place, (*inputs, *(output if isinstance(output, tuple) else (output,))))

        return module.register_forward_hook(hook)

    hooks = []
    layers = zip(serving.decoder.model.layers, serving.attentions, strict=True)
    for number, (layer, attention) in enumerate(layers):
        largest[place := f"layer {number}"] = torch.zeros(())
        hooks += [watch(place, module) for module in {*layer.modules(), *attention.modules()}]
    largest["the head"] = torch.zeros(())
    try:
        for prompt in prompts:
            watched("the head", _run(serving, prompt[: serving.positions]))
    finally:
        for hook in hooks:
            hook.remove()
    return {place: float(value) for place, value in largest.items()}


def _run(serving: Serving, ids: list[int]) -> tuple[Tensor, ...]:
    """Run all tokens of a prompt through all layers; return what enters and leaves the head.

    Each token is a row, on the pages of all: of longer ones, queries are not absorbed.
    """
    pages = -(-len(ids) // PAGE)
    caches = [cache.zero_() for cache in serving.new_caches(pages, PAGE)]  # they are watched, too
    table = torch.arange(pages, dtype=torch.int32)[None]

    def batch(tokens: list[int]) -> Batch:
        ends = torch.arange(len(tokens) + 1, dtype=torch.int32)
        return Batch(torch.tensor(tokens), table.expand(len(tokens), -1), ends, ends[:-1])

    logits, hidden_TD = serving(batch(ids), torch.arange(len(ids)), caches)
    if not serving.model.num_mtp_layers or len(ids) < 2:
        return hidden_TD, logits
    rows = torch.arange(len(ids) - 1)
    drafts, _ = serving.draft(batch(ids[1:]), hidden_TD[:-1], rows, caches)
    return hidden_TD, logits, drafts
