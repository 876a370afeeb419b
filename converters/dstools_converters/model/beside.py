"""Text that a model generates beside the content of a message: tool calls, and unknown keys.

A chat template writes it or ignores it; what is ignored is counted by looking for it in the render.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

CALL_KEYS = ("tool_calls", "function_call")
MAX_LABEL_WORDS = 2  # an id, a date and the name of a model are not text


def squeeze(text: str) -> str:
    """Return `text` with single blanks for white space, which templates trim."""
    return " ".join(text.split())


def missing_calls(messages: list[dict[str, Any]], text: str, others: list[str]) -> tuple[int, int]:
    """Return the characters in the calls of all `messages`, and how many of them `text` lacks.

    A call is its name and the keys and strings of its arguments, which templates write as JSON, as
    XML or in a way of their own. text: the render. others: the contents that are in it and may hold
    the same words. Both are squeezed.
    """
    calls = Counter(word for message in messages for word in _words(message))
    characters = missing = 0
    for word, wanted in calls.items():
        forms = {word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]}
        spellings = {squeeze(form) for form in forms}
        found = sum(text.count(s) - sum(other.count(s) for other in others) for s in spellings)
        characters += wanted * len(squeeze(word))
        missing += max(0, wanted - found) * len(squeeze(word))
    return characters, missing


def _words(message: dict[str, Any]) -> Iterator[str]:
    """Yield the words of a message's calls."""
    for key in CALL_KEYS:
        calls = message.get(key)
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function", call) if isinstance(call, dict) else call
            if not isinstance(function, dict):
                yield from _strings(function)
                continue
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                with suppress(ValueError, RecursionError):  # it is looked for as it is
                    arguments = json.loads(arguments)
            yield from _strings([function.get("name"), arguments], with_keys=True)


def unknown_texts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a message's keys besides role, content and calls, each with its key.

    Text is what has more than MAX_LABEL_WORDS words or is not ASCII, as Chinese has no blanks.
    """
    for key, value in message.items():
        if key not in ("role", "content", *CALL_KEYS):
            for text in map(squeeze, _strings(value)):
                if len(text.split()) > MAX_LABEL_WORDS or not text.isascii():
                    yield key, text


def _strings(value: Any, *, with_keys: bool = False) -> Iterator[str]:
    """Yield the strings in a JSON value that are not blank."""
    values = [value]
    while values:  # no recursion: a file may be nested deeply
        value = values.pop()
        if isinstance(value, str) and value.strip():
            yield value
        elif isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            known = {key: item for key, item in value.items() if item is not None}
            values += [*known.values(), *(known if with_keys else ())]
