"""A local model yields the samples that are not done, as it would have drawn them in one run."""

from pathlib import Path
from typing import Any

import pytest

from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers import sampling
from dstools_distill.teachers import teacher as module
from dstools_distill.teachers.teacher import Answer, Ask, Failed, in_process

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
PROBLEMS = ["5 + 8", "977 - 899 + 576", "12 + 30", "97 + 97 + 33", "640 - 215"]
PROMPTS: list[records.Record] = [
    {
        "id": f"{row:032x}",
        "messages": [
            {
                "role": "user",
                "content": f"State the final answer to the following arithmetic problem: {text} =",
            }
        ],
        "reference": None,
    }
    for row, text in enumerate(PROBLEMS)
]
ASKS = [Ask(row * 2 + n, n, prompt) for row, prompt in enumerate(PROMPTS) for n in range(2)]
HF = Generate(backend="hf", model="sample-v3", temperature=3.0, max_tokens=20, batch_size=4)


# ------------------------------------------------------------------------------------- in_process


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_model_draws_what_it_would_have_drawn(
    outcomes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_BATCHES", 1)  # windows of 4, 4 and 2 samples
    teacher = in_process(HF, SAMPLE)
    whole = outcomes(teacher, ASKS)
    assert sorted(whole) == list(range(10))
    done = (0, 1, 2, 3, 4, 5, 6, 7, 9)
    resumed = outcomes(teacher, ASKS, logged=done)
    assert set(resumed) - set(done) == {8}
    assert resumed == {number: whole[number] for number in resumed}
    assert whole[8] != whole[9]  # two samples of a prompt


def test_no_model_is_loaded_where_every_sample_is_done(
    outcomes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "Sampler", None)
    assert outcomes(in_process(HF, SAMPLE), ASKS, logged=tuple(range(10))) == {}


@pytest.mark.usefixtures("one_thread")
def test_a_prompt_that_fills_the_context_fails_alone(outcomes: Any) -> None:
    """The sample model has 512 positions."""
    long = {"messages": [{"role": "user", "content": "5 + 8 =" * 200}]}
    asks = [Ask(0, 0, long), Ask(1, 0, PROMPTS[0])]
    yielded = outcomes(in_process(HF, SAMPLE), asks)
    assert yielded[0] == Failed("the prompt fills the model's context")
    assert isinstance(yielded[1], Answer)
