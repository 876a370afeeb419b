"""Records: one JSON object per line. Stages add fields and never change existing ones.

| stage | fields |
|---|---|
| prompts | id, source, licence, messages, gold, answer_type, task, difficulty, reference |
| generate | sample, teacher, sampling, raw, reasoning, answer, finish_reason, |
| | prefilled_think, usage, end_token (if one was cut off) |
| verify | verdict, verdict_reason, checkers, steps, language, repetition |
| decontaminate | contamination |
| select | drop_reason (in dropped.jsonl alone), split |

`messages` end with a user's message. `gold` is a string or null; `answer_type` is how to compare
it. `task` is null or {"name", "config", "entry"} of reasoning-gym. `reference` is what came with
the prompt, which `generate` can replay: null, an answer, or a list of {"raw", "finish_reason"}.
`raw` is the teacher's text, verbatim, without a prefilled opening tag and without the token that
ends it (`without_end`); `reasoning.split` divides it into reasoning and answer. `finish_reason` is
"stop", "length", a server's word for another end, or "unknown"; see `how_ended`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import not_utf8, strict_json
from dstools_converters.model.reasoning import CLOSE

Record = dict[str, Any]


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file, without blank lines.

    Raises DstoolsError, naming file and line, for a line that is not a JSON object.
    """
    for number, line in lines(path):
        yield parse(line, path, number)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the bytes of each line that is not blank.

    Raises DstoolsError if the file does not exist or is a folder.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "check the path") from None
    except IsADirectoryError:
        raise DstoolsError(f"{path}: is a folder", "name a file in it") from None


def parse(line: bytes, path: Path, number: int) -> Record:
    """Return the object in a line: UTF-8, no duplicate key, no NaN, no lone surrogate.

    Raises DstoolsError, naming file and line, for anything else.
    """
    try:
        record = strict_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        if number == 1 and (instead := not_utf8(line)):
            raise DstoolsError(f"{path}: {instead[0]}", instead[1]) from None
        reason = printable(error.msg if isinstance(error, json.JSONDecodeError) else str(error))
        hint = JSONL if number == 1 and line.lstrip(b" \t\xef\xbb\xbf") in NO_LINE else BAD_LINE
        raise DstoolsError(f"{path}: line {number}: is not valid JSON: {reason}", hint) from None
    if not isinstance(record, dict):
        hint = JSONL if number == 1 and isinstance(record, list) else BAD_LINE
        raise DstoolsError(f"{path}: line {number}: is not a JSON object", hint)
    return record


BAD_LINE = "fix or remove the line; nothing was written from this file"
JSONL = (
    "one object a line is read: jq -c '.[]' writes an array so, and jq -c . an object on many lines"
)
NO_LINE = (b"[\n", b"{\n", b"[\r\n", b"{\r\n")  # first lines of JSON with line breaks


