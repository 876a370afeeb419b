"""Replies of servers, and samples in files: one text of an answer with its reasoning."""

import json
import logging
from functools import cache
from typing import Any

from dstools_converters.errors import printable
from dstools_converters.model.reasoning import CLOSE, OPEN, thought, without_tags
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers.teacher import Answer, Failed

logger = logging.getLogger(__name__)


def received(message: dict[str, Any], finish_reason: Any, usage: Any, *, prefilled: bool) -> Answer:
    """Return the sample in an assistant's message, of a server or of a file.

    The content may come in parts. A trace in a key of its own (records.TRACES), or in a part, is
    put back before the answer, unless the answer holds it already; the one in the entries of
    OpenRouter's `reasoning_details` too, where no other is given. Think tags around a whole trace
    are taken off, and so is a token that ends the text (`records.without_end`). A text that closes
    a trace without opening it continues an opener that the server's template wrote. A refusal is an
    answer that ended so. Halves of a character, which JSON can hold and UTF-8 cannot, become U+FFFD
    where the answer was cut. Raises ValueError for them elsewhere, and for another content;
    ConflictError for traces that differ, and for an opener that `prefilled` says is in the prompt.
    """
    part, content = records.message_parts(message.get("content"))
    if not content and isinstance(message.get("refusal"), str) and message["refusal"]:
        content, finish_reason = message["refusal"], "refusal"
    traces = {"content": part} | {key: message.get(key) for key in records.TRACES}
    texts = {
        key: without_tags(text)
        for key, text in traces.items()
        if isinstance(text, str) and text and text.strip().lower() not in records.MODES
    }
    if len({text.strip() for text in texts.values()} - {""}) > 1:
        raise ConflictError(f"comes with traces that differ, in {' and '.join(texts)}")
    if not texts and (detailed := _detailed(message.get("reasoning_details"))):
        texts = {"reasoning_details": without_tags(detailed)}
    where, reasoning = next(iter(texts.items()), ("", None))
    opens = content.lstrip().startswith(OPEN)
    closes = CLOSE in content and OPEN not in content.partition(CLOSE)[0]
    if reasoning and (opens or CLOSE in content) and reasoning.strip() in content:
        reasoning = None
    if reasoning and (opens or closes):
        raise ConflictError(f"comes with a trace of its own, and another one in {where}")
    if prefilled and opens:
        raise ConflictError("opens a trace that the prompt has opened, as prefilled_think says")
    ended = records.how_ended(finish_reason)
    raw, end_token = records.without_end(thought(reasoning, content, prefilled))
    try:  # halves that belong together are one character
        errors = "replace" if ended == "length" else "strict"
        raw = raw.encode("utf-16", "surrogatepass").decode("utf-16", errors)
    except UnicodeDecodeError:
        raise ValueError("holds half of a character") from None
    prefilled = prefilled or (OPEN not in raw and raw.count(CLOSE) == 1)
    return Answer(raw, ended, prefilled, tokens(usage), end_token=end_token)


def _detailed(details: Any) -> str:
    """Return the trace in a list of pieces; "" where there is only a summary, or ciphertext.

    Source: openrouter.ai, reasoning tokens: {"type": "reasoning.text", "text"}.
    """
    pieces = details if isinstance(details, list) else []
    texts = [
        piece["text"]
        for piece in pieces
        if isinstance(piece, dict) and isinstance(piece.get("text"), str)
    ]
    return "".join(texts)


class ConflictError(ValueError):
    """A message whose parts contradict one another, so that either may be the sample."""


def answer(reply: Any, settings: Generate) -> Answer:
    """Return the sample in a reply, text or JSON of a chat completion, as `received` reads it.

    A prefilled opener that the server repeats, as llama.cpp does, is removed. Raises
    NoCompletionError as `completion` does, and UnreadError for a reply that was paid for, but
    cannot be read.
    """
    body = completion(reply)
    if isinstance(body, str):
        kind = "is a stream, which was not asked for"
        raise UnreadError(f"the answer {kind if is_utf8(body) else 'is not UTF-8'}")
    choices = body.get("choices")
    if not isinstance(choices, list):
        raise UnreadError("the answer is not a chat completion")
    if len(choices) > 1:
        _warn_of_choices(len(choices))
    try:
        choice = choices[0]
        message = {"content": None, **choice["message"]}
    except (KeyError, IndexError, TypeError):
        lack = "a message" if choices else "a choice"
        raise UnreadError(f"the answer is not a chat completion: without {lack}") from None
    content = message["content"]
    if settings.prefill_think and isinstance(content, str) and content.lstrip().startswith(OPEN):
        message["content"] = content.lstrip().removeprefix(OPEN).removeprefix("\n")
    try:
        return received(
            message,
            choice.get("finish_reason"),
            body.get("usage"),
            prefilled=settings.prefill_think,
        )
    except ValueError as error:
        raise UnreadError(f"the content {error}") from None


@cache
def _warn_of_choices(count: int) -> None:
    """Log, once a process, that a server gives more answers than it was asked for."""
    logger.warning(
        "a reply holds %d choices, and one was asked for: the first is the sample, and those after "
        "it are not used",
        count,
    )


class NoCompletionError(ValueError):
    """A reply with the status 200 that is not a chat completion: of a proxy, or cut short."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason  # as in Failed


SHOWN = 200  # characters of a reply


def completion(reply: Any) -> Any:
    """Return the body of a reply, a text or JSON: with choices, or paid for without them.

    What was paid for and is not JSON stays text: a stream of events, and bytes that are not UTF-8,
    decoded with "surrogateescape". Raises NoCompletionError, by kind, for anything else.
    """
    text, body = (reply, None) if isinstance(reply, str) else (json.dumps(reply), reply)
    if isinstance(reply, str):
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            if is_stream(text):
                return text
            raise NoCompletionError("200, not JSON", text[:SHOWN] or "nothing") from None
    table = body if isinstance(body, dict) else {}
    if table.get("error") and not table.get("choices"):
        kind, words = server_words(table["error"])
        raise NoCompletionError(f"200 with an error {kind}".strip(), words)
    if not (isinstance(table.get("choices"), list) or is_paid(table)):
        raise NoCompletionError("200, no chat completion", text[:SHOWN])
    return body if is_utf8(text) else text


def server_words(fault: Any) -> tuple[str, str]:
    """Return the kind of a server's error, and what the server says of it, "" where unknown."""
    table = fault if isinstance(fault, dict) else {}
    kind, words = table.get("type") or table.get("code"), table.get("message") or fault
    return str(kind or ""), str(words or "")


def is_stream(text: str) -> bool:
    """Return whether a reply is a stream of events, or of comments that keep it open."""
    return text.lstrip().startswith(("data:", "event:", ":"))


def is_utf8(text: str) -> bool:
    """Return whether a text decoded with "surrogateescape" was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
