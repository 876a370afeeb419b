"""A teacher that is asked through files in the format of OpenAI's Batch API, which vLLM reads too.

    {"custom_id": "7-0-1f3c...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"custom_id": "7-0-1f3c...", "response": {"status_code": 200, "body": {...}}, "error": null}

The first run writes requests. Once the answers are in the same folder, the next run reads them and
writes requests for what is missing. Source: platform.openai.com, guides, batch.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import RESUME_HINT, DstoolsError, printable
from dstools_converters.files import replacing
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.endpoint import PASSING
from dstools_distill.teachers.reply import (
    NoCompletionError,
    UnreadError,
    answer,
    completion,
    server_words,
    unread,
)
from dstools_distill.teachers.request import request
from dstools_distill.teachers.teacher import (
    REFUSED,
    Ask,
    Missed,
    Outcome,
    Outcomes,
    Teacher,
    accepting,
)

logger = logging.getLogger(__name__)
REQUESTS, ANSWERS = "requests", "answers"  # file names: NAME*.jsonl
MAX_LINES, MAX_BYTES = 50_000, 200_000_000  # OpenAI's limits for a file


def batch_files(settings: Generate, folder: Path, total: int) -> Teacher:
    """Return a teacher that reads answers to `total` samples from `folder`/answers*.jsonl.

    The teacher raises DstoolsError, with what to do next, after it has written requests for the
    samples without an answer. Those that expired, or met an error that may pass, are asked for
    again, unless every other one is answered and settings.max_failed accepts their loss.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        answered = _Answers(folder, total)
        lost: dict[int, Missed] = {}
        with ExitStack() as files:
            requests = _Requests(folder, files)
            for ask in asks:
                if ask.number in done:
                    continue
                outcome = answered.outcome(ask, settings)
                if isinstance(outcome, Missed) and not outcome.reason.startswith(REFUSED):
                    lost[ask.number] = outcome
                if outcome is None or ask.number in lost:
                    line = {"custom_id": _custom_id(ask), "method": "POST"}
                    body = request(settings, ask)
                    requests.add({**line, "url": "/v1/chat/completions", "body": body})
                else:
                    yield ask.number, outcome
        _remove(folder, REQUESTS, but=requests.names)
        if requests.count == len(lost) <= settings.max_failed * total:
            _remove(folder, REQUESTS)
            yield from lost.items()
        elif requests.count:
            is_all_asked = requests.count == len(lost)
            way = f"; or {accepting(len(lost), total)}" if is_all_asked else ""
            counts = Counter(outcome.reason for outcome in lost.values())
            words = "".join(f", {count} of them: {why}" for why, count in sorted(counts.items()))
            raise DstoolsError(
                f"{requests.count} of {total} samples have no answer yet{words}; "
                f"the requests are in {folder}: {', '.join(requests.names)}",
                f"send each file as a batch and save its answers as {folder / ANSWERS}-1.jsonl "
                f"and so on; then {RESUME_HINT}" + way,
            )

    return answers


def remove_batch_files(folder: Path) -> None:
    """Remove requests and answers, once everything in them is in the records."""
    _remove(folder, REQUESTS)
    _remove(folder, ANSWERS)


def _remove(folder: Path, name: str, but: Collection[str] = ()) -> None:
    for pattern in (f"{name}*.jsonl", f".{name}*.partial"):  # and what a kill left
        for path in folder.glob(pattern):
            if path.name not in but:
                path.unlink()


