"""Samples that someone else has made: in a file, or beside the prompts."""

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, counted, printable
from dstools_distill import records
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.reply import ConflictError, received
from dstools_distill.teachers.teacher import NO_REFERENCE, Answer, Ask, Failed, Outcomes, Teacher

logger = logging.getLogger(__name__)


def references(samples: int) -> Teacher:
    """Return a teacher that repeats the answers that came with a prompt, if any did.

    Those beyond the `samples` that are asked of each prompt are counted in a warning.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        unused, longest = 0, 0
        for ask in asks:
            given = records.replies(ask.prompt)
            if ask.sample == 0:
                unused += max(len(given) - samples, 0)
                longest = max(longest, len(given))
            if ask.number not in done and ask.sample >= len(given):
                yield ask.number, Failed(NO_REFERENCE)
            elif ask.number not in done:
                raw, reason = given[ask.sample]
                yield ask.number, received({"content": raw}, reason, None, prefilled=False)
        if unused:
            logger.warning(
                "%s of the prompts' own not used: one has %d, and generate.samples is %d",
                counted(unused, "answer"), longest, samples,
            )  # fmt: skip

    return answers


def replay(path: Path) -> Teacher:
    """Return a teacher that reads its samples from a JSONL file.

    A line names its prompt by {"id"} of the prompts stage or by {"prompt"}, the text of its last
    message; of both, by either. It has the answer as {"raw"}, or as {"answer"} or {"content"} with
    a trace beside it (records.TRACES), read as an endpoint's (`received`), and may have
    {"finish_reason", "prefilled_think", "usage"} and the name of the model that answered (TELLERS);
    so records of an earlier `generate` can be replayed. Lines of one prompt are its samples, in
    order; lines that no prompt takes are counted in a warning. The teacher raises DstoolsError with
    the line if a prompt or an answer is missing, where one answer has several traces, or where
    `raw` has an answer or a trace beside it that is not in it.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        places = _places(path)
        taken: set[int] = set()
        with path.open("rb") as file:
            for ask in asks:
                text = ask.prompt["messages"][-1]["content"]
                samples = places.get(_key("id", ask.prompt["id"]))
                samples = samples or places.get(_key("prompt", text)) or []
                if ask.sample >= len(samples):
                    if ask.number not in done:
                        detail = f"{path}, which has {len(samples)} for it"
                        yield ask.number, Failed("not in the file", detail)
                    continue
                number, offset = samples[ask.sample]
                taken.add(number)
                if ask.number in done:
                    continue
                file.seek(offset)
                row = records.parse(file.readline(), path, number)
                yield ask.number, replayed(row, path, number)
        if left := sorted({number for lines in places.values() for number, _ in lines} - taken):
            logger.warning(
                "%s: %s not used, in line %d first: no prompt of this run asks for it, or "
                "generate.samples is too small",
                path, counted(len(left), "answer"), left[0],
            )  # fmt: skip

    return answers


def _places(path: Path) -> dict[bytes, list[tuple[int, int]]]:
    """Return line number and byte offset of each sample in a file, by the key of its prompt."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                row = records.parse(line, path, number)
                kinds = [kind for kind in ("id", "prompt") if kind in row]
                if not kinds or not all(isinstance(row[kind], str) for kind in kinds):
                    raise DstoolsError(f"{path}: line {number}: does not name its prompt", UNNAMED)
                replayed(row, path, number)  # raises before anything is written
                for kind in kinds:  # an id of another recipe's is not in this one
                    places.setdefault(_key(kind, row[kind]), []).append((number, offset))
            offset += len(line)
    return places


UNNAMED = (
    'add "id" or "prompt", a string; if the rows hold questions and answers, name the file in '
    "[[prompts.source]] and no generate.model"
)


def _key(kind: str, text: str) -> bytes:
    return sha256(f"{kind} {' '.join(text.split())}".encode()).digest()[:16]


def replayed(row: dict[str, Any], path: Path, number: int) -> Answer:
    """Return the sample in a line of a file; DstoolsError with the line if it has no answer."""
    contents = [key for key in ("raw", "answer", "content") if key in row]
    content = next((key for key in contents if isinstance(row[key], str | list)), None)
    if content is None and any(isinstance(row.get(key), str) for key in records.TRACES):
        content = next((key for key in contents if row[key] is None), None)  # cut in its trace
    if content is None:
        read = ", ".join(f"{key} {type(row[key]).__name__}" for key in contents)
        names = read or f"among {printable(', '.join(row))}"
        raise DstoolsError(f"{path}: line {number}: has no answer: {names}", _answer_hint(row))
    try:
        traces = {key: records.trace(row, key) for key in records.TRACES}
    except ValueError as error:
        hint = "write a line for each, or keep one"
        raise DstoolsError(f"{path}: line {number}: {error}", hint) from None
    message = {"content": row[content]}
    if content != "raw":
        message |= traces | {"reasoning_details": row.get("reasoning_details")}
    for key in ("answer", "content", *records.TRACES) if content == "raw" else ():
        part = traces.get(key, row.get(key))
        if isinstance(part, str) and part.strip() not in str(row["raw"]):
            problem = f"{path}: line {number}: {key} is not a part of raw"
            raise DstoolsError(problem, KEEP_ONE)
    try:
        prefilled = row.get("prefilled_think", False) is True
        told = received(message, row.get("finish_reason"), row.get("usage"), prefilled=prefilled)
        return told._replace(teacher=_told_teacher(row))
    except ValueError as error:
        hint = KEEP_ONE if isinstance(error, ConflictError) else ANSWER_HINT
        raise DstoolsError(f"{path}: line {number}: {content} {error}", hint) from None


def _told_teacher(row: dict[str, Any]) -> Record | None:
    """Return name and revision of the model that a line says it is of; None if it does not say.

    A record of `generate` has both; others have a name alone.
    """
    for key in TELLERS:
        value = row.get(key)
        teacher = value if isinstance(value, dict) else {"name": value}
        name, revision = teacher.get("name"), teacher.get("revision")
        if isinstance(name, str) and name.strip():
            known = revision if isinstance(revision, str) else None
            return {"name": name.strip(), "revision": known}
    return None


TELLERS = ("teacher", "generator", "model")  # columns for the model that answered; the first counts


def _answer_hint(row: dict[str, Any]) -> str:
    """Return what to do about a line without an answer, which may be what a server sent."""
    choices = row.get("choices")
    if "custom_id" in row:
        return 'answers to batch requests are read by generate.backend = "openai-batch"'
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict) and "delta" in first:
        return f"these are pieces of a stream: join those of each answer; {ANSWER_HINT}"
    if isinstance(first, dict):
        return f"this is a server's reply: take choices[0].message of it; {ANSWER_HINT}"
    return ANSWER_HINT


KEEP_ONE = "either may be the sample; keep one of them"
ANSWER_HINT = 'add "raw", or "reasoning" and "answer", or "reasoning_content" and "content"'
