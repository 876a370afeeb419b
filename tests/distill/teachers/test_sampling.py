"""Greedy answers are those of transformers; drawn ones depend on seed and place alone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import prompt_ids
from dstools_distill.teachers import sampling
from dstools_distill.teachers.sampling import Sampled, Sampler, draw
from dstools_distill.tokens.templates import load_tokenizer

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
END = 1
SUMS = {  # the sample model solves these in float32, bfloat16 and FP8
    "5 + 8": "13",
    "57 + 68": "125",
    "94 - 77 + 95": "112",
    "97 + 97 + 33": "227",
    "123 + 456": "579",
    "977 - 899 + 576": "654",
    "640 - 215": "425",
    "9 + 4 + 7": "20",
}
GREEDY: dict[str, Any] = {"temperature": 0, "top_p": 1.0, "max_tokens": 128, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SAMPLE)


@pytest.fixture(scope="module")
def sampler(tokenizer: Any) -> Sampler:
    return Sampler(SAMPLE, tokenizer)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    asked = "State the final answer to the following arithmetic problem: {} ="
    return [
        prompt_ids(tokenizer, [{"role": "user", "content": asked.format(sum_)}]) for sum_ in SUMS
    ]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sample model in a folder that a test may change."""
    shutil.copytree(SAMPLE, tmp_path / "model")
    return tmp_path / "model"


def by_generate(model: Any, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Return what transformers' greedy loop answers to each prompt alone, without padding."""
    answers = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens)
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


def ids_of(answers: list[Sampled]) -> list[list[int]]:
    return [answer.ids for answer in answers]


def solved(answers: list[Sampled]) -> int:
    results = [answer.text.partition("</think>")[2].strip() for answer in answers]
    return sum(a == b for a, b in zip(results, SUMS.values(), strict=True))


def sample(sampler: Sampler, prompts: list[list[int]], **how: Any) -> list[Sampled]:
    """Return the answers in the order of their prompts."""
    answers: dict[int, Sampled] = {}
    for batch in sampler.batches(prompts, **how):
        answers |= batch
    return [answers[place] for place in range(len(prompts))]


