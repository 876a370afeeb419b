"""Tests of GRPO: groups, their advantages, and what the curve logs of them."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.decontaminate import build_index
from dstools_distill.recipe.settings import Grpo, Lora, Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.training import grpo as module
from dstools_distill.training.grpo import groups, grpo
from dstools_distill.training.rewards import Rewards, logging_flat_groups

TEACHER = Path(__file__).parents[2] / "data" / "sample-v3"
SMALL = {
    "learning_rate": 1e-3, "precision": "float32", "max_completion_tokens": 8, "log_steps": 1,
    "group_size": 4, "batch_size": 8, "micro_batch_size": 8, "max_steps": 2,
}  # fmt: skip


def work(folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder)


def spread_rewards() -> Rewards:
    """Rewards of 0 to 4 by the tokens of an answer, so that a random policy learns."""

    def spread(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [float(sum(ids) % 5) for ids in completion_ids]

    return Rewards(logging_flat_groups([spread], 4), [1.0])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


def save_policy(folder: Path) -> Path:
    """Write a random model of one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TEACHER).save_pretrained(folder)
    return folder


def inputs(prompts: Path, policy: Path) -> Inputs:
    return Inputs(prompts=prompts, model=policy, tokenizer=policy, judge=Verify())


def ask(folder: Path, golds: list[str | None]) -> Path:
    folder.mkdir()
    rows = [
        {
            "id": str(n), "source": "test", "messages": [{"role": "user", "content": f"{n} + 1 ="}],
            "gold": gold, "answer_type": "integer", "task": None,
        }
        for n, gold in enumerate(golds)
    ]  # fmt: skip
    records.write(folder / "records.jsonl", rows)
    return folder


def test_advantages_of_a_group_of_four_are_those_worked_by_hand(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards 1 0 0 1: mean 1/2, std sqrt(4 * 1/4 / 3) = 0.57735, so +-0.5 / 0.57745 = +-0.865875.

    Rewards 2 0 0 0: mean 1/2, std sqrt((9 + 3) / 4 / 3) = 1, so 1.5 / 1.0001 and -0.5 / 1.0001.
    """
    seen: list[Any] = []

    class Seen(module.GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            seen.append((scored["advantages"], [row["record"] for row in inputs]))
            return scored

    def fixed(completion_ids: list[Any], **_: Any) -> list[float]:
        return [1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]

    monkeypatch.setattr(module, "GRPOTrainer", Seen)
    monkeypatch.setattr(module, "rewards", lambda *_: Rewards([fixed], [1.0]))
    settings = Grpo(**SMALL | {"max_steps": 1})  # type: ignore[arg-type]
    out = work(tmp_path / "out")
    grpo(settings, inputs(ask(tmp_path / "asked", ["1"] * 4), policy), out)
    ((advantages, asked),) = seen
    first = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = [first, -first, -first, first, 1.5 / 1.0001, *[-0.5 / 1.0001] * 3]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert asked == [asked[0]] * 4 + [asked[4]] * 4  # a group is of one prompt
    assert asked[0] != asked[4]


def test_groups_without_spread_are_counted_and_prompts_without_gold_dropped(
    policy: Path, tmp_path: Path
) -> None:
    """A random policy earns nothing in 8 tokens: every group is flat; two steps have two each."""
    out = work(tmp_path / "out")
    asked = ask(tmp_path / "asked", ["1", None, "3", "4", "5", "6"])
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"question": "What is 5 + 1 = ?"}\n{"question": "5 + 1 ="}\n')
    build_index([exam], tmp_path / "exam.ngrams")
    read = replace(inputs(asked, policy), indexes=(tmp_path / "exam.ngrams",))
    report = grpo(Grpo(**SMALL), read, out)  # type: ignore[arg-type]
    assert (report["in"], report["out"]) == (6, 4)
    assert report["dropped"] == {"contaminated": 1, "no-gold": 1}
    assert (report["groups"], report["groups_without_spread"]) == (4, 4)
    curve = list(records.read(out.folder / "curve.jsonl"))
    assert [line["step"] for line in curve] == [1, 2]
    for line in curve:
        assert {"reward", "reward_std", "kl", "clip_ratio/region_mean"} <= line.keys()
        assert (line["reward"], line["groups_without_spread"]) == (0.0, 1.0)
    assert json.loads((out.folder / "generation_config.json").read_text())["eos_token_id"] == [1]


def test_answers_come_from_the_loop(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL rewards them as its own: at most 8 tokens each, of groups of 4."""
    rewarded: list[list[int]] = []

    def count(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        rewarded.extend(completion_ids)
        return [float(ids[0]) for ids in completion_ids]

    def generate(*_: Any) -> None:
        raise AssertionError("TRL generates")

    monkeypatch.setattr(module.GRPOTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(
        module, "rewards", lambda *_: Rewards(logging_flat_groups([count], 4), [1.0])
    )
    out = work(tmp_path / "out")
    settings = Grpo(**SMALL | {"lora": Lora(rank=2)})  # type: ignore[arg-type]
    report = grpo(settings, inputs(ask(tmp_path / "asked", ["1"] * 4), policy), out)
    assert (report["steps"], report["groups"], report["groups_without_spread"]) == (2, 4, 0)
    assert len({tuple(ids) for ids in rewarded}) == 16
    assert all(len(ids) == 8 or ids[-1] == 1 for ids in rewarded)
    curve = list(records.read(out.folder / "curve.jsonl"))
    means = [sum(ids[0] for ids in rewarded[at : at + 8]) / 8 for at in (0, 8)]
    assert [line["reward"] for line in curve] == pytest.approx(means)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"lora": Lora(rank=2), "learning_rate": 0.03}], ids=["all", "lora"]
)
def test_a_run_resumed_after_its_reference_was_replaced_ends_in_the_same_bytes(
    changes: dict[str, Any],
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resumed: Callable[..., int],
) -> None:
    """Three prompts, two a step, so that each step is an epoch; the reference is of step 2 or 4."""

    monkeypatch.setattr(module, "rewards", lambda *_: spread_rewards())
    changes |= {"max_steps": 6, "save_steps": 1, "beta": 1.0, "replace_reference_steps": 2}
    settings = Grpo(**SMALL | changes)  # type: ignore[arg-type]
    read = inputs(ask(tmp_path / "asked", ["1"] * 3), policy)
    assert resumed(lambda folder: grpo(settings, read, work(folder))) == 5
    curve = list(records.read(tmp_path / "straight" / "curve.jsonl"))
    assert all(line["kl"] > 0 for line in curve if line["step"] in (2, 4, 6))
    assert [line["kl"] for line in curve if line["step"] in (1, 3, 5)] == [0.0] * 3
    assert any(line["reward_std"] for line in curve)


