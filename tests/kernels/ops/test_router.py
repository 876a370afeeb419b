"""The choice of experts: by hand, and equal to transformers' on 10,000 tokens with ties."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from dstools_kernels.ops.router import Rule, router

V3 = Rule("sigmoid", "top2", n_group=8, topk_group=4, count=8, is_normed=True, scale=2.5)
V2 = Rule("softmax", "max", n_group=8, topk_group=3, count=6, is_normed=False, scale=16.0)
GREEDY = replace(V2, n_group=1, topk_group=1, scale=1.0)
TOKENS = 10_000


def logits(experts: int, step: float, spread: float = 1.0) -> Tensor:
    """Return normal logits [10,000, experts], every second token's in multiples of `step`."""
    normal = torch.randn(TOKENS, experts, generator=torch.Generator().manual_seed(0)) * spread
    normal[::2] = (normal[::2] / step).round() * step
    return normal


def run(module: torch.nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids and weights of transformers; the weight is 1, so `given` are the logits."""
    with torch.no_grad():
        module.weight.copy_(torch.eye(given.shape[-1]))
        _, weights, ids = module(given)
    return ids, weights


def assert_same_bits(routed: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(routed[0].long(), wanted[0])
    assert torch.equal(routed[1], wanted[1])


def by_expert(routed: tuple[Tensor, Tensor]) -> dict[int, float]:
    """Return the weight of each expert of the first token."""
    ids, weights = routed
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


# ------------------------------------------------------------------------------------ golden values


def test_v3_by_hand() -> None:
    """Logits 0 give scores of 1/2, and the bias alone decides.

    Groups {0, 1}, {2, 3}, {4, 5} score 1 + 0.3, 1 + 0.4, 1 + 0.2: the first two are kept, so expert
    5 loses although its bias is the largest but one. Chosen are 3 and 0, of equal weight.
    """
    bias = torch.tensor([0.3, 0.0, -0.2, 0.6, -0.2, 0.4])
    rule = Rule("sigmoid", "top2", 3, 2, count=2, is_normed=True, scale=2.5)
    routed = router(torch.zeros(1, 6), bias, rule)
    assert by_expert(routed) == {3: 1.25, 0: 1.25}
    assert (routed.ids.dtype, routed.weights.dtype) == (torch.int32, torch.float32)


def test_v2_by_hand() -> None:
    """Scores are 1/10, 2/10, 3/10, 4/10; the second group has the best, and 1 of 2 is kept."""
    given = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
    routed = router(given, None, replace(V2, n_group=2, topk_group=1, count=2))
    assert by_expert(routed) == pytest.approx({3: 6.4, 2: 4.8})


# ------------------------------------------------------------------------------------ transformers


def test_v3_equals_transformers_with_ties() -> None:
    module = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=256, n_routed_experts=256, n_group=8, topk_group=4, num_experts_per_tok=8
        )
    )
    given = logits(256, step=0.5)
    bias = (torch.randn(256, generator=torch.Generator().manual_seed(1)) * 4).round() / 64
    module.e_score_correction_bias.copy_(bias)
    assert_same_bits(router(given, bias, V3), run(module, given))


@pytest.mark.parametrize("spread", [1.0, 60.0], ids=["usual", "most scores are 0"])
@pytest.mark.parametrize("rule", [V2, GREEDY], ids=["groups", "greedy"])
def test_v2_equals_transformers_with_ties(rule: Rule, spread: float) -> None:
    config = DeepseekV2Config(
        hidden_size=160, n_routed_experts=160, n_group=rule.n_group, topk_group=rule.topk_group,
        num_experts_per_tok=rule.count, routed_scaling_factor=rule.scale,
        topk_method="greedy" if rule is GREEDY else "group_limited_greedy",
    )  # fmt: skip
    given = logits(160, step=0.5 * spread, spread=spread)
    assert_same_bits(router(given, None, rule), run(DeepseekV2TopkRouter(config), given))


# ------------------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize(("rule", "experts"), [(V3, 256), (V2, 160), (GREEDY, 64)])
def test_nan_reaches_all_weights_of_its_token_and_no_other(rule: Rule, experts: int) -> None:
    given = torch.randn(3, experts, generator=torch.Generator().manual_seed(0))
    wanted = router(given, None, rule)
    given[1, 7] = math.nan
    ids, weights = router(given, None, rule)
    assert weights[1].isnan().all()
    assert len(set(ids[1].tolist())) == rule.count
    assert ((ids >= 0) & (ids < experts)).all()
    assert torch.equal(ids[::2], wanted.ids[::2])
    assert torch.equal(weights[::2], wanted.weights[::2])


def test_infinite_logits_are_scores_of_0_and_1_in_v3_and_nan_in_v2() -> None:
    given = torch.zeros(1, 256)
    given[0, 9], given[0, 10] = math.inf, -math.inf
    weights = by_expert(router(given, None, replace(V3, is_normed=False, scale=1.0)))
    assert weights.pop(9) == 1
    assert set(weights.values()) == {0.5}
    assert 10 not in weights
    assert router(given[:, :160], None, V2).weights.isnan().all()


# ------------------------------------------------------------------------------------------- misuse


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must be float32, got torch\.bfloat16"):
        router(torch.zeros(1, 256, dtype=torch.bfloat16), None, V3)
    with pytest.raises(ValueError, match="8 of 250 experts cannot be chosen from 4 of 8 groups"):
        router(torch.zeros(1, 250), None, V3)
    with pytest.raises(ValueError, match="8 of 8 experts cannot be chosen from 4 of 8 groups"):
        router(torch.zeros(1, 8), None, V3)
    one_each = replace(V3, n_group=4, topk_group=2, count=1)  # no best two
    with pytest.raises(ValueError, match="1 of 4 experts cannot be chosen from 2 of 4 groups"):
        router(torch.zeros(1, 4), None, one_each)
    with pytest.raises(ValueError, match="a bias belongs to the rule of V3"):
        router(torch.zeros(1, 160), torch.zeros(160), V2)
