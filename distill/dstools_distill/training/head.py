"""A cheaper last layer for trainers of TRL on a CPU: it scores targets alone, and each but once.

TRL's fused head never holds all logits, which is what a GPU wants at 32k tokens and 150k words. On a CPU it
scores prompts and padding, too, and again in the backward pass, in float32. The loss is the same.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

SCALED = (  # config keys of models that do more to their logits than a product
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier",
    "logits_scaling", "output_router_logits",
)  # fmt: skip


def score_targets_alone(model: Any) -> None:
    """Make `model(..., labels=, fused_lm_head=True)`, TRL's call, score what has a label.

    model: as a trainer of TRL made it, without adapters around. One that scales its logits, or routes
    tokens and is charged for it, stays as it is. Entropy and accuracy, which TRL would log, are nought.
    """
    text = model.config.get_text_config()
    if any(getattr(text, key, None) for key in SCALED):
        return
    fused = model.forward

    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **given: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **given)
        hidden = self.base_model(*args, **given).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        is_target = wanted != -100
        logits = self.get_output_embeddings()(hidden[is_target]).float()
        scored = -nn.functional.cross_entropy(logits, wanted[is_target].long(), reduction="none")
        log_probs = torch.zeros_like(wanted, dtype=torch.float32).masked_scatter(is_target, scored)
        nought = torch.zeros_like(log_probs)
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=nought, is_top1=nought, label_mask=is_target
        )

    model.forward = MethodType(forward, model)