def dump(record: Record) -> bytes:
    """Return the line that `parse` reads; equal records give equal bytes."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def extended(line: bytes, fields: Record) -> bytes:
    """Return a line of `dump` with fields added, ten times faster than dumping the record again."""
    return line.rstrip().removesuffix(b"}") + b", " + dump(fields)[1:]


def write(path: Path, records: Iterable[Record]) -> int:
    """Write a JSONL file; return the number of its records."""
    count = 0
    with path.open("wb") as file:
        for record in records:
            file.write(dump(record))
            count += 1
    return count


# keys of servers' messages and columns of data sets
TRACES = (
    *("reasoning_content", "reasoning", "thinking", "cot", "chain_of_thought", "complex_cot"),
    *("deepseek_reasoning", "deepseek_thinking_trajectory", "thinking_trajectories"),
    "model_reasoning",  # GeneralThought
)
MODES = (  # settings of a model, under the same names
    *("on", "off", "yes", "no", "true", "false", "enabled", "disabled", "auto", "adaptive"),
    *("none", "minimal", "low", "medium", "high", "xhigh", "max", "think", "nothink", "no_think"),
)


def trace(row: Record, key: str) -> str | None:
    """Return the trace under one of TRACES: a text, or a list of one; None: neither, or a mode.

    Raises ValueError, naming the key, for several traces.
    """
    value = row.get(key)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        if len(value) > 1:
            raise ValueError(f"{key} holds {len(value)} traces")
        value = value[0]
    is_trace = isinstance(value, str) and value.strip() and value.strip().lower() not in MODES
    return value if is_trace else None


def message_parts(content: Any) -> tuple[str | None, str]:
    """Return the reasoning, None if there is none, and the text of the content of a message.

    A content is a text, null, or parts: {"type": "text", "text"}; before them {"type": "thinking",
    "thinking"}, whose trace is a text or again parts of text; and {"type": "reference"}, a citation
    without text. Raises ValueError for any other part, and for one that thinks after a text.
    Sources: OpenAI, chat completions; Mistral, reasoning, citations; Anthropic, extended thinking.
    """
    if content is None or isinstance(content, str):
        return None, content or ""
    if not isinstance(content, list):
        raise ValueError(f"is not a string: {type(content).__name__}")
    traces, texts = list[str](), list[str]()
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind == "reference":
            continue
        inner = part.get(kind) if kind in ("text", "thinking") else None
        if kind == "thinking" and isinstance(inner, list):
            inner = message_parts(inner)[1]
        if not isinstance(inner, str):
            raise ValueError(f"is not a string: list with a part of type {kind!r}")
        if kind == "thinking" and "".join(texts).strip():
            raise ValueError("has a part that thinks after a part of the answer")
        (traces if kind == "thinking" else texts).append(inner)
    return "".join(traces) or None, "".join(texts)


# words of servers, in lower case, for a text that ended by itself, and for one that was cut.
# Sources: Together (eos), TGI and watsonx (eos_token), LM Studio (end), Anthropic (end_turn,
# max_tokens), Gemini (STOP, MAX_TOKENS), Cohere (COMPLETE)
STOPPED = ("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed")
CUT = ("length", "max_tokens", "max_length", "max_output_tokens", "model_length")


def how_ended(reason: Any, answer: str = "") -> str:
    """Return "stop" or "length" for a server's word for them, and any other word as it is.

    If no finish reason is given, as with a server's null or in a file without the word, the text
    decides: "stop" if there is an `answer`, the text after a closed think block or one without any,
    and "unknown" without. So `generate` keeps "unknown", and `verify` and `render` pass the answer.
    """
    word = reason.strip().lower().removeprefix("finish_reason_") if isinstance(reason, str) else ""
    if word in STOPPED:
        return "stop"
    if word in CUT:
        return "length"
    if not reason or word in ("", "unknown"):
        return "stop" if answer.strip() else "unknown"
    return str(reason)


# tokens of chat templates and tokenizers after an answer: of ChatML, DeepSeek, Llama, Gemma, Phi,
# gpt-oss, Kimi, Command, OpenChat, EXAONE, Seed
ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "</s>", "<|eot_id|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<|eot|>", "<eos>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>"),
    *("[EOS]", "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "[|endofturn|]", "<seed:eos>"),
)


def without_end(raw: str) -> tuple[str, str]:
    """Return a text without the tokens at its very end that end it, and the first of them, or "".

    A server or a file that keeps special tokens writes them. White space after one goes, too. In
    the middle they are text, as `</s>` is where the text opens <s>, and so is one that is all of
    the text or of what follows the trace.
    """
    token = ""
    while (text := raw.rstrip()).endswith(ENDS):
        last = next(end for end in ENDS if text.endswith(end))
        if last == "</s>" and raw.count("<s>") >= raw.count(last):
            break
        left = text.removesuffix(last)
        if not left.rpartition(CLOSE)[2].strip():
            break
        raw, token = left, last
    return raw, token


class Reply(NamedTuple):
    """An answer that came with a prompt."""

    raw: str
    finish_reason: Any = None  # the word of the file, if it has one


def reference(replies: Sequence[Reply]) -> Any:
    """Return the `reference` of a record: null, a text, or a list where that says more."""
    if not replies:
        return None
    if len(replies) == 1 and replies[0].finish_reason is None:
        return replies[0].raw
    return [reply._asdict() for reply in replies]


def replies(record: Record) -> list[Reply]:
    """Return the answers in the `reference` of a record."""
    value = record["reference"]
    if isinstance(value, list):
        return [Reply(**reply) for reply in value]
    return [] if value is None else [Reply(value)]


def prompt_id(messages: list[dict[str, str]], source: str) -> str:
    """Return the id of a prompt: 32 hexadecimal digits of the sha256 of its source and messages."""
    asked = json.dumps([source, normalised(messages)], ensure_ascii=False)
    return sha256(asked.encode()).hexdigest()[:32]


def normalised(messages: list[dict[str, str]]) -> list[list[str]]:
    """Return role and content of each message, with single blanks for white space."""
    return [[message["role"], " ".join(message["content"].split())] for message in messages]