def test_a_policy_keeps_its_mtp_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mtp_is_carried_over: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(module, "rewards", lambda *_: spread_rewards())
    settings = Grpo(**SMALL | {"max_steps": 1})  # type: ignore[arg-type]
    read = inputs(ask(tmp_path / "asked", ["1"] * 4), TEACHER)
    report = grpo(settings, read, work(tmp_path / "out"))
    mtp_is_carried_over(report, TEACHER, tmp_path / "out")
    assert "UNEXPECTED" not in caplog.text  # neither of the policy nor of the reference


def test_flat_groups_are_summed_over_steps_that_were_logged_together(tmp_path: Path) -> None:
    curve = tmp_path / "curve.jsonl"
    rows = [{"step": 10, "groups_without_spread": 0.25}, {"step": 15, "groups_without_spread": 0.5}]
    records.write(curve, rows)
    settings = Grpo(group_size=4, batch_size=16)  # 4 groups a step: 10 * 4 / 4 + 5 * 4 / 2
    assert groups(curve, settings) == {"groups": 60, "groups_without_spread": 20}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 6, "micro_batch_size": 6},
            "6 answers are not a whole number of groups of 4",
        ),
        ({"accuracy_weight": 0.0, "format_weight": 0.0}, "every reward has weight 0"),
        ({"language_weight": 1.0, "language": "em"}, "grpo.language: 'em' cannot be recognized"),
        ({"max_completion_tokens": 256}, "256 tokens leave no room for a prompt in 256 positions"),
    ],
)
def test_settings_that_cannot_teach_are_refused(
    policy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = Grpo(**SMALL | changes)  # type: ignore[arg-type]
    with pytest.raises(DstoolsError, match=message):
        grpo(settings, inputs(ask(tmp_path / "a", ["1"]), policy), work(tmp_path / "out"))


def test_prompts_without_any_gold_are_refused(policy: Path, tmp_path: Path) -> None:
    asked = ask(tmp_path / "asked", [None, None])
    with pytest.raises(
        DstoolsError,
        match=r"asked/records\.jsonl: no prompt outside the benchmarks has a gold answer",
    ):
        grpo(Grpo(**SMALL), inputs(asked, policy), work(tmp_path / "out"))  # type: ignore[arg-type]
