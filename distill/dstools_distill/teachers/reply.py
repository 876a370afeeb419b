"""Replies of servers, and samples in files: one text of an answer with its reasoning."""

import json
from typing import Any

from dstools_converters.errors import printable
from dstools_converters.model.reasoning import CLOSE, OPEN, thought
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers.teacher import Answer, Failed


def received(message: dict[str, Any], finish_reason: Any, usage: Any, *, prefilled: bool) -> Answer:
    """Return the sample in an assistant's message, of a server or of a file.

    The content may come in parts. A trace in a key of its own (records.TRACES), or in a part, is
    put back before the answer, unless the answer holds it already. A text that closes a trace
    without opening it continues an opener that the server's template wrote. A refusal is an answer
    that ended so. A token that ends it is cut off (`records.without_end`). Halves of a character,
    which JSON can hold and UTF-8 cannot, become U+FFFD where the answer was cut. Raises ValueError
    for them elsewhere, for traces that differ, and for another content.
    """
    part, content = records.message_parts(message.get("content"))
    if not content and isinstance(message.get("refusal"), str) and message["refusal"]:
        content, finish_reason = message["refusal"], "refusal"
    traces = {"content": part} | {key: message.get(key) for key in records.TRACES}
    texts = {
        key: text
        for key, text in traces.items()
        if isinstance(text, str) and text and text.strip().lower() not in records.MODES
    }
    if len({text.strip() for text in texts.values()} - {""}) > 1:
        raise ValueError(f"comes with traces that differ, in {' and '.join(texts)}")
    reasoning = next(iter(texts.values()), None)
    if reasoning and CLOSE in content and reasoning.strip() in content:
        reasoning = None
    ended = records.how_ended(finish_reason)
    raw, end_token = records.without_end(thought(reasoning, content, prefilled))
    try:  # halves that belong together are one character
        errors = "replace" if ended == "length" else "strict"
        raw = raw.encode("utf-16", "surrogatepass").decode("utf-16", errors)
    except UnicodeDecodeError:
        raise ValueError("holds half of a character") from None
    prefilled = prefilled or (OPEN not in raw and raw.count(CLOSE) == 1)
    return Answer(raw, ended, prefilled, tokens(usage), end_token=end_token)


def answer(body: Any, settings: Generate) -> Answer:
    """Return the sample in the body of a chat completion, as `received` reads it.

    A prefilled opener that the server repeats, as llama.cpp does, is removed. Raises ValueError if
    the body is not a chat completion, and UnreadError if it was paid for, but cannot be read.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or (body.get("error") and not choices):
        kind = UnreadError if is_paid(body) else ValueError
        raise kind("the answer is not a chat completion")
    try:
        choice = choices[0]
        message = {"content": None, **choice["message"]}
    except (KeyError, IndexError, TypeError):
        lack = "a message" if choices else "a choice"
        raise UnreadError(f"the answer is not a chat completion: without {lack}") from None
    if settings.prefill_think and isinstance(message["content"], str):
        message["content"] = message["content"].removeprefix(f"{OPEN}\n")
    try:
        return received(
            message,
            choice.get("finish_reason"),
            body.get("usage"),
            prefilled=settings.prefill_think,
        )
    except ValueError as error:
        raise UnreadError(f"the content {error}") from None


def is_paid(body: Any) -> bool:
    """Return whether a reply without choices counts tokens, as an answer of another API does."""
    is_reply = isinstance(body, dict) and not body.get("error")
    return is_reply and isinstance(body.get("usage"), dict)


class UnreadError(ValueError):
    """A chat completion came, and was paid for, but its answer cannot be read."""


def unread(error: ValueError, body: Any) -> Failed:
    """Return the outcome that keeps the body, so that it need not be asked for again."""
    return Failed(f"answer not read: {printable(str(error))}", body=json.dumps(body))


def tokens(usage: Any) -> dict[str, int] | None:
    """Return the prompt and completion tokens of a usage object; None if it has neither.

    Other counts, of cached tokens, depend on the order of requests.
    """
    if not isinstance(usage, dict):
        return None
    names = ("prompt_tokens", "completion_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int)} or None