def test_greedy_answers_of_a_deepseek_are_those_of_generate(
    sampler: Sampler, prompts: list[list[int]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(SAMPLE, dtype=torch.float32)
    some = [0, 1, 4, 5]
    expected = by_generate(model, [prompts[row] for row in some], 128)
    assert len({len(prompt) for prompt in prompts}) > 3  # so there is padding, at the left
    assert len({len(answer) for answer in expected}) > 3  # and rows leave at different steps
    answers = sample(sampler, prompts, **GREEDY, batch_size=8)
    assert [answers[row].ids for row in some] == expected
    assert solved(answers) == len(SUMS)


def test_greedy_answers_of_a_dense_student_are_those_of_generate(
    tokenizer: Any, prompts: list[list[int]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=END,
        pad_token_id=2,
    )
    student = Qwen2ForCausalLM(config).eval()
    student.save_pretrained(tmp_path)
    sampler = Sampler(tmp_path, tokenizer)
    answers = sample(sampler, prompts, **GREEDY | {"max_tokens": 90}, batch_size=5)
    # 90 tokens outgrow the cache's first room, of NOISE_STEPS tokens more than the prompt
    assert ids_of(answers) == by_generate(student, prompts, 90)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_an_answer_depends_on_its_seed_and_place_alone(
    sampler: Sampler, prompts: list[list[int]], top_p: float
) -> None:
    how: dict[str, Any] = {"temperature": 3.0, "top_p": top_p, "max_tokens": 25}
    eight = ids_of(sample(sampler, prompts, **how, seed=3, batch_size=8))
    assert ids_of(sample(sampler, prompts, **how, seed=3, batch_size=3)) == eight
    assert ids_of(sample(sampler, prompts, **how, seed=4, batch_size=8)) != eight
    parts = sampler.batches(prompts[4:], **how, seed=3, batch_size=8, first=4)
    answers = {place: answer.ids for part in parts for place, answer in part.items()}
    assert [answers[place] for place in range(4, 8)] == eight[4:]
    same = ids_of(sample(sampler, [prompts[5]] * 4, **how, seed=3, batch_size=8))
    assert len({tuple(ids) for ids in same}) > 1


def test_a_batch_that_is_done_is_skipped_and_changes_no_other(
    sampler: Sampler, prompts: list[list[int]]
) -> None:
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 20, "seed": 0}
    every = list(sampler.batches(prompts, **how, batch_size=3))
    assert [len(batch) for batch in every] == [3, 3, 2]
    done = {*every[1], next(iter(every[0]))}
    assert list(sampler.batches(prompts, **how, batch_size=3, done=done)) == [every[0], every[2]]


def test_an_answer_ends_at_the_limit_or_where_positions_do(
    sampler: Sampler, prompts: list[list[int]]
) -> None:
    (cut,) = sample(sampler, prompts[:1], **GREEDY | {"max_tokens": 5}, batch_size=1)
    assert (len(cut.ids), cut.finish_reason) == (5, "length")
    whole = sample(sampler, prompts[:1], **GREEDY, batch_size=1)[0]
    assert whole.finish_reason == "stop"
    assert whole.ids[:5] == cut.ids
    assert whole.ids[-1] == END
    assert not whole.text.endswith("<｜end▁of▁sentence｜>")
    long = prompts[0] * 70  # the model has 512 positions
    for kept, room in ((509, 3), (512, 0), (len(long), 0)):
        both = [prompts[0], long[:kept]]
        short, full = sample(sampler, both, **GREEDY, batch_size=2)
        assert short == whole
        assert (len(full.ids), full.finish_reason) == (room, "length")


def test_every_end_token_of_the_generation_config_ends_and_so_does_the_templates(
    copy: Path, tokenizer: Any, prompts: list[list[int]]
) -> None:
    config = copy / "generation_config.json"
    (closer,) = tokenizer.encode("</think>", add_special_tokens=False)
    config.write_text(json.dumps({"eos_token_id": [2, closer]}))
    first = sample(Sampler(copy, tokenizer), prompts, **GREEDY, batch_size=8)[0]
    assert first.ids[-1] == closer
    assert (first.text[-1], first.finish_reason) == ("\n", "stop")
    config.write_text(json.dumps({"eos_token_id": 2}))
    second = sample(Sampler(copy, tokenizer), prompts, **GREEDY, batch_size=8)[0]
    assert (second.ids[-1], second.finish_reason) == (END, "stop")


def test_special_tokens_stay_in_the_text(copy: Path, prompts: list[list[int]]) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = True  # <think> too, as some tokenizers have it
    (copy / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(copy)
    answer = sample(Sampler(copy, tokenizer), prompts, **GREEDY, batch_size=8)[0]
    assert answer.text.startswith("<think>\n")
    assert answer.text.count("</think>") == 1


def test_bfloat16_and_fp8_blocks_are_sampled_too(
    sample_fp8: Path, tokenizer: Any, prompts: list[list[int]]
) -> None:
    for folder, precision in ((sample_fp8, "float32"), (SAMPLE, "bfloat16")):
        sampler = Sampler(folder, tokenizer, precision=precision)  # type: ignore[arg-type]
        assert sampler.model.dtype == getattr(torch, precision)
        answers = sample(sampler, prompts, **GREEDY, batch_size=8)
        assert solved(answers) >= len(SUMS) - 1  # rounded weights may slip once


@pytest.mark.gpu
def test_greedy_answers_on_a_gpu_are_those_of_the_cpu(
    sampler: Sampler, tokenizer: Any, prompts: list[list[int]]
) -> None:
    on_gpu = Sampler(SAMPLE, tokenizer, device="cuda")
    assert next(on_gpu.model.parameters()).is_cuda
    answers = sample(on_gpu, prompts, **GREEDY, batch_size=8)
    assert ids_of(answers) == ids_of(sample(sampler, prompts, **GREEDY, batch_size=8))
    drawn = GREEDY | {"temperature": 1.5, "top_p": 0.95}
    again = [sample(on_gpu, prompts, **drawn, batch_size=8) for _ in range(2)]
    assert again[0] == again[1] != answers


@pytest.mark.gpu
def test_bfloat16_and_fp8_blocks_are_sampled_on_a_gpu(
    sample_fp8: Path, tokenizer: Any, prompts: list[list[int]]
) -> None:
    for folder, precision in (
        (sample_fp8, "float32"),
        (sample_fp8, "bfloat16"),
        (SAMPLE, "bfloat16"),
    ):
        sampler = Sampler(folder, tokenizer, precision=precision, device="cuda")  # type: ignore[arg-type]
        assert sampler.model.dtype == getattr(torch, precision)
        answers = sample(sampler, prompts, **GREEDY, batch_size=8)
        assert solved(answers) >= len(SUMS) - 1


def test_an_incomplete_folder_is_refused(copy: Path, tokenizer: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.2.self_attn.o_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DstoolsError, match=r"1 weights are missing.*layers\.2\.self_attn\.o_proj"):
        Sampler(copy, tokenizer)
    (copy / "config.json").unlink()
    with pytest.raises(DstoolsError, match="cannot be loaded"):
        Sampler(copy, tokenizer)


# ------------------------------------------------------------------------------------------- draw


def drawn(shares: list[float], top_p: float, uniform: float) -> int:
    logits = torch.tensor([shares]).log()
    return int(draw(logits, top_p, torch.tensor([uniform], dtype=torch.float64)))


@pytest.mark.parametrize(
    ("top_p", "uniform", "token"),
    [
        (1.0, 0.0, 1),  # token 0 has no share at all
        (1.0, 0.19, 1),
        (1.0, 0.21, 2),
        (1.0, 0.69, 2),
        (1.0, 0.71, 3),
        (1.0, 1 - 2**-53, 3),
        (0.7, 0.624, 2),  # the nucleus is 0.5 and 0.3; their sum 0.8: 0.5 / 0.8 = 0.625
        (0.7, 0.626, 3),
        (0.7, 1 - 2**-53, 3),
        (0.49, 0.99, 2),  # one token is enough
        (0.0, 0.99, 2),  # and there always is one
        (0.81, 0.99, 1),  # 0.8 is not
    ],
)
@pytest.mark.parametrize("first_tokens", [1, 2, 1024])
def test_the_token_is_the_one_whose_interval_has_the_number(
    top_p: float, uniform: float, token: int, first_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "FIRST_TOKENS", first_tokens)
    assert drawn([0.0, 0.2, 0.5, 0.3], top_p, uniform) == token


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 1.0),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_is_in_the_nucleus(logits: list[float], top_p: float, uniform: float) -> None:
    scores = torch.tensor([logits])
    token = int(draw(scores, top_p, torch.tensor([uniform], dtype=torch.float64)))
    shares = torch.softmax(scores.double(), -1)[0]
    above = float(
        shares[shares > shares[token] * (1 + 1e-5)].sum()
    )  # float32 orders near ties as it likes
    assert above < top_p + 1e-5
    assert shares[token] > 0
