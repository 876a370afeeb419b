"""The choice of a token's experts and their weights, of DeepSeek V2 and V3.

    V3   scores sigmoid(logits); chosen by score + bias, a group by the sum of its best two
    V2   scores softmax(logits); chosen by score, a group by its best; no bias

Only experts of the best `topk_group` of `n_group` groups can be chosen: others have -inf in V3, and
the score 0 in V2. The bias affects the choice and never the weights.

Of equal scores the definition takes those that `torch.topk` takes, and lists experts in its order,
so that ids and weights are transformers' to the bit. That order is defined nowhere. The Triton twin
takes the smallest ids, and lists the best expert first; docs/kernels.md has the shares of tokens.

Where a score of a token is NaN, all of its weights are, so that NaN reaches the output; its ids are
valid and distinct, and otherwise undefined.
Source: arXiv 2412.19437, section 2.1.2; 2405.04434, 2.2.2; transformers 5.23, DeepseekV3TopkRouter
and DeepseekV2TopkRouter.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dstools_kernels.ops.dispatch import runs_twin

EPSILON = 1e-20  # added to the sum that weights are divided by


@dataclass(frozen=True)
class Rule:
    """How experts are chosen and weighted."""

    scoring: Literal["sigmoid", "softmax"]
    group_score: Literal["top2", "max"]  # V3: the sum of a group's best two; V2: its best
    n_group: int
    topk_group: int
    count: int  # experts of a token
    is_normed: bool  # weights are divided by their sum
    scale: float  # routed_scaling_factor


V3 = Rule("sigmoid", "top2", n_group=8, topk_group=4, count=8, is_normed=True, scale=2.5)
V2 = Rule("softmax", "max", n_group=8, topk_group=3, count=6, is_normed=False, scale=16.0)
V2_LITE = Rule("softmax", "max", n_group=1, topk_group=1, count=6, is_normed=False, scale=1.0)


class Routed(NamedTuple):
    """The experts of each token."""

    ids: Tensor  # [T, k] int32
    weights: Tensor  # [T, k] float32


def router(logits: Tensor, bias: Tensor | None, rule: Rule) -> Routed:
    """Choose `rule.count` experts for each token by its `logits` [T, E] float32.

    `bias` [E] float32 is e_score_correction_bias, which only V3 has. Raises ValueError where
    `logits` are not float32, groups do not divide the experts, the kept groups hold too few, or
    `bias` is given for a rule of V2.
    """
    experts = logits.shape[-1]
    if logits.dtype != torch.float32:
        raise ValueError(f"logits must be float32, got {logits.dtype}")
    members, rest = divmod(experts, rule.n_group)
    ranked = 2 if rule.group_score == "top2" and rule.topk_group < rule.n_group else 1
    if rest or members < ranked or not 0 < rule.count <= members * rule.topk_group <= experts:
        raise ValueError(
            f"{rule.count} of {experts} experts cannot be chosen from {rule.topk_group} of "
            f"{rule.n_group} groups"
        )
    if bias is not None and rule.group_score == "max":
        raise ValueError("a bias belongs to the rule of V3, with group_score 'top2'")
    if runs_twin("router", logits):
        from dstools_kernels.ops.triton import router_triton

        return Routed(*router_triton.router(logits, bias, rule))
    scores = logits.sigmoid() if rule.scoring == "sigmoid" else logits.softmax(-1)
    is_bad = scores.isnan().any(-1, keepdim=True)
    choice = scores if bias is None else scores + bias
    if rule.topk_group < rule.n_group:
        is_out = _is_out(choice, rule)
        if rule.group_score == "top2":
            choice = choice.masked_fill(is_out, -math.inf)
        else:  # chosen only where all that is left is 0 as well, and then of weight 0
            choice = scores = scores.masked_fill(is_out, 0)
    ids = choice.topk(rule.count, sorted=False)[1]
    weights = scores.gather(-1, ids)
    if rule.is_normed:
        weights = weights / (weights.sum(-1, keepdim=True) + EPSILON)
    return Routed(ids.int(), (weights * rule.scale).masked_fill(is_bad, math.nan))


def _is_out(choice: Tensor, rule: Rule) -> Tensor:
    """Return whether each expert [T, E] is outside of the groups that its token keeps."""
    tokens, experts = choice.shape  # len() would fix the number of tokens in a traced graph
    grouped = choice.view(tokens, rule.n_group, experts // rule.n_group)
    is_v3 = rule.group_score == "top2"
    group_scores = grouped.topk(2)[0].sum(-1) if is_v3 else grouped.amax(-1)
    kept = group_scores.topk(rule.topk_group, sorted=False)[1]
    is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, kept, False)
    return is_out.repeat_interleave(choice.shape[-1] // rule.n_group, -1)
