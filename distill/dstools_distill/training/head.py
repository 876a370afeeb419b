"""Cheaper last layer for trainers of TRL on a CPU: it scores targets only, and each once.

TRL's fused head never holds all logits, which a GPU needs at 32k tokens and 150k words. On a CPU it
scores prompts and padding as well, and again in the backward pass, in float32. The loss is the
same.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

SCALED = (  # config keys of models whose logits are more than a product
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier",
    "logits_scaling", "output_router_logits",
)  # fmt: skip


def score_targets_alone(model: Any) -> None:
    """Make `model(..., labels=, fused_lm_head=True)`, TRL's call, score only what has a label.

    model: as a trainer of TRL made it, without adapters around it. One that scales its logits, or
    adds a loss of its router, is left unchanged. Entropy and accuracy, which TRL logs, become 0.
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
        **options: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **options)
        hidden = self.base_model(*args, **options).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        is_target = targets != -100
        logits = self.get_output_embeddings()(hidden[is_target]).float()
        scored = -nn.functional.cross_entropy(logits, targets[is_target].long(), reduction="none")
        log_probs = torch.zeros_like(targets, dtype=torch.float32).masked_scatter(is_target, scored)
        zeros = torch.zeros_like(log_probs)
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=zeros, is_top1=zeros, label_mask=is_target
        )

    model.forward = MethodType(forward, model)
