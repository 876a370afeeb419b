"""Tests of distilling logits: which teachers are accepted, and that the student gets nearer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Kd
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.training.kd import check_identity, kd, match_sizes

TEACHER = Path(__file__).parents[2] / "data" / "sample-v3"
PROBES = ["<｜User｜>12 + 30 =<｜Assistant｜>", "wait, 1 + 2"]


def inputs(prompts: Path, student: Path, teacher: Path) -> Inputs:
    return Inputs(prompts=prompts, model=student, tokenizer=student, teacher=teacher)


def work(folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TEACHER)


def tiny(rows: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_one_tokenizer_passes() -> None:
    check_identity(tokenizer(), tokenizer(), PROBES, TEACHER)


def test_a_stranger_of_equal_size_is_refused_by_its_first_token() -> None:
    other = tokenizer()
    spelled = json.loads(other.backend_tokenizer.to_str())
    vocabulary = spelled["model"]["vocab"]
    a, b = "!", '"'
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    other._tokenizer = other.backend_tokenizer.from_str(json.dumps(spelled))
    assert len(other) == len(tokenizer())
    with pytest.raises(DstoolsError, match=r"do not share a tokenizer: 4 tokens differ") as caught:
        check_identity(tokenizer(), other, PROBES, TEACHER)
    assert "generate and sft" in caught.value.hint


def test_equal_vocabularies_that_cut_text_differently_are_refused() -> None:
    other = tokenizer()
    spelled = json.loads(other.backend_tokenizer.to_str())
    spelled["model"]["merges"] = []
    other._tokenizer = other.backend_tokenizer.from_str(json.dumps(spelled))
    assert other.get_vocab() == tokenizer().get_vocab()
    with pytest.raises(DstoolsError, match="split text differently"):
        check_identity(tokenizer(), other, ["State the final answer"], TEACHER)


@pytest.mark.parametrize(("ours", "theirs"), [(320, 384), (384, 320)])
def test_twins_padded_to_different_sizes_are_cut_to_the_smaller(ours: int, theirs: int) -> None:
    student, teacher = tiny(ours), tiny(theirs)
    before = student.get_input_embeddings().weight.detach().clone()
    assert match_sizes(student, teacher) == (ours, theirs, 320)
    for model in (student, teacher):
        assert model(torch.tensor([[5, 6]])).logits.shape[-1] == 320
    assert torch.equal(student.get_input_embeddings().weight, before[:320])


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher_on_its_own_answers(tmp_path: Path) -> None:
    """Both are random models of one shape: only the teacher's distribution can be learned."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    asked = [[{"role": "user", "content": f"{n} + {n + 1} ="}] for n in range(64)]
    rows = [{"messages": messages, "gold": None} for messages in asked]
    records.write(prompts / "records.jsonl", rows)
    for name, rows, seed in (("student", 320, 1), ("teacher", 384, 2)):
        tiny(rows, seed).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    settings = Kd(
        learning_rate=1e-2, max_steps=30, batch_size=16, micro_batch_size=16, precision="float32",
        max_completion_tokens=12, log_steps=1, beta=0.0,
    )  # fmt: skip
    out = work(tmp_path / "out")
    report = kd(settings, inputs(prompts, tmp_path / "student", tmp_path / "teacher"), out)
    assert report["vocabulary"] == {"student": 320, "teacher": 384, "used": 320}
    losses = [line["loss"] for line in records.read(out.folder / "curve.jsonl")]
    assert len(losses) == report["steps"] == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    ids = torch.randint(5, 320, (8, 16), generator=torch.Generator().manual_seed(0))

    def nats(folder: Path) -> float:
        with torch.inference_mode():
            ours, theirs = (
                AutoModelForCausalLM.from_pretrained(model)(ids).logits[..., :320].log_softmax(-1)
                for model in (folder, tmp_path / "teacher")
            )
        return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    assert nats(out.folder) < 0.9 * nats(tmp_path / "student")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16-autocast", "bfloat16"])
def test_a_teacher_in_fp8_teaches_a_student_of_any_precision(
    precision: Any, sample_fp8: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    asked = [{"messages": [{"role": "user", "content": "1 + 2 ="}], "gold": None}] * 2
    records.write(tmp_path / "prompts" / "records.jsonl", asked)
    tiny(320).save_pretrained(tmp_path / "student")
    tokenizer().save_pretrained(tmp_path / "student")
    settings = Kd(
        max_steps=1, batch_size=2, micro_batch_size=2, precision=precision,
        max_completion_tokens=4, log_steps=1,
    )  # fmt: skip
    read = inputs(tmp_path / "prompts", tmp_path / "student", sample_fp8)
    report = kd(settings, read, work(tmp_path / "out"))
    assert report["steps"] == 1
    (line,) = records.read(tmp_path / "out" / "curve.jsonl")
    assert line["loss"] > 0


def test_a_student_keeps_its_mtp_layers(
    tmp_path: Path, mtp_is_carried_over: Callable[..., None]
) -> None:
    """The sample teaches itself; 8 positions of an answer are enough."""
    asked = [{"messages": [{"role": "user", "content": "1 + 2 ="}], "gold": None}] * 2
    records.write(tmp_path / "records.jsonl", asked)
    settings = Kd(
        max_steps=1, batch_size=2, micro_batch_size=2, precision="float32",
        max_completion_tokens=8, log_steps=1,
    )  # fmt: skip
    report = kd(settings, inputs(tmp_path, TEACHER, TEACHER), work(tmp_path / "out"))
    mtp_is_carried_over(report, TEACHER, tmp_path / "out")


@pytest.mark.slow
def test_a_run_resumed_in_later_epochs_asks_the_prompts_that_a_straight_run_asks(
    resumed: Callable[..., int], tmp_path: Path
) -> None:
    """Five prompts, two a step: an epoch has two steps, and draws its own order."""
    (tmp_path / "prompts").mkdir()
    asked = [[{"role": "user", "content": f"{n} + {n + 1} ="}] for n in range(5)]
    rows = [{"messages": messages, "gold": None} for messages in asked]
    records.write(tmp_path / "prompts" / "records.jsonl", rows)
    for name, seed in (("student", 1), ("teacher", 2)):
        tiny(320, seed).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    read = inputs(tmp_path / "prompts", tmp_path / "student", tmp_path / "teacher")
    settings = Kd(
        learning_rate=1e-2, max_steps=6, batch_size=2, micro_batch_size=2, precision="float32",
        max_completion_tokens=4, log_steps=1, save_steps=1,
    )  # fmt: skip
    assert resumed(lambda folder: kd(settings, read, work(folder))) == 5


def test_a_folder_without_prompts_is_named(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(
        DstoolsError, match=r"records\.jsonl: holds no prompt outside the benchmarks"
    ):
        kd(Kd(), inputs(tmp_path, TEACHER, TEACHER), work(tmp_path / "out"))
