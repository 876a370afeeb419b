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
    for layer, value in enumerate(largest_values(serving, prompts)):
        if not value <= LIMIT:
            raise DstoolsError(
                f"layer {layer}: a number of {value:.4g} in float32; float16 ends at 65504, and "
                f"from {LIMIT:.0f} on another prompt may exceed that",
                "export with --dtype bfloat16 or float32",
            )
    return None


def largest_values(serving: Serving, prompts: Sequence[list[int]]) -> list[float]:
    """Return the largest |x| that enters or leaves a module of each layer, MTP included.

    So the states between layers are among them. NaN where there is one.
    """
    layers = list(serving.decoder.model.layers)
    largest = torch.zeros(len(layers))

    def watched(layer: int, values: tuple[object, ...]) -> None:
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                largest[layer] = torch.maximum(largest[layer], value.abs().max())

    def watch(layer: int, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            watched(layer, (*inputs, *(output if isinstance(output, tuple) else (output,))))

        return module.register_forward_hook(hook)

    hooks = [watch(n, module) for n, layer in enumerate(layers) for module in layer.modules()]
    try:
        for prompt in prompts:
            _run(serving, prompt[: serving.positions])
    finally:
        for hook in hooks:
            hook.remove()
    return largest.tolist()


def _run(serving: Serving, ids: list[int]) -> None:
    """Run all tokens of a prompt through all layers."""
    pages = -(-len(ids) // PAGE)
    caches = serving.new_caches(pages, PAGE)
    table, past = torch.arange(pages, dtype=torch.int32)[None], torch.zeros(1, dtype=torch.int32)

    def batch(tokens: list[int]) -> Batch:
        return Batch(torch.tensor(tokens), table, torch.tensor([0, len(tokens)]).int(), past)

    _, hidden_TD = serving(batch(ids), torch.tensor([len(ids) - 1]), caches)
    if serving.model.num_mtp_layers and len(ids) > 1:
        last = torch.tensor([len(ids) - 2])
        serving.draft(batch(ids[1:]), hidden_TD[:-1], last, caches)
