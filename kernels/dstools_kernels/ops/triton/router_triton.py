"""Triton twin of `router`: the best expert is taken k times. Never run on a GPU."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dstools_kernels.ops.router import EPSILON, V2, V2_LITE, V3, Rule
from dstools_kernels.ops.triton.config import Config

TOKENS = 1  # of a program
WARPS = 1  # which exchange nothing through shared memory
ADDED = tl.constexpr(EPSILON)  # to the sum of weights


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
def router_kernel(
    logits_ptr,  # [T, E]
    ids_ptr,  # [T, COUNT] int32
    weights_ptr,  # [T, COUNT]
    T,
    scale,
    bias_ptr,  # [E] or None
    IS_SIGMOID: tl.constexpr,
    IS_V3: tl.constexpr,  # the score of a group is that of its best two, else of its best
    IS_NORMED: tl.constexpr,
    N_GROUP: tl.constexpr,
    N_MEMBER: tl.constexpr,  # experts of a group
    KEPT: tl.constexpr,  # groups of a token
    COUNT: tl.constexpr,  # experts of a token
    GROUPS: tl.constexpr,  # the powers of two that are not below N_GROUP, N_MEMBER and COUNT
    MEMBERS: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write ids and weights of TOKENS tokens; grid (ceil(T / TOKENS),)."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    group, member, slot = tl.arange(0, GROUPS), tl.arange(0, MEMBERS), tl.arange(0, SLOTS)
    expert = (group[:, None] * N_MEMBER + member[None, :])[None]  # [1, GROUPS, MEMBERS]
    is_expert = ((group < N_GROUP)[:, None] & (member < N_MEMBER)[None, :])[None]
    is_token = token < T
    at = token[:, None, None].to(tl.int64) * (N_GROUP * N_MEMBER) + expert
    logits = tl.load(logits_ptr + at, mask=is_token[:, None, None] & is_expert, other=0.0)
    scores, is_bad = score(logits, is_expert, IS_SIGMOID)
    choice = scores
    if bias_ptr is not None:
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
        total = tl.sum(weights, 1)[:, None] + ADDED
        weights = tl.div_rn(weights, tl.broadcast_to(total, weights.shape))
    weights = tl.where(tl.reshape(is_bad, (TOKENS, 1)), float("nan"), weights * scale)
    out = token[:, None] * COUNT + slot[None, :]
    mask = is_token[:, None] & (slot < COUNT)[None, :]
    tl.store(ids_ptr + out, ids, mask=mask)
    tl.store(weights_ptr + out, weights, mask=mask)


def _constants(rule: Rule, experts: int) -> dict[str, Any]:
    members = experts // rule.n_group
    return {
        "IS_SIGMOID": rule.scoring == "sigmoid",
        "IS_V3": rule.group_score == "top2",
        "IS_NORMED": rule.is_normed,
        "N_GROUP": rule.n_group,
        "N_MEMBER": members,
        "KEPT": rule.topk_group,
        "COUNT": rule.count,
        "GROUPS": triton.next_power_of_2(rule.n_group),
        "MEMBERS": triton.next_power_of_2(members),
        "SLOTS": triton.next_power_of_2(rule.count),
        "TOKENS": TOKENS,
    }


def _config(rule: Rule, experts: int, has_bias: bool) -> Config:
    pointers = {"logits_ptr": "*fp32", "ids_ptr": "*i32", "weights_ptr": "*fp32"}
    bias = {"bias_ptr": "*fp32"} if has_bias else {}
    return Config(
        router_kernel,
        {**pointers, "T": "i32", "scale": "fp32", **bias},
        {**_constants(rule, experts), **({} if has_bias else {"bias_ptr": None})},
        num_warps=WARPS,
        unaligned=("T",),
        needs=("div.rn.f32",),
        lacks=("BAR",),
    )


CONFIGS = {
    "router/v3": _config(V3, 256, has_bias=True),
    "router/v2": _config(V2, 160, has_bias=False),
    "router/v2-lite": _config(V2_LITE, 64, has_bias=False),
}


def router(logits: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return ids and weights [T, k] as the definition does, except for ties."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    ids = logits.new_empty(tokens, rule.count, dtype=torch.int32)
    weights = logits.new_empty(tokens, rule.count)
    if tokens:
        config = _config(rule, experts, bias is not None)
        grid, more = (-(-tokens // TOKENS),), () if bias is None else (bias,)
        config.launch(grid, logits, ids, weights, tokens, rule.scale, *more)
    return ids, weights
