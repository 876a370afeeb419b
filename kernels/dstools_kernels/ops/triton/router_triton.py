"""The choice of experts, a few tokens a program: the best expert is taken k times."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from dstools_kernels.ops.router import Rule

TOKENS = 1  # of a program
WARPS = 1  # which exchange nothing through shared memory


def router(logits: Tensor, bias: Tensor | None, rule: "Rule") -> tuple[Tensor, Tensor]:
    """Return ids and weights [T, k]: the twin of `ops.router`."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    ids = logits.new_empty(tokens, rule.count, dtype=torch.int32)
    weights = logits.new_empty(tokens, rule.count)
    if tokens:
        members = experts // rule.n_group
        kernel[(triton.cdiv(tokens, TOKENS),)](
            logits, logits if bias is None else bias, ids, weights, tokens, rule.scale,
            rule.scoring == "sigmoid", rule.group_score == "top2", bias is not None, rule.is_normed,
            rule.n_group, triton.next_power_of_2(rule.n_group), rule.topk_group,
            members, triton.next_power_of_2(members),
            rule.count, triton.next_power_of_2(rule.count), TOKENS, num_warps=WARPS,
        )  # fmt: skip
    return ids, weights


@triton.jit
def score(logits, is_expert, IS_SIGMOID: tl.constexpr):
    """Return the scores [TOKENS, GROUPS, MEMBERS], and whether a token has NaN [TOKENS, 1, 1].

    A token with NaN has scores of 0, since the interpreter's argmax raises where all are NaN.
    """
    is_nan = logits != logits
    logits = tl.where(is_expert & ~is_nan, logits, float("-inf"))
    if IS_SIGMOID:
        scores = tl.div_rn(1.0, 1.0 + tl.exp(-logits))
    else:
        largest = tl.max(tl.max(logits, 2), 1)[:, None, None]
        parts = tl.exp(logits - largest)
        total = tl.sum(tl.sum(parts, 2), 1)[:, None, None]
        scores = tl.div_rn(parts, tl.broadcast_to(total, parts.shape))
    is_bad = (is_nan | (scores != scores)).to(tl.int32)
    is_bad = tl.max(tl.max(is_bad, 2), 1)[:, None, None] > 0
    return tl.where(is_bad, 0.0, scores), is_bad


@triton.jit
def keep(choice, group, member, IS_V3: tl.constexpr, KEPT: tl.constexpr):
    """Return whether each group is one of its token's best, [TOKENS, GROUPS, 1]."""
    best = tl.max(choice, 2)
    if IS_V3:
        is_best = member[None, None, :] == tl.argmax(choice, 2)[:, :, None]
        best += tl.max(tl.where(is_best, float("-inf"), choice), 2)
    is_kept = tl.full(best.shape, False, tl.int1)
    for _ in tl.static_range(KEPT):
        is_next = group[None, :] == tl.argmax(best, 1)[:, None]
        is_kept = is_kept | is_next
        best = tl.where(is_next, float("-inf"), best)
    return is_kept[:, :, None]


@triton.jit
def kernel(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, T, scale,
    IS_SIGMOID: tl.constexpr, IS_V3: tl.constexpr, HAS_BIAS: tl.constexpr, IS_NORMED: tl.constexpr,
    N_GROUP: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
    N_MEMBER: tl.constexpr, MEMBERS: tl.constexpr,
    COUNT: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Write ids and weights [T, COUNT] for N_GROUP groups of N_MEMBER experts, KEPT groups kept.

    GROUPS, MEMBERS and SLOTS are the powers of two not below N_GROUP, N_MEMBER and COUNT.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    group, member, slot = tl.arange(0, GROUPS), tl.arange(0, MEMBERS), tl.arange(0, SLOTS)
    expert = (group[:, None] * N_MEMBER + member[None, :])[None]  # [1, GROUPS, MEMBERS]
    is_expert = ((group < N_GROUP)[:, None] & (member < N_MEMBER)[None, :])[None]
    is_token = token < T
    at = token[:, None, None].to(tl.int64) * (N_GROUP * N_MEMBER) + expert
    logits = tl.load(logits_ptr + at, mask=is_token[:, None, None] & is_expert, other=0.0)
    scores, is_bad = score(logits, is_expert, IS_SIGMOID)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias_ptr + expert, mask=is_expert, other=0.0)
    choice = tl.where(is_expert, choice, float("-inf"))
    if KEPT < N_GROUP:
        is_kept = keep(choice, group, member, IS_V3, KEPT)
        if IS_V3:
            choice = tl.where(is_kept, choice, float("-inf"))
        else:  # chosen only where all that is left is 0 as well, and then of weight 0
            scores = tl.where(is_kept, scores, 0.0)
            choice = tl.where(is_expert, scores, float("-inf"))
    choice = tl.reshape(choice, (TOKENS, GROUPS * MEMBERS))
    scores = tl.reshape(scores, (TOKENS, GROUPS * MEMBERS))
    ids = tl.zeros((TOKENS, SLOTS), tl.int32)
    weights = tl.zeros((TOKENS, SLOTS), tl.float32)
    for i in tl.static_range(COUNT):
        chosen = tl.argmax(choice, 1)[:, None]
        is_chosen = tl.arange(0, GROUPS * MEMBERS)[None, :] == chosen
        weight = tl.sum(tl.where(is_chosen, scores, 0.0), 1)[:, None]
        ids = tl.where(slot[None, :] == i, chosen // MEMBERS * N_MEMBER + chosen % MEMBERS, ids)
        weights = tl.where(slot[None, :] == i, weight, weights)
        choice = tl.where(is_chosen, float("-inf"), choice)
    if IS_NORMED:
        total = tl.sum(weights, 1)[:, None] + 1e-20
        weights = tl.div_rn(weights, tl.broadcast_to(total, weights.shape))
    weights = tl.where(tl.reshape(is_bad, (TOKENS, 1)), float("nan"), weights * scale)
    out = token[:, None] * COUNT + slot[None, :]
    mask = is_token[:, None] & (slot < COUNT)[None, :]
    tl.store(ids_ptr + out, ids, mask=mask)
    tl.store(weights_ptr + out, weights, mask=mask)
