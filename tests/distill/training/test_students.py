"""Tests of students before training: what is refused, random weights, optimizer and LoRA."""

import json
import logging
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Lora, Training
from dstools_distill.training.muon import Muon
from dstools_distill.training.students import (
    add_older_rope_keys,
    load_student,
    lora,
    optimizers,
    require_room,
)

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ({"hidden_size": 16}, "has no model_type"),
        ({"model_type": "no-such"}, "cannot be loaded"),
        (TINY | {"vocab_size": 300}, "vocab_size is 300, the tokenizer has 319"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(init: dict[str, Any], reason: str) -> None:
    with pytest.raises(DstoolsError, match=reason):
        load_student(Training(), None, init, AutoTokenizer.from_pretrained(SAMPLE))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=f"{tmp_path}: cannot be loaded"):
        load_student(Training(), tmp_path, None, AutoTokenizer.from_pretrained(SAMPLE))


@pytest.mark.parametrize("is_mtp", [True, False])
def test_weights_that_are_not_loaded_are_told_but_those_of_mtp_layers(
    is_mtp: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "student")
    if not is_mtp:
        weights = load_file(SAMPLE / "model.safetensors")
        weights["model.extra.weight"] = torch.zeros(2)
        save_file(weights, tmp_path / "student" / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load_student(Training(), tmp_path / "student", None, AutoTokenizer.from_pretrained(SAMPLE))
    assert ("UNEXPECTED" in caplog.text) == ("model.extra.weight" in caplog.text) == (not is_mtp)
    assert "layers.4" not in caplog.text


def test_a_quantized_model_is_not_trained(tmp_path: Path) -> None:
    config = TINY | {"vocab_size": 320, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DstoolsError, match="is quantized"):
        load_student(Training(), tmp_path, None, AutoTokenizer.from_pretrained(SAMPLE))


def test_a_tied_model_with_another_head_is_not_trained(tmp_path: Path) -> None:
    """What came of it would be saved with both, and read in two ways."""
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    for is_tied in (True, False):
        student = load_student(Training(), None, TINY | {"tie_word_embeddings": is_tied}, tokenizer)
        student.config.tie_word_embeddings = True
        student.save_pretrained(tmp_path)
        if is_tied:
            load_student(Training(), tmp_path, None, tokenizer)
    with pytest.raises(DstoolsError, match=f"{tmp_path}: its output head differs from"):
        load_student(Training(), tmp_path, None, tokenizer)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16-autocast", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_weights_have_the_precision_asked_for(precision: Any, dtype: torch.dtype) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    student = load_student(Training(precision=precision), None, TINY, tokenizer)
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert student.config.eos_token_id == tokenizer.eos_token_id
    assert student.config.vocab_size == len(tokenizer)


def test_a_random_student_is_a_function_of_the_seed() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    one, same, other = (
        load_student(Training(seed=seed), None, TINY, tokenizer).state_dict() for seed in (1, 1, 2)
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one[name], other[name])


def test_a_tokenizer_that_would_be_read_back_as_another_is_refused() -> None:
    """AutoTokenizer loads Qwen2's class for a qwen2 config, whatever the files say."""
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    with pytest.raises(DstoolsError, match="reads this tokenizer as Qwen2Tokenizer") as caught:
        load_student(Training(), None, TINY | {"model_type": "qwen2"}, tokenizer)
    assert '"llama"' in caught.value.hint


def test_an_answer_must_leave_a_position_for_its_prompt() -> None:
    student = load_student(Training(context=64), None, TINY, AutoTokenizer.from_pretrained(SAMPLE))
    require_room(student, 63, "kd.max_completion_tokens")
    with pytest.raises(
        DstoolsError, match=r"kd\.max_completion_tokens: 64 tokens leave no"
    ) as caught:
        require_room(student, 64, "kd.max_completion_tokens")
    assert "kd.context" in caught.value.hint


def test_muon_is_our_optimizer_and_any_other_the_trainer_s() -> None:
    student = load_student(Training(), None, TINY, AutoTokenizer.from_pretrained(SAMPLE))
    assert optimizers(Training(), student) == (None, None)
    muon, scheduler = optimizers(Training(optimizer="muon", learning_rate=0.5), student)
    assert isinstance(muon, Muon)
    assert {group["lr"] for group in muon.param_groups} == {0.5}
    assert scheduler is None


def test_lora_is_given_to_peft_as_the_recipe_has_it() -> None:
    assert lora(Training()) is None
    config = lora(Training(lora=Lora(rank=3, alpha=12, dropout=0.5, targets=("q_proj",))))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12, 0.5)
    assert config.target_modules == {"q_proj"}
    assert lora(Training(lora=Lora(targets=("all-linear",)))).target_modules == "all-linear"


LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("init", "older"),
    [
        (TINY, {"rope_theta": 10000.0}),
        (TINY | {"rope_theta": 5e5}, {"rope_theta": 5e5}),
        (TINY | {"model_type": "qwen2", "rope_theta": 1e6}, {"rope_theta": 1e6}),
        (TINY | {"rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 1 << 17},
         {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 1}, {}),  # no rotary
        ({"model_type": "gemma3_text", "hidden_size": 16, "num_hidden_layers": 1}, {}),  # by layer
    ],
)  # fmt: skip
def test_older_readers_find_the_base_of_the_rotary_embedding_and_new_ones_the_same(
    init: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    AutoConfig.for_model(**deepcopy(init)).save_pretrained(tmp_path)  # which adds to `init`
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_rope_keys(tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    keys = ("rope_theta", "rope_scaling")
    assert {key: config[key] for key in keys if key in config} == older
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {k: v for k, v in after.items() if k not in keys} == before
