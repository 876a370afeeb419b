"""Greedy answers are those of transformers; drawn ones depend on seed and place alone."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import prompt_ids
from dstools_converters.runtime.decode import Loop
from dstools_converters.runtime.sampling import Sampling
from dstools_distill.teachers import sampling, teacher
from dstools_distill.teachers.sampling import Sampled, Sampler
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
# of 200 greedy answers in float32 by transformers' model with its latents absorbed
ANSWERS_SHA256 = "2effeda1b4ad9a3bfa192e4b369c22ff099a6a53dcc2c760baba6e31d52b2303"
GREEDY: dict[str, Any] = {"sampling": Sampling(), "max_tokens": 128}
pytestmark = pytest.mark.usefixtures("one_thread")


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
    answers = dict(sampler.answers(prompts, **how))
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


@pytest.mark.slow
def test_200_greedy_answers_are_those_of_transformers_modules(
    sampler: Sampler, tokenizer: Any
) -> None:
    """Of a batch of 128 and one of 72, padded at the left, of which ended rows left."""
    lines = SAMPLE.with_name("sample-v3-heldout.jsonl").read_text().splitlines()[:200]
    asked = [prompt_ids(tokenizer, json.loads(line)["messages"][:-1]) for line in lines]
    answers = ids_of(sample(sampler, asked, **GREEDY, batch_size=128))
    assert sum(map(len, answers)) == 12_055
    assert hashlib.sha256(json.dumps(answers).encode()).hexdigest() == ANSWERS_SHA256


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
    assert ids_of(answers) == by_generate(student, prompts, 90)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_an_answer_depends_on_its_seed_and_place_alone(
    sampler: Sampler, prompts: list[list[int]], top_p: float
) -> None:
    three, four = (
        {"sampling": Sampling(3.0, top_p, seed), "max_tokens": 25, "batch_size": 8}
        for seed in (3, 4)
    )
    eight = ids_of(sample(sampler, prompts, **three))
    assert ids_of(sample(sampler, prompts, **three | {"batch_size": 3})) == eight
    assert ids_of(sample(sampler, prompts, **four)) != eight
    answers = dict(sampler.answers(prompts[4:], **three, first=4))
    assert [answers[place].ids for place in range(4, 8)] == eight[4:]
    same = ids_of(sample(sampler, [prompts[5]] * 4, **three))
    assert len({tuple(ids) for ids in same}) > 1


def test_a_window_that_is_done_is_skipped_and_another_runs_whole(
    sampler: Sampler, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "WINDOW_BATCHES", 1)  # places 0 to 2, 3 to 5, 6 and 7
    ran: list[list[int]] = []

    class Watched(Loop):
        def run(self, requests: Any) -> Any:
            ran.append([request.prompt_index for request in requests])
            return super().run(requests)

    monkeypatch.setattr(sampling, "Loop", Watched)
    how: dict[str, Any] = {"sampling": Sampling(1.0), "max_tokens": 20, "batch_size": 3}
    whole = dict(sampler.answers(prompts, **how))
    assert [sorted(places) for places in ran] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    order, ran[:] = list(ran), []
    missing = {place: whole[place] for place in (1, 6, 7)}
    assert dict(sampler.answers(prompts, **how, done=whole.keys() - missing.keys())) == missing
    assert ran == [order[0], order[2]]


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


@pytest.mark.parametrize("takes_codes", [False, True])
def test_fp8_is_kept_as_codes_where_generate_keeps_it(
    takes_codes: bool,
    sample_fp8: Path,
    tokenizer: Any,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "takes_codes", lambda dtype, device: takes_codes)
    sampler = Sampler(sample_fp8, tokenizer, precision="bfloat16")
    dtypes = {parameter.dtype for parameter in sampler.serving.parameters()}
    assert (torch.float8_e4m3fn in dtypes) == takes_codes
    (answer,) = sample(sampler, prompts[:1], **GREEDY, batch_size=1)
    assert answer.text.partition("</think>")[2].strip() == "13"


def test_bfloat16_and_fp8_blocks_are_sampled_too(
    sample_fp8: Path, tokenizer: Any, prompts: list[list[int]]
) -> None:
    for folder, precision in ((sample_fp8, "float32"), (SAMPLE, "bfloat16")):
        sampler = Sampler(folder, tokenizer, precision=precision)  # type: ignore[arg-type]
        weight = sampler.serving.decoder.model.embed_tokens.weight
        assert weight.dtype == getattr(torch, precision)
        answers = sample(sampler, prompts, **GREEDY, batch_size=8)
        assert solved(answers) >= len(SUMS) - 1  # rounded weights may slip once


@pytest.mark.gpu
def test_greedy_answers_on_a_gpu_are_those_of_the_cpu(
    sampler: Sampler, tokenizer: Any, prompts: list[list[int]]
) -> None:
    on_gpu = Sampler(SAMPLE, tokenizer, device="cuda")
    assert next(on_gpu.serving.parameters()).is_cuda
    answers = sample(on_gpu, prompts, **GREEDY, batch_size=8)
    assert ids_of(answers) == ids_of(sample(sampler, prompts, **GREEDY, batch_size=8))
    drawn = GREEDY | {"sampling": Sampling(1.5, 0.95)}
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
        weight = sampler.serving.decoder.model.embed_tokens.weight
        assert weight.dtype == getattr(torch, precision)
        answers = sample(sampler, prompts, **GREEDY, batch_size=8)
        assert solved(answers) >= len(SUMS) - 1


WAY_ROUND = "any other model can be sampled from an endpoint that serves it"


def test_an_incomplete_folder_is_refused_without_the_way_round(copy: Path, tokenizer: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.2.self_attn.o_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DstoolsError, match=r"cannot be loaded: .*layers\.2\.self_attn\.o_proj"
    ) as error:
        Sampler(copy, tokenizer)
    assert WAY_ROUND not in error.value.hint
    (copy / "config.json").unlink()
    with pytest.raises(DstoolsError, match="cannot be loaded") as error:
        Sampler(copy, tokenizer)
    assert WAY_ROUND not in error.value.hint


def test_a_tied_model_with_another_head_is_refused(copy: Path, tokenizer: Any) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(DstoolsError, match=r"cannot be loaded: .*lm_head\.weight: differs from"):
        Sampler(copy, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
    ],
)
def test_what_the_decoder_lacks_is_refused_with_the_way_round(
    change: dict[str, Any], message: str, copy: Path, tokenizer: Any
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DstoolsError, match=message) as error:
        Sampler(copy, tokenizer)
    assert error.value.hint.endswith(f"; {WAY_ROUND}")


def test_an_answer_whose_logits_are_not_finite_ends_alone(
    tokenizer: Any, prompts: list[list[int]]
) -> None:
    sampler = Sampler(SAMPLE, tokenizer)
    embedding = sampler.serving.decoder.model.embed_tokens.weight
    whole = sample(sampler, prompts, **GREEDY, batch_size=8)
    known = {token for ids in [*prompts, *ids_of(whole)] for token in ids}
    rare = next(token for token in range(320) if token not in known)
    broken = [*prompts[0][:-1], rare, prompts[0][-1]]
    embedding[rare] = torch.nan
    first, *others = sample(sampler, [broken, *prompts[1:]], **GREEDY, batch_size=8)
    assert first == Sampled([], "", "error")
    assert others == whole[1:]
