"""Steps L2 and L3 for the router: the definition on 10,000 tokens, and the order of ties."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.router import V2, V2_LITE, V3, Routed, Rule, router
from dstools_kernels.ops.triton import router_triton
from dstools_kernels.proof.mutate import mutate

CASES = [(V3, 256), (V2, 160), (V2_LITE, 64)]
TOKENS = 10_000


@pytest.fixture(autouse=True)
def large_programs(watched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_triton, "TOKENS", 512)  # as fast as the interpreter gets


def normal(tokens: int, experts: int) -> Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(experts))


def bias_of(rule: Rule, experts: int) -> Tensor | None:
    return normal(1, experts)[0] / 10 if rule is V3 else None


def defined(logits: Tensor, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> Routed:
    with monkeypatch.context() as context:
        context.setenv("DSTOOLS_KERNELS", "reference")
        return by_id(*router(logits, bias_of(rule, logits.shape[-1]), rule))


def by_id(ids: Tensor, weights: Tensor) -> Routed:
    """Return the experts of each token in the order of their ids: definition and twin have none."""
    ids, order = ids.sort(-1)
    return Routed(ids, weights.gather(-1, order))


@pytest.mark.parametrize(("rule", "experts"), CASES)
def test_ids_are_those_of_the_definition_and_weights_within_a_millionth(
    rule: Rule, experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = normal(TOKENS, experts)
    routed = by_id(*router(logits, bias_of(rule, experts), rule))
    wanted = defined(logits, rule, monkeypatch)
    assert torch.equal(routed.ids, wanted.ids)
    assert torch.allclose(routed.weights, wanted.weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rule", "experts"), CASES)
def test_of_ties_the_smallest_ids_are_chosen(rule: Rule, experts: int) -> None:
    """Logits are multiples of 1/2, so that most tokens have ties at the last place and in groups.

    The choice is made again on sorted scores: a stable sort keeps the order of ids.
    """
    logits = (normal(TOKENS, experts) * 2).round() / 2
    bias = torch.zeros(experts) if rule is V3 else None
    ids = router(logits, bias, rule).ids.long()
    grouped = logits.view(TOKENS, rule.n_group, -1)  # logits order as scores do
    if rule is V3:
        best = grouped.sigmoid().sort(-1, descending=True)[0][..., :2].sum(-1)
    else:
        best = grouped.amax(-1)
    kept = best.sort(dim=-1, descending=True, stable=True)[1][:, : rule.topk_group]
    is_out = torch.ones_like(best, dtype=torch.bool).scatter(-1, kept, False)
    left = grouped.masked_fill(is_out[..., None], -math.inf).flatten(1)
    order = left.sort(dim=-1, descending=True, stable=True)[1]
    assert torch.equal(ids, order[:, : rule.count])
    last, next_best = (left.gather(-1, order[:, i : i + 1]) for i in (rule.count - 1, rule.count))
    assert (last == next_best).double().mean() > 0.3


@pytest.mark.parametrize(("rule", "experts"), CASES)
def test_nan_reaches_all_weights_of_its_token_and_no_other(
    rule: Rule, experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = normal(3, experts)
    wanted = defined(logits, rule, monkeypatch)
    logits[1, 7] = math.nan
    ids, weights = by_id(*router(logits, bias_of(rule, experts), rule))
    assert weights[1].isnan().all()
    assert len(set(ids[1].tolist())) == rule.count
    assert ((ids >= 0) & (ids < experts)).all()
    assert torch.equal(ids[::2], wanted.ids[::2])


def test_a_token_of_nan_alone_has_valid_ids() -> None:
    for rule, experts in CASES:
        ids, weights = router(torch.full((1, experts), math.nan), None, rule)
        assert len(set(ids[0].tolist())) == rule.count
        assert weights.isnan().all()


def test_scores_of_0_outside_of_the_groups_weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """V2 with logits so far apart that most scores are 0, as are those of groups left out."""
    logits = normal(512, 160) * 60
    routed, wanted = by_id(*router(logits, None, V2)), defined(logits, V2, monkeypatch)
    assert (wanted.weights == 0).any(-1).double().mean() > 0.05
    weights, wanted_weights = routed.weights.sort(-1)[0], wanted.weights.sort(-1)[0]
    assert torch.allclose(weights, wanted_weights, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_sizes_need_not_be_powers_of_two(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_triton, "TOKENS", 2)
    rule = replace(V3, n_group=6, topk_group=5, count=7)
    logits = normal(tokens, 90)
    routed, wanted = by_id(*router(logits, None, rule)), defined(logits, rule, monkeypatch)
    assert torch.equal(routed.ids, wanted.ids)
    assert routed.weights.shape == (tokens, 7)


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        (V3, "choice += tl.load(bias_ptr", "scores += tl.load(bias_ptr"),
        (V3, "best += tl.max(tl.where(is_best", "best = tl.max(tl.where(is_best"),
        (V3, "is_kept = is_kept | is_next", "is_kept = is_next"),
        (V2, "scores = tl.where(is_kept, scores, 0.0)", "scores = scores"),
        (V2, "logits - largest", "logits - 2 * largest"),
        (V3, "N_MEMBER + chosen % MEMBERS", "N_MEMBER + chosen % COUNT"),
        (V3, "tl.sum(weights, 1)[:, None]", "tl.sum(scores, 1)[:, None]"),
    ],
    ids=[
        "bias in the weights", "second best alone", "last group alone", "no groups",
        "softmax overflows", "member", "sum over all",
    ],
)  # fmt: skip
def test_a_mutant_is_caught(
    rule: Rule, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = 256 if rule is V3 else 160
    logits = normal(512, experts) * (50 if "largest" in old else 1)
    wanted = defined(logits, rule, monkeypatch)
    mutant = mutate(router_triton, old, new, tmp_path)
    monkeypatch.setattr(mutant, "TOKENS", 512)
    ids, weights = by_id(*mutant.router(logits, bias_of(rule, experts), rule))
    is_same = torch.equal(ids, wanted.ids)
    assert not (is_same and torch.allclose(weights, wanted.weights, rtol=1e-6, atol=0))
