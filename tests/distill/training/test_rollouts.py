"""GRPO's answers by the loop: those of TRL's generation, over the policy's own weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Grpo, Lora
from dstools_distill.store.stage import Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training.grpo import dataset, trl_config
from dstools_distill.training.rollouts import rollout_func, rollouts, serving_form
from dstools_distill.training.students import load_student, lora

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"  # MLA and experts
QUESTIONS = ("12 + 345 =", "7 + 8 + 901 =", "What is 5 - 9?", "1 =")
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
    "initializer_range": 0.5,
}  # fmt: skip
QWEN = LLAMA | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
STUDENTS: dict[str, dict[str, Any] | None] = {"llama": LLAMA, "qwen3": QWEN, "sample-v3": None}
SETTINGS = Grpo(
    precision="float32",
    beta=0.0,
    group_size=4,
    batch_size=8,
    micro_batch_size=8,
    max_completion_tokens=24,
)


def trainer_of(student: str, settings: Grpo, folder: Path) -> tuple[Any, Any, list[Any]]:
    """Return a trainer, its tokenizer and a batch of prompts; updates of lora are random."""
    tokens = load_tokenizer(SAMPLE, None)
    init = STUDENTS[student]
    policy = load_student(settings, None if init else SAMPLE, init, tokens)
    rows: list[records.Record] = [
        {"messages": [{"role": "user", "content": question}], "gold": "1", "task": None}
        for question in QUESTIONS
    ]
    folder.mkdir()
    trainer: Any = GRPOTrainer(
        policy,
        [lambda completions, **_: [0.0] * len(completions)],
        args=trl_config(settings, Work(folder)),
        train_dataset=dataset(rows, folder, tokens)[0],
        processing_class=tokens,
        peft_config=lora(settings),
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight, std=0.2, generator=generator)
    return trainer, tokens, [row["messages"] for row in rows for _ in range(2)]


def answers(trainer: Any, tokens: Any, prompts: list[Any], settings: Grpo) -> Any:
    return rollouts(prompts, trainer, settings=settings, tokenizer=tokens)["completion_ids"]


def greedy(trainer: Any, tokens: Any, prompts: list[Any]) -> Any:
    settings = Grpo(max_completion_tokens=24, temperature=0.0)
    return answers(trainer, tokens, prompts, settings)


def trl(trainer: Any, prompts: list[Any]) -> tuple[Any, Any]:
    """Return the ids of prompts and their most probable answers by TRL's own generation."""
    trainer.generation_config.do_sample = trainer.generation_kwargs["do_sample"] = False
    ids, _, _ = trainer._tokenize_prompts(prompts)
    trainer.model.eval()  # TRL leaves dropout on
    return ids, trainer._generate_single_turn(ids, None, {}, 2)[0]


