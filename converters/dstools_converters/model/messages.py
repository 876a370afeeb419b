"""Conversations as text: the chat template, with the reasoning in.

Templates differ in what they do with an assistant's reasoning. Some write a turn as it is
(DeepSeek-V3), some take the reasoning from a key of its own (Qwen3), and some cut it out
(DeepSeek-R1), because serving does not show it again. In calibration and evaluation the last
answer is what the model generates, so its reasoning is in, as `dstools distill render` has it.
Earlier turns are what the template makes of them, as in serving.
"""

from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_converters.model.beside import CALL_KEYS, missing_calls, squeeze, unknown_texts
from dstools_converters.model.reasoning import (
    CLOSE,
    OPEN,
    Parts,
    answer_after,
    plain_opening,
    split,
    thought,
)
from dstools_converters.model.tokenizer import chat_text

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
ANSWER = "the answer of the probe"  # not part of any template
ROW_HINT = 'a line is {"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}'


class Turn(NamedTuple):
    """A message."""

    message: dict[str, Any]  # role, tool calls and the like, without content and reasoning
    parts: Parts  # of the content
    text: str  # the content, with the reasoning in
    original: dict[str, Any] | None = None  # as the row has it; None: from a record


class Conversation(NamedTuple):
    """Turns up to the last of the assistant, or all of them if it has none."""

    turns: list[Turn]
    is_answered: bool  # the assistant has the last turn of the row


class Rendered(NamedTuple):
    """A conversation as text; the counts are characters of the assistant's turns in all."""

    text: str
    characters: int
    dropped: int  # not in `text`
    earlier_reasoning: int  # not in `text` either: the reasoning of turns before the last
    unread: int = 0  # nor these, the text of keys that are not known
    unread_key: str = ""  # the first of those
    doubled: str = ""  # a token of the template's own at the beginning or end of a content


# -------------------------------------------------------------------------------------- reading


def read_conversation(row: dict[str, Any]) -> Conversation:
    """Return the turns in a row's `messages`, and in the `raw` of a record of `dstools distill`.

    A content is a text, or a list of {"type": "text", "text": ...}. The reasoning of an assistant's
    turn is in its content, between <think> and </think> (the opening tag may be missing, where the
    prompt held it), or in one of REASONING_KEYS. Keys with null are ignored: Parquet has every key
    in every row. Raises DstoolsError, which names neither file nor line, for anything else, and
    where the record has another answer than the messages.
    """
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DstoolsError("messages must be a list of messages", ROW_HINT)
    turns = [
        _turn(f"messages[{n}]", message)._replace(original=message)
        for n, message in enumerate(messages)
    ]
    keys, recorded = _recorded(row)
    if not _is_assistants(turns[-1]):
        turns += recorded
    elif (
        recorded and (keys == "raw" or row["reasoning"]) and _said(recorded[0]) != _said(turns[-1])
    ):
        raise DstoolsError(
            f"the last of messages is another answer than {keys}",
            f"keep one of them: remove {keys}, or remove the last of messages",
        )
    last = max((n for n, turn in enumerate(turns) if _is_assistants(turn)), default=None)
    if last is None:
        return Conversation(turns, False)
    return Conversation(turns[: last + 1], last + 1 == len(turns))


def _recorded(row: dict[str, Any]) -> tuple[str, list[Turn]]:
    """Return the keys in which a record has its answer, and the answer, if there is one."""
    raw, reasoning, answer = (row.get(key) for key in ("raw", "reasoning", "answer"))
    if isinstance(raw, str) and raw.strip():
        return "raw", [_assistants({"role": "assistant"}, raw, None)]
    if isinstance(answer, str) and "reasoning" in row:
        return "reasoning and answer", [_assistants({"role": "assistant"}, answer, reasoning)]
    return "", []


def _said(turn: Turn) -> tuple[str, str]:
    """Return reasoning and answer of a turn without the white space that spellings differ in."""
    return squeeze(turn.parts.reasoning or ""), squeeze(turn.parts.answer)


