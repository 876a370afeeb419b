"""Words of tool calls are counted in a render, and text under unknown keys is found."""

import json
from typing import Any

import pytest

from dstools_converters.model.beside import missing_calls, squeeze, unknown_texts


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
        ]
    }


ONE = call("weather", {"city": "Paris", "days": 3, "unit": None})
WORDS = len("weather" + "city" + "days" + "Paris")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('{"name": "weather", "arguments": {"city": "Paris", "days": 3}}', 0),
        ("<function=weather><parameter=city>Paris</parameter><parameter=days>3</parameter>", 0),
        ("weather", len("city" + "days" + "Paris")),
        ("", WORDS),
    ],
)
def test_a_call_is_its_name_and_the_keys_and_strings_of_its_arguments(
    text: str, missing: int
) -> None:
    assert missing_calls([ONE], text, []) == (WORDS, missing)
    (function,) = (entry["function"] for entry in ONE["tool_calls"])
    for other in (
        call("weather", json.dumps(function["arguments"])),
        {"function_call": function},
        {"tool_calls": [function]},
    ):
        assert missing_calls([other], text, []) == (WORDS, missing)


def test_words_are_counted_as_often_as_they_are_called() -> None:
    twice, text = [ONE, ONE], "weather city Paris days"
    assert missing_calls(twice, f"{text} {text}", []) == (2 * WORDS, 0)
    assert missing_calls(twice, text, []) == (2 * WORDS, WORDS)
    # the user asked for the weather in Paris
    assert missing_calls([ONE], f"Paris weather: {text}", ["Paris weather:"]) == (WORDS, 0)
    assert missing_calls([ONE], "Paris weather: city days", ["Paris weather:"])[1] == 12


@pytest.mark.parametrize("calls", [None, [], [None], {}, [{}], [{"function": {}}], "", [["", 7]]])
def test_calls_that_say_nothing_have_no_characters(calls: Any) -> None:
    assert missing_calls([{"tool_calls": calls}], "", []) == (0, 0)


def test_calls_of_another_shape_are_their_strings() -> None:
    for calls in (["print me"], "print me", [["print me"]], call("", "print me")["tool_calls"]):
        assert missing_calls([{"tool_calls": calls}], "", []) == (8, 8)


def test_texts_of_unknown_keys_are_found_at_any_depth() -> None:
    deep: Any = "a  long\nthought"
    for _ in range(5000):
        deep = [deep]
    message = ONE | {"role": "assistant", "content": "an answer of words", "id": "a b", "x": deep}
    assert list(unknown_texts(message)) == [("x", "a long thought")]
    assert squeeze(" a  long\nthought ") == "a long thought"
