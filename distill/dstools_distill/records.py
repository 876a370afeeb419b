"""The record: one JSON object a line, to which stages add fields and never rewrite one.

| stage | fields |
|---|---|
| prompts | id, source, licence, messages, gold, answer_type, task, difficulty, reference |
| generate | sample, teacher, sampling, raw, reasoning, answer, finish_reason, prefilled_think, usage |
| verify | verdict, verdict_reason, checkers, steps, language, repetition |
| decontaminate | contamination |
| select | drop_reason (in dropped.jsonl alone), split |

`messages` end with a user's. `gold` is a text or null, `answer_type` says how it is compared. `task` is null
or {"name", "config", "entry"} of reasoning-gym. `reference` is null or the answer that came with the
prompt, which `generate` replays. `raw` is the teacher's text, verbatim, without a prefilled opener; `split`
takes it apart into reasoning and answer, and `join` gives it back to the byte.
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
    """Yield the records of a JSONL file; blank lines are passed over.

    Raises DstoolsError with file and line where one is no JSON object.
    """
    for number, line in lines(path):
        yield parse(line, path, number)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and bytes of each line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "is the path right?") from None
    except IsADirectoryError:
        raise DstoolsError(f"{path}: is a folder", "name a file of it") from None


def parse(line: bytes, path: Path, number: int) -> Record:
    """Return the object in a line: UTF-8, no key twice, no NaN, no half of a surrogate pair."""
    try:
        found = strict_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if b"\\u" in line:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = printable(error.msg if isinstance(error, json.JSONDecodeError) else str(error))
        raise DstoolsError(f"{path}: line {number}: is no JSON: {reason}", BAD_LINE) from None
    if not isinstance(found, dict):
        raise DstoolsError(f"{path}: line {number}: is no JSON object", BAD_LINE)
    return found


BAD_LINE = "mend or remove the line; nothing was written from this file"


def dump(record: Record) -> bytes:
    """Return the line that `parse` reads; equal records give equal bytes."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def extended(line: bytes, fields: Record) -> bytes:
    """Return a line of `dump` with fields added; the same as dumping it again, in a tenth of the time."""
    return line.rstrip().removesuffix(b"}") + b", " + dump(fields)[1:]


def write(path: Path, records: Iterable[Record]) -> int:
    """Write a JSONL file and return the number of its records."""
    count = 0
    with path.open("wb") as file:
        for record in records:
            file.write(dump(record))
            count += 1
    return count


class Parts(NamedTuple):
    """A teacher's text, taken apart. raw == join(parts)."""

    reasoning: str | None  # between the tags, verbatim; None: not one well-formed think block
    answer: str  # all after the closing tag, verbatim; the whole text where reasoning is None


def split(raw: str, prefilled: bool) -> Parts:
    """Take a text apart at its one think block; `prefilled`: the opener stands in the prompt.

    A block is well formed where the opener comes first (white space may precede it), the closer follows, and
    neither comes again. Tags that are written otherwise are no tags.
    """
    opens, closes = raw.count(OPEN), raw.count(CLOSE)
    head, _, rest = ("", "", raw) if prefilled else raw.partition(OPEN)
    if opens != (0 if prefilled else 1) or closes != 1 or head:
        return Parts(None, raw)
    reasoning, closer, answer = rest.partition(CLOSE)
    return Parts(reasoning, answer) if closer else Parts(None, raw)


def join(parts: Parts, prefilled: bool) -> str:
    """Return the text that `split` took apart."""
    if parts.reasoning is None:
        return parts.answer
    return f"{'' if prefilled else OPEN}{parts.reasoning}{CLOSE}{parts.answer}"


def thought(reasoning: Any, answer: str, prefilled: bool) -> str:
    """Return the text that a reasoning parser, or a data set with a key for it, took apart.

    Many take the line feeds at the tags with them. Where there is none on a tag's side, it gets those of
    DeepSeek-R1, "<think>\\n...\\n</think>\\n\\n...", so that one trace is one text wherever it comes from; those
    that are there stay. `prefilled`: the opener and its line feed stand in the prompt. Without an answer
    nothing tells that the trace was closed, so it is not. `reasoning` is as in JSON; no text, or an empty
    one, is none.
    """
    if not isinstance(reasoning, str) or not reasoning:
        return answer
    before = reasoning.removesuffix(reasoning.lstrip())
    behind = reasoning.removeprefix(reasoning.rstrip())
    between = answer.removesuffix(answer.lstrip())
    opener = "" if prefilled else OPEN + "\n" * ("\n" not in before)
    closer = "\n" * ("\n" not in behind) + CLOSE + "\n\n" * ("\n" not in between)
    return f"{opener}{reasoning}{closer if answer else ''}{answer}"


def prompt_id(messages: list[dict[str, str]], source: str) -> str:
    """Return 32 hexadecimal digits of the sha256 of what is asked, and from where."""
    said = json.dumps([source, normalised(messages)], ensure_ascii=False)
    return sha256(said.encode()).hexdigest()[:32]


def normalised(messages: list[dict[str, str]]) -> list[list[str]]:
    """Return roles and contents, runs of white space as one blank."""
    return [[message["role"], " ".join(message["content"].split())] for message in messages]