def _turn(where: str, message: Any) -> Turn:
    """Return a message as a turn. Raises DstoolsError, naming `where`, if it is not one."""
    if not isinstance(message, dict) or "role" not in message:
        raise DstoolsError(f"{where} must have role and content", ROW_HINT)
    rest = {key: value for key, value in message.items() if value is not None}
    rest["role"] = plain_text(f"{where}.role", message["role"])
    content = rest.pop("content", None)
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    reasoning = None
    for key in REASONING_KEYS:
        value = rest.pop(key, None)
        if isinstance(value, str) and value.strip() and reasoning is None:
            reasoning = plain_text(f"{where}.{key}", value)
    speaks = reasoning or any(rest.get(key) for key in CALL_KEYS)
    if rest["role"] == "assistant" and speaks and not content:
        return _assistants(rest, "", reasoning)
    if content is None:
        raise DstoolsError(f"{where} must have role and content", ROW_HINT)
    if rest["role"] in ("user", "assistant"):  # a system prompt or a tool's result may be empty
        content = plain_text(f"{where}.content", content)
    elif not isinstance(content, str):
        raise DstoolsError(f"{where}.content is not a string", ROW_HINT)
    if rest["role"] == "assistant":
        return _assistants(rest, content, reasoning)
    return Turn(rest, Parts(None, content), content)


def _is_text_part(part: Any) -> bool:
    is_text = isinstance(part, dict) and part.get("type") == "text"
    return is_text and isinstance(part.get("text"), str)


def plain_text(where: str, value: Any) -> str:
    """Return `value` if it is a text that is not blank and can be encoded as UTF-8.

    Raises DstoolsError, naming `where`, if it is not.
    """
    if not isinstance(value, str):
        raise DstoolsError(f"{where} is not a string", ROW_HINT)
    if not value.strip():
        raise DstoolsError(f"{where} is empty", "remove the line")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DstoolsError(
            f"{where} holds half a surrogate pair", "write the character as UTF-8"
        ) from None
    return value


def _assistants(message: dict[str, Any], content: str, reasoning: Any) -> Turn:
    """Return an assistant's turn; a think block in the content goes before a reasoning beside it.

    reasoning: a JSON value, anything but a text that is not blank counts as none.
    """
    parts = split(content.lstrip(), prefilled=OPEN not in content)
    if parts.reasoning is not None and OPEN in content:
        return Turn(message, parts, content)
    if parts.reasoning is None and isinstance(reasoning, str) and reasoning.strip():
        parts = Parts(reasoning, content)
    if parts.reasoning is None:
        return Turn(message, parts, content)
    text = thought(parts.reasoning, parts.answer or "\n\n", prefilled=False)
    end = text.rindex(CLOSE, 0, len(text) - len(parts.answer))
    return Turn(message, Parts(text[len(OPEN) : end], text[end + len(CLOSE) :]), text)


def _is_assistants(turn: Turn) -> bool:
    is_it: bool = turn.message["role"] == "assistant"
    return is_it


# ------------------------------------------------------------------------------------ rendering


def render(tokenizer: Any, turns: list[Turn]) -> Rendered:
    """Return the text of a conversation, the reasoning of its last answer included.

    A template is given the reasoning in a key of the message, then in the content. If it writes
    neither whole, the last answer is put after the prompt of the template as serving has it, in
    the way of `dstools distill render`. Raises DstoolsError, which names neither file nor line,
    where the template refuses the messages. The tokenizer must have a template.
    """
    text = _text(tokenizer, turns)
    squeezed = before = squeeze(text)  # `before`: not yet accounted for, from its end
    characters = dropped = earlier = 0
    for turn in filter(_is_assistants, reversed(turns)):
        for field in ("answer", "reasoning"):
            wanted = squeeze(getattr(turn.parts, field) or "")
            characters += len(wanted)
            place = before.rfind(wanted)
            if place >= 0:
                before = before[:place]
            elif field == "reasoning" and turn is not turns[-1]:
                earlier += len(wanted)
            else:
                dropped += len(wanted)
    answers = [turn for turn in turns if _is_assistants(turn) and turn.original]
    contents = [squeeze(part or "") for turn in turns for part in turn.parts]
    others = [content for content in contents if content and content in squeezed]
    calls = missing_calls([turn.original or {} for turn in answers], squeezed, others)
    unread = [
        (key, len(words))
        for turn in answers
        for key, words in unknown_texts(turn.original or {})
        if words not in squeezed and words not in squeeze(turn.text)
    ]
    unread_characters = sum(count for _, count in unread)
    return Rendered(
        text,
        characters + calls[0] + unread_characters,
        dropped + calls[1],
        earlier,
        unread_characters,
        unread[0][0] if unread else "",
        _doubled(tokenizer, turns, text),
    )