def completions(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield request and reply of each answer in a folder to a request that is there, too.

    Lines that cannot be read, as those that a kill or a download cut, are named in a warning.
    """
    asked = {str(row.get("custom_id")): row.get("body") for row in _rows(folder, REQUESTS)}
    for row in _rows(folder, ANSWERS):
        body = asked.get(str(row.get("custom_id")))
        if isinstance(body, dict) and _is_answered(row):
            yield body, row["response"].get("body")


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{name}*.jsonl")):
        for number, line in records.lines(path):
            try:
                yield records.parse(line, path, number)
            except DstoolsError as error:
                logger.warning("%s; it is left out", error)


def _custom_id(ask: Ask) -> str:
    return f"{ask.number}-{ask.sample}-{ask.prompt['id']}"


class _Answers:
    """The answers in the files of a folder, by the numbers of their samples."""

    def __init__(self, folder: Path, total: int) -> None:
        self.places: dict[int, _Place] = {}
        for path in sorted(folder.glob(f"{ANSWERS}*.jsonl")):
            offset = 0
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.isspace():
                        self._note(records.parse(line, path, number), path, number, offset, total)
                    offset += len(line)

    def _note(self, row: dict[str, Any], path: Path, number: int, offset: int, total: int) -> None:
        name = row.get("custom_id")
        digits = str(name).partition("-")[0]
        if not (digits.isdecimal() and digits.isascii() and int(digits) < total):
            raise _not_ours(path, number, name)
        place = _Place(path, number, offset, _answer_digest(row))
        other = self.places.setdefault(int(digits), place)
        if place.answer and not other.answer:
            self.places[int(digits)] = place  # asked twice: an answer wins
        elif place.answer and place.answer != other.answer:
            raise DstoolsError(
                f"{path}: line {number}: custom_id {printable(str(name))} has another answer in "
                f"{other.path.name}, line {other.number}",
                "keep one of the two lines",
            )

    def outcome(self, ask: Ask, settings: Generate) -> Outcome | None:
        """Return the outcome of a sample; None if there is no line for it."""
        if ask.number not in self.places:
            return None
        path, number, offset, _ = self.places[ask.number]
        with path.open("rb") as file:
            file.seek(offset)
            row = records.parse(file.readline(), path, number)
        if row["custom_id"] != _custom_id(ask):
            raise _not_ours(path, number, row["custom_id"])
        response = row.get("response")
        if not isinstance(response, dict):
            kind, words = server_words(row.get("error"))
            return Missed(printable(kind or "no response"), printable(words))
        status, body = response.get("status_code"), response.get("body")
        if _is_answered(row):
            try:
                return answer(body, settings)
            except UnreadError as error:
                return unread(error, body)
            except NoCompletionError as error:
                return Missed(printable(error.reason), printable(str(error)))
        kind, words = server_words(body.get("error") if isinstance(body, dict) else None)
        reason = printable(f"{status} {kind}".strip())
        is_passing = not isinstance(status, int) or status in PASSING or status >= 500
        return Missed(reason if is_passing else REFUSED + reason, printable(words))


class _Place(NamedTuple):
    """Where the line of a sample is."""

    path: Path
    number: int  # of the line, from 1
    offset: int  # of its first byte
    answer: bytes  # digest; b"" without an answer


def _answer_digest(row: dict[str, Any]) -> bytes:
    """Return a digest of the choices of an answer, whatever ids and times are beside them."""
    try:
        body = completion(row["response"].get("body") if _is_answered(row) else None)
    except NoCompletionError:
        return b""
    said = body.get("choices", body) if isinstance(body, dict) else body
    return sha256(json.dumps(said, sort_keys=True).encode()).digest()[:16]


def _is_answered(row: dict[str, Any]) -> bool:
    response = row.get("response")
    return isinstance(response, dict) and response.get("status_code") == 200


def _not_ours(path: Path, number: int, name: Any) -> DstoolsError:
    return DstoolsError(
        f"{path}: line {number}: custom_id {name!r:.80} is not of a request of this run",
        BAD_ANSWERS,
    )


BAD_ANSWERS = "keep only unchanged answers to the requests in the same folder"


class _Requests:
    """Files of requests, which replace those of an earlier run when `files` is left.

    After an error or a kill before that the earlier ones are unchanged: other runs find the
    requests of answers by them.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder, self.files = folder, files
        self.names: list[str] = []
        self.count = 0
        self.lines, self.bytes = MAX_LINES, 0

    def add(self, row: dict[str, Any]) -> None:
        """Append a request to the last file, or to a new one if that is full."""
        line = records.dump(row)
        if self.lines == MAX_LINES or self.bytes + len(line) > MAX_BYTES:
            self.names.append(f"{REQUESTS}-{len(self.names) + 1}.jsonl")
            self.file = self.files.enter_context(replacing(self.folder / self.names[-1]))
            self.lines = self.bytes = 0
        self.file.write(line)
        self.lines, self.bytes, self.count = self.lines + 1, self.bytes + len(line), self.count + 1