LINEAR = Lora(rank=2, alpha=4, dropout=0.5)
# the experts of a layer have no low-rank update
ATTENTION = replace(LINEAR, targets=("q_a_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))


@pytest.mark.parametrize(
    ("student", "updates"),
    [("llama", None), ("qwen3", None), ("sample-v3", None), ("llama", LINEAR),
     ("sample-v3", ATTENTION)],
)  # fmt: skip
def test_greedy_answers_are_those_of_trl(
    student: str, updates: Lora | None, tmp_path: Path
) -> None:
    trainer, tokens, prompts = trainer_of(student, replace(SETTINGS, lora=updates), tmp_path / "a")
    settings = Grpo(max_completion_tokens=24, temperature=0.0)
    found = rollouts(prompts, trainer, settings=settings, tokenizer=tokens)
    ids, wanted = trl(trainer, prompts)
    assert found == {"prompt_ids": ids, "completion_ids": wanted, "logprobs": None}
    assert any(answer != wanted[0] for answer in wanted)


@pytest.mark.parametrize(
    ("student", "updates"), [("llama", None), ("llama", LINEAR), ("sample-v3", None)]
)
def test_a_step_of_the_optimizer_changes_the_next_answers(
    student: str, updates: Lora | None, tmp_path: Path
) -> None:
    trainer, tokens, prompts = trainer_of(student, replace(SETTINGS, lora=updates), tmp_path / "a")
    before = greedy(trainer, tokens, prompts)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for weight in trained:
        weight.grad = 0.1 * torch.randn_like(weight)
    optimizer.step()
    after = greedy(trainer, tokens, prompts)
    assert after != before
    assert after == trl(trainer, prompts)[1]


@pytest.mark.parametrize("student", STUDENTS)
def test_no_weight_but_kv_b_proj_is_copied(student: str, tmp_path: Path) -> None:
    trainer, _, _ = trainer_of(student, SETTINGS, tmp_path / "a")
    weights = trainer.model.state_dict().items()
    kept = [weight for name, weight in weights if not name.endswith(".kv_b_proj.weight")]
    used = serving_form(trainer.model).decoder.parameters()
    assert {w.untyped_storage().data_ptr() for w in used} == {
        w.untyped_storage().data_ptr() for w in kept
    }


def test_an_answer_depends_on_seed_step_and_place(tmp_path: Path) -> None:
    """A resumed run has the step, and nothing of the draws before it."""
    trainer, tokens, prompts = trainer_of("llama", SETTINGS, tmp_path / "a")
    first = answers(trainer, tokens, prompts, SETTINGS)
    assert len({tuple(answer) for answer in first}) == len(prompts)  # of a group, too
    trainer.state.global_step = 1
    assert all(
        a != b for a, b in zip(answers(trainer, tokens, prompts, SETTINGS), first, strict=True)
    )
    trainer.state.global_step = 0
    torch.manual_seed(5)
    assert answers(trainer, tokens, prompts, SETTINGS) == first
    assert answers(trainer, tokens, prompts, replace(SETTINGS, seed=1)) != first


def test_answers_end_where_the_positions_do(tmp_path: Path) -> None:
    trainer, tokens, prompts = trainer_of("llama", SETTINGS, tmp_path / "a")
    settings = Grpo(max_completion_tokens=127, temperature=0.0)
    found: Any = rollouts(prompts, trainer, settings=settings, tokenizer=tokens)
    lengths = [
        len(a) + len(b) for a, b in zip(found["prompt_ids"], found["completion_ids"], strict=True)
    ]
    assert max(lengths) == 128


def test_logits_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    trainer, tokens, prompts = trainer_of("llama", SETTINGS, tmp_path / "a")
    trainer.model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(DstoolsError, match="after 0 steps the policy's logits are not finite"):
        answers(trainer, tokens, prompts, SETTINGS)


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")
@pytest.mark.parametrize(
    ("student", "changes", "line"),
    [
        ("llama", {"parallel": "fsdp2"}, "fsdp2 divides the weights"),
        ("llama", {"parallel": "zero3"}, "zero3 divides the weights"),
        (
            "llama",
            {"lora": Lora(targets=("embed_tokens",))},
            "lora: the loop has no update of model.embed_tokens",
        ),
        (
            "sample-v3",
            {"lora": Lora()},
            "lora: the loop has no update of model.layers.1.mlp.experts",
        ),
    ],
)
def test_trl_generates_what_the_loop_cannot(
    student: str,
    changes: dict[str, Any],
    line: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(SETTINGS, **changes)
    made = replace(settings, parallel="single")  # what runs here
    trainer, tokens, _ = trainer_of(student, made, tmp_path / "a")
    caplog.clear()
    assert rollout_func(trainer.model, settings, tokens) is None
    assert caplog.messages == [f"TRL generates the answers: {line}"]


def test_trl_generates_for_a_family_that_the_decoder_lacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {key: value for key, value in LLAMA.items() if key != "model_type"}
    policy = MistralForCausalLM(MistralConfig(vocab_size=320, **sizes))
    assert rollout_func(policy, SETTINGS, None) is None
    assert "mistral" in caplog.text
    assert len(caplog.messages) == 1
