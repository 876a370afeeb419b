"""Tests of the cheaper last layer: the same loss and gradients; scaled models keep their own."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from dstools_distill.training.head import score_targets_alone

FIELDS = ("log_probs", "entropy", "is_top1")


def tiny(kind: str = "llama", **more: Any) -> Any:
    """Return a model as TRL's SFTTrainer makes it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, outputs=FIELDS)
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :5] = -100  # a prompt
    labels[1, 9:] = -100  # padding
    return {"input_ids": ids, "labels": labels}


def test_the_scores_and_gradients_are_those_of_trl() -> None:
    cheap, fused = tiny(), tiny()
    score_targets_alone(cheap)
    ours, theirs = (model(**batch(), fused_lm_head=True) for model in (cheap, fused))
    assert torch.equal(ours.label_mask, theirs.label_mask)
    # float32 sums over 50 words in another order
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=0, atol=2e-6)
    for output in (ours, theirs):
        (-output.log_probs.sum() / output.label_mask.sum()).backward()
    for one, other in zip(cheap.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=2e-6)


def test_only_targets_are_scored_and_nothing_is_logged_of_them() -> None:
    model = tiny()
    score_targets_alone(model)
    seen: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    output = model(**batch(), fused_lm_head=True)
    assert seen == [int(output.label_mask.sum())] == [2 * 7 + 4]
    assert not output.log_probs[~output.label_mask].any()
    assert not output.entropy.any()
    assert not output.is_top1.any()


def test_calls_that_are_not_trl_s_give_logits() -> None:
    model = tiny()
    score_targets_alone(model)
    assert model(input_ids=batch()["input_ids"]).logits.shape == (3, 12, 50)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("gemma2", {"final_logit_softcapping": 5.0}), ("granite", {"logits_scaling": 8.0})],
)
def test_a_model_that_scales_its_logits_keeps_its_own_head(kind: str, more: Any) -> None:
    model, untouched = tiny(kind, **more), tiny(kind, **more)
    score_targets_alone(model)
    ours, theirs = (each(**batch(), fused_lm_head=True) for each in (model, untouched))
    assert torch.equal(ours.log_probs, theirs.log_probs)
    assert theirs.entropy.any()
    assert torch.equal(ours.entropy, theirs.entropy)
