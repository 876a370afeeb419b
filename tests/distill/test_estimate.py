"""The sizes of results: counted where they are done, bounded where they are not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_distill.estimate import Size, Sizes, expected, measured
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import read_recipe

Finish = Callable[..., Path]
SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"
RECIPE = f"""
[student]
model = "{SAMPLE}"
[[prompts.source]]
path = "asked.jsonl"
[[prompts.source]]
path = "rg:chain_sum"
size = 7
[generate]
backend = "replay"
samples = 3
max_tokens = 10
[verify]
[select]
non_reasoning = "chat.jsonl"
[render]
max_length = 100
[sft]
precision = "bfloat16"
optimizer = "muon"
ema = 0.9
[grpo]
[[eval.source]]
path = "asked.jsonl"
[eval]
limit = 3
samples = 2
max_tokens = 10
"""


def size(tmp_path: Path, stage: str, earlier: Sizes, text: str = RECIPE) -> Size:
    (tmp_path / "asked.jsonl").write_text('{"a": 1}\n' * 5)
    (tmp_path / "chat.jsonl").write_text("{}\n\n{}\n")  # 7 bytes
    (tmp_path / "a.toml").write_text(text)
    places = Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", Path)
    return expected(places, places.recipe.chains[0], stage, earlier)


def test_prompts_are_as_many_as_lines_and_problems_or_as_the_limit(tmp_path: Path) -> None:
    assert size(tmp_path, "prompts", {}) == Size(12, 2 * 45 + 7 * 1024)
    limited = RECIPE.replace("[generate]", "[prompts]\nlimit = 4\n[generate]")
    assert size(tmp_path, "prompts", {}, limited).rows == 4
    unknown = RECIPE.replace("rg:chain_sum", "datasets:org/name")
    assert size(tmp_path, "prompts", {}, unknown) == Size()


def test_answers_are_at_most_the_samples_of_each_prompt_and_as_long_as_allowed(
    tmp_path: Path,
) -> None:
    wanted = Size(15, 3 * 400 + 150 * 8, 150, peak_bytes=2 * (3 * 400 + 150 * 8))
    assert size(tmp_path, "generate", {"prompts": Size(5, 400)}) == wanted
    assert size(tmp_path, "generate", {"prompts": Size()}) == Size()


def test_rows_are_no_more_than_those_before_and_those_mixed_in(tmp_path: Path) -> None:
    assert size(tmp_path, "verify", {"generate": Size(6, 600)}) == Size(6, 600 + 6 * 512)
    assert size(tmp_path, "select", {"verify": Size(6, 600)}) == Size(8, 614)
    limited = RECIPE.replace("[select]", "[select]\nlimit = 2")
    assert size(tmp_path, "select", {"verify": Size(6, 600)}, limited).rows == 2
    assert size(tmp_path, "render", {"select": Size(6, 10_000)}) == Size(6, 600 * 8, 600)
    assert size(tmp_path, "render", {"select": Size(6, 500)}) == Size(6, 500 * 8, 500)


def test_a_training_takes_the_model_and_two_checkpoints(tmp_path: Path) -> None:
    with open_checkpoint(SAMPLE) as checkpoint:
        count = sum(info.numel for info in checkpoint.tensors.values())
    # bfloat16 weights and a float32 average; in a checkpoint also masters and two moments
    wanted = Size(6, count * 6, 600, count, count * (6 + 2 * (6 + 12)))
    assert size(tmp_path, "sft", {"render": Size(6, 4800, 600)}) == wanted
    earlier = {"prompts": Size(5, 400), "sft": Size(6, parameters=1000)}
    assert size(tmp_path, "grpo", earlier) == Size(5, 4000, None, 1000, 4000 + 2 * 12_000)


def test_the_size_of_a_new_student_is_not_known(tmp_path: Path) -> None:
    new = f'init = {{ model_type = "qwen3" }}\ntokenizer = "{SAMPLE}"'
    text = RECIPE.replace(f'model = "{SAMPLE}"', new)
    assert size(tmp_path, "sft", {"render": Size(6, 4800, 600)}, text) == Size(6, tokens=600)


def test_an_evaluation_samples_each_problem_with_each_model(tmp_path: Path) -> None:
    tokens = 3 * 2 * 2 * 10  # problems, samples, before and after
    assert size(tmp_path, "eval", {}) == Size(3, tokens * 8, tokens)


@pytest.mark.parametrize(
    ("report", "tokens"),
    [
        ({}, None),
        ({"tokens": 7}, 7),
        ({"tokens": {"completion_tokens": 9}}, 9),
        ({"tokens": {}}, None),
    ],
)
def test_a_finished_stage_is_counted(
    finish: Finish, report: dict[str, object], tokens: int | None
) -> None:
    folder = finish("sft", content="12345", out=4, parameters=11, **report)
    assert measured(folder) == Size(4, 5, tokens, 11)


def test_a_model_with_a_fitted_mtp_layer_is_as_large_as_it_was(tmp_path: Path) -> None:
    text = RECIPE.replace("[grpo]", "[mtp]")
    rendered = Size(rows=5, nbytes=100, tokens=70)
    sft = Size(rows=5, nbytes=999, tokens=70, parameters=333)
    states = 70 * 256 * 4  # and as much of padding
    wanted = replace(sft, peak_bytes=999 + 2 * states)
    assert size(tmp_path, "mtp", {"render": rendered, "sft": sft}, text) == wanted
    alone = text.replace("[sft]", "").replace(
        'precision = "bfloat16"\noptimizer = "muon"\nema = 0.9', ""
    )
    with open_checkpoint(SAMPLE) as checkpoint:
        parameters = sum(info.numel for info in checkpoint.tensors.values())
    wanted = Size(5, 4 * parameters, 70, parameters, 4 * parameters + 2 * states)
    assert size(tmp_path, "mtp", {"render": rendered}, alone) == wanted