def _doubled(tokenizer: Any, turns: list[Turn], rendered: str) -> str:
    """Return a token at the beginning or end of a content that the template writes as well.

    Such a content went through a template before. "" without one.
    """
    contents = [turn.text.strip() for turn in turns]
    for token in map(str, tokenizer.get_added_vocab()):
        if not token.strip() or token in (OPEN, CLOSE):
            continue
        at_an_end = any(text.startswith(token) or text.endswith(token) for text in contents)
        if at_an_end and rendered.count(token) > sum(text.count(token) for text in contents):
            return token
    return ""


def _text(tokenizer: Any, turns: list[Turn]) -> str:
    """Return the text of a conversation by the first way in which the last answer is whole."""
    thinks = bool((turns[-1].parts.reasoning or "").strip())
    if not _is_assistants(turns[-1]):
        return chat_text(tokenizer, [_keyed(turn) for turn in turns])
    for form in (_keyed, _inline):
        messages = [form(turn) for turn in turns]
        text = chat_text(tokenizer, messages, thinks=thinks)
        head = chat_text(tokenizer, messages[:-1], thinks=thinks) if messages[1:] else ""
        if _has_last_answer(text, head, turns):
            return text
    return _spliced(tokenizer, turns, thinks)


def _keyed(turn: Turn) -> dict[str, Any]:
    """Return the message with its reasoning in the keys that templates take it from."""
    reasoning, answer = turn.parts
    if reasoning is None:
        return {**turn.message, "content": answer}
    keys = dict.fromkeys(REASONING_KEYS, reasoning.strip("\n"))
    return {**turn.message, **keys, "content": answer.lstrip("\n")}


def _inline(turn: Turn) -> dict[str, Any]:
    """Return the message with its reasoning in the content."""
    return _keyed(turn) if turn.parts.reasoning is None else {**turn.message, "content": turn.text}


def _has_last_answer(text: str, head: str, turns: list[Turn]) -> bool:
    """Return whether `text` has the last answer whole, and its reasoning in one think block.

    head: the text of the turns before it
    """
    reasoning, answer = (squeeze(part or "") for part in turns[-1].parts)
    blocks = 1 + reasoning.count(CLOSE) + answer.count(CLOSE)
    if text.startswith(head):
        text = text.removeprefix(head)
    else:
        blocks += sum(turn.text.count(CLOSE) for turn in turns[:-1])
    squeezed = squeeze(text)
    start = squeezed.find(reasoning)
    is_whole = start >= 0 and squeezed.find(answer, start + len(reasoning)) >= 0
    return is_whole and text.count(CLOSE) <= blocks


def _spliced(tokenizer: Any, turns: list[Turn], thinks: bool) -> str:
    """Return the prompt of the last answer, the answer, and what the template writes after one."""
    history, last = [_keyed(turn) for turn in turns[:-1]], turns[-1]
    probe = [*history, {**last.message, "content": ANSWER}]
    before, marker, after = chat_text(tokenizer, probe, thinks=thinks).rpartition(ANSWER)
    if not marker:
        after = tokenizer.eos_token or ""
    prompt = before
    if history:
        prompt = chat_text(tokenizer, history, thinks=thinks, add_generation_prompt=True)
    if thinks and prompt.rstrip().endswith(CLOSE):  # a template that never thinks
        prompt = prompt.rstrip().removesuffix(CLOSE).rstrip().removesuffix(OPEN)
    if not thinks and last.text.lstrip().startswith(OPEN):  # unfinished, or several blocks
        return prompt.rstrip().removesuffix(OPEN) + last.text + after
    plain = plain_opening(prompt, before)
    return prompt + answer_after(prompt, last.parts, plain).text + after
