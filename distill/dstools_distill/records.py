"""Records: one JSON object per line. Stages add fields and never change existing ones.

| stage | fields |
|---|---|
| prompts | id, source, licence, messages, gold, answer_type, task, difficulty, reference |
| generate | sample, teacher, sampling, raw, reasoning, answer, finish_reason, |
| | prefilled_think, usage |
| verify | verdict, verdict_reason, checkers, steps, language, repetition |
| decontaminate | contamination |
| select | drop_reason (in dropped.jsonl alone), split |

`messages` end with a user's message. `gold` is a string or null; `answer_type` is how to compare
it. `task` is null or {"name", "config", "entry"} of reasoning-gym. `reference` is null or the
answer that came with the prompt, which `generate` can replay. `raw` is the teacher's text,
verbatim, without a prefilled opening tag; `split` divides it into reasoning and answer, and `join`
restores it exactly.
"""

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json

Record = dict[str, Any]
OPEN, CLOSE = "<think>", "</think>"


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
        reason = printable(error.msg if isinstance(error, json.JSONDecodeError) else str(error))
        raise DstoolsError(
            f"{path}: line {number}: is not valid JSON: {reason}", BAD_LINE
        ) from None
    if not isinstance(record, dict):
        raise DstoolsError(f"{path}: line {number}: is not a JSON object", BAD_LINE)
    return record


BAD_LINE = "fix or remove the line; nothing was written from this file"


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


class Parts(NamedTuple):
    """The two parts of a teacher's text: raw == join(parts, prefilled)."""

    reasoning: str | None  # between the tags, verbatim; None: not one well-formed think block
    answer: str  # all after the closing tag, verbatim; the whole text if reasoning is None


def split(raw: str, prefilled: bool) -> Parts:
    """Divide a text at its one think block; `prefilled`: the opening tag is part of the prompt.

    A block is well formed if the text begins with the opening tag, a closing tag follows, and both
    occur once. Other spellings of the tags do not count.
    """
    opens, closes = raw.count(OPEN), raw.count(CLOSE)
    head, _, rest = ("", "", raw) if prefilled else raw.partition(OPEN)
    if opens != (0 if prefilled else 1) or closes != 1 or head:
        return Parts(None, raw)
    reasoning, closer, answer = rest.partition(CLOSE)
    return Parts(reasoning, answer) if closer else Parts(None, raw)


def join(parts: Parts, prefilled: bool) -> str:
    """Return the text that `split` divided."""
    if parts.reasoning is None:
        return parts.answer
    return f"{'' if prefilled else OPEN}{parts.reasoning}{CLOSE}{parts.answer}"


def thought(reasoning: Any, answer: str, prefilled: bool) -> str:
    """Return one text for reasoning and answer that a parser or a data set keeps separately.

    Many of them drop the line feeds next to the tags. Missing ones are added as in DeepSeek-R1,
    "<think>\\n...\\n</think>\\n\\n...", so that a trace is the same text wherever it comes from;
    existing ones are kept. `prefilled`: the opening tag and its line feed are part of the prompt.
    Without an answer the trace may be unfinished, so it is not closed. `reasoning` is a JSON value;
    anything but a non-empty string counts as no reasoning.
    """
    if not isinstance(reasoning, str) or not reasoning:
        return answer
    before = reasoning.removesuffix(reasoning.lstrip())
    after = reasoning.removeprefix(reasoning.rstrip())
    between = answer.removesuffix(answer.lstrip())
    opener = "" if prefilled else OPEN + "\n" * ("\n" not in before)
    closer = "\n" * ("\n" not in after) + CLOSE + "\n\n" * ("\n" not in between)
    return f"{opener}{reasoning}{closer if answer else ''}{answer}"


def prompt_id(messages: list[dict[str, str]], source: str) -> str:
    """Return the id of a prompt: 32 hexadecimal digits of the sha256 of its source and messages."""
    asked = json.dumps([source, normalised(messages)], ensure_ascii=False)
    return sha256(asked.encode()).hexdigest()[:32]


def normalised(messages: list[dict[str, str]]) -> list[list[str]]:
    """Return role and content of each message, with single blanks for white space."""
    return [[message["role"], " ".join(message["content"].split())] for message in messages]
