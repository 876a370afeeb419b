"""A request says everything that decides a sample, and its key changes with any of it."""

from dataclasses import replace
from typing import Any

import pytest

from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers.request import request, request_key
from dstools_distill.teachers.teacher import Ask

PLAIN = Generate(backend="openai", model="m", seed=5, max_tokens=9)
HI = {"role": "user", "content": "hi"}


def key(settings: Generate, ask: Ask) -> str:
    return request_key(request(settings, ask))


def test_a_request_holds_everything_that_decides_a_sample() -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = request(PLAIN, Ask(13, 3, {"messages": messages}))
    assert body == {
        "model": "m",
        "messages": messages,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 9,
        "seed": 8,
    }
    body = request(replace(PLAIN, prefill_think=True), Ask(13, 3, {"messages": messages}))
    assert body["messages"] == [
        *messages,
        {"role": "assistant", "content": "<think>\n", "prefix": True},
    ]
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert len(messages) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"max_tokens": 10},
        {"seed": 6},
        {"prefill_think": True},
    ],
)
def test_another_setting_of_sampling_is_another_request(changes: dict[str, Any]) -> None:
    ask = Ask(0, 0, {"messages": [HI]})
    assert key(replace(PLAIN, **changes), ask) != key(PLAIN, ask)


def test_another_text_is_another_request() -> None:
    system = {"role": "system", "content": "Be brief."}
    asked = [[HI], [system, HI], [{"role": "system", "content": "Be long."}, HI], [system]]
    keys = {key(PLAIN, Ask(0, 0, {"messages": messages})) for messages in asked}
    assert len(keys) == len(asked)


def test_a_key_does_not_depend_on_what_the_server_is_not_told() -> None:
    """A sample of another seed may be the same request: the server is told the sum."""
    prompt = {"messages": [HI], "source": "here", "licence": "unknown"}
    first = key(PLAIN, Ask(7, 3, prompt))
    assert key(replace(PLAIN, seed=8), Ask(0, 0, prompt)) == first
    told = replace(PLAIN, licence="mit", samples=9, backend="openai-batch", base_url="http://b/v1")
    assert key(told, Ask(2, 3, prompt | {"licence": "mit", "id": "b"})) == first
