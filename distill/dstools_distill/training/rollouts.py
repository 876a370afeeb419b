"""Answers of a policy in training, drawn by the loop of dstools_converters.runtime.

The serving form is made over the policy's own weights, without a copy but for MLA's kv_b_proj,
and computes in their dtype. It is new for each step, so it has what the optimizer wrote.
Low-rank updates are added to the products: merged and taken out again, they would leave the weights
with other last bits.
"""

import json
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import prompt_ids
from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.session import Session, pool_for
from dstools_converters.runtime.weights import serving_over
from dstools_distill.recipe.settings import Grpo
from dstools_distill.store.ranks import rank

log = logging.getLogger(__name__)


def rollout_func(policy: Any, settings: Grpo, tokenizer: Any) -> Any:
    """Return what TRL calls for answers; None, and why in the log, where it has to generate itself.

    That is for weights that are divided over processes, experts on a GPU, where each step would
    copy them, and models or low-rank updates that the serving form does not have.
    """
    if settings.parallel in ("fsdp2", "zero3"):
        log.warning("TRL generates the answers: %s divides the weights", settings.parallel)
        return None
    try:
        serving = serving_form(policy)
    except DstoolsError as error:
        log.warning("TRL generates the answers: %s", error)
        return None
    if serving.model.moe is not None and torch.cuda.is_available():
        log.warning("TRL generates the answers: on a GPU each step would copy the experts")
        return None
    return partial(rollouts, settings=settings, tokenizer=tokenizer)


def rollouts(
    prompts: list[Any], trainer: Any, *, settings: Grpo, tokenizer: Any
) -> dict[str, list[Any] | None]:
    """Return an answer to each of the prompts of this process, as TRL takes them.

    prompts: of messages, each as often as it has answers. An answer's random numbers are those of
    the seed and its place in the whole run, so a resumed run draws the same. Raises DstoolsError
    where the logits of a token are not finite, or a prompt leaves no position for an answer.
    """
    serving = serving_form(trainer.accelerator.unwrap_model(trainer.model))
    asked = [prompt_ids(tokenizer, messages) for messages in prompts]
    step, longest = trainer.state.global_step, settings.max_completion_tokens
    first = step * settings.batch_size + rank() * len(asked)
    requests = [Request(first + place, ids, longest) for place, ids in enumerate(asked)]
    lengths = [min(len(ids) + longest, serving.positions) for ids in asked]
    pool = pool_for(serving, lengths, len(asked))
    sampling = Sampling(settings.temperature, seed=settings.seed)
    ends = frozenset(trainer.eos_token_ids)
    loop = Loop(Session(serving, pool), pool, sampling, ends, rows=len(asked))
    answers: list[list[int]] = [[] for _ in asked]
    for place, ids, reason in loop.run(requests):
        if reason == "error":
            raise DstoolsError(
                f"grpo: after {step} steps the policy's logits are not finite",
                "lower learning_rate, or max_grad_norm",
            )
        answers[place - first].extend(ids)
    return {"prompt_ids": asked, "completion_ids": answers, "logprobs": None}


def serving_form(policy: Any) -> Serving:
    """Return the serving form over the weights of a model of transformers, or of peft.

    Raises DstoolsError where `serving_over` does, or for an update of anything but a linear map.
    """
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    updates = {path: layer for path, layer in base.named_modules() if hasattr(layer, "lora_A")}
    for path, layer in updates.items():
        if not isinstance(layer.base_layer, nn.Linear):
            raise DstoolsError(f"lora: the loop has no update of {path}")
    weights = base.state_dict()
    for path, layer in updates.items():
        for name in layer.state_dict(prefix=f"{path}."):
            del weights[name]
        weights |= layer.base_layer.state_dict(prefix=f"{path}.")
    absorbed = [path for path in updates if path.endswith(".kv_b_proj")]  # which is copied anyhow
    for path in absorbed:
        layer = updates.pop(path)
        delta = layer.get_delta_weight(layer.active_adapters[0]).detach()
        weights[f"{path}.weight"] = weights[f"{path}.weight"] + delta
    serving = serving_over(json.loads(base.config.to_json_string()), weights)
    for path, layer in updates.items():
        product = serving.decoder.get_submodule(path)
        parent, _, name = path.rpartition(".")
        setattr(serving.decoder.get_submodule(parent), name, Updated(product, layer))
    return serving


class Updated(nn.Module):
    """A linear map with a low-rank update, w x + scale b a x, as peft's without dropout."""

    def __init__(self, product: nn.Module, layer: Any) -> None:
        super().__init__()
        (adapter,) = layer.active_adapters
        self.product, self.scale = product, layer.scaling[adapter]
        self.a, self.b = (
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., N] of x [..., K], in its dtype."""
        y: Tensor = self.product(x)
        update: Tensor = self.scale * (x.to(self.a.dtype) @ self.a.mT @ self.b.mT)
        return (y + update).to(y.dtype)
