"""The prompts stage: gathers the questions of all sources and drops duplicates.

All rows are first read into one file. Which ones are kept is decided from about 200 bytes of each
in memory (700 with near duplicates); then the rows are written.
"""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.duplicates import FUNCTIONS, exact, near, signature
from dstools_distill.data.sources import (
    Questions,
    Reading,
    Rows,
    converted,
    dataset_rows,
    questions,
    task_rows,
)
from dstools_distill.judge.answers import compare
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Prompts, Source, Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work

logger = logging.getLogger(__name__)
READ, SIGNATURES = "read.jsonl", "signatures.bin"  # temporary; removed at the end of the stage


def prompts(settings: Prompts, inputs: Inputs, work: Work) -> Report:
    """Write the prompts of all sources to records.jsonl, in order; dropped ones to dropped.jsonl.

    Inputs: sources; pass_rates, a `verify` folder, whose ids match if prompts and file names do.
    Reasons, the first that applies: "conflicting-gold", "duplicate" (apart from white space),
    "near-duplicate", "difficulty", "limit". "duplicate_of" names the prompt that one repeats. The
    answers of duplicates are added to those of the prompt that stays.

    The report counts the rows of each source that were left out (`max_bad`), and names the columns
    that nothing was taken from. Raises DstoolsError, naming file, line and reason, for a row that
    is not a question, once a source has more than max_bad of them.
    """

    rates = {} if inputs.pass_rates is None else share_right(inputs.pass_rates)
    read = _Read(work.folder, near=settings.near_duplicates > 0)
    forms = Counter[str]()
    sources: dict[str, Report] = {}
    with closing(read), closing(Referee(Verify.timeout_seconds)) as referee:
        for source, file in zip(settings.source, inputs.sources, strict=True):
            size = source.size if source.path.startswith("rg:") else 0
            reading = Reading(source.max_bad, referee, source.first_option)
            rows = 0
            with work.bar(size, _name(source)) as progress:
                for form, record in _records(settings, source, file, rates, reading):
                    read.add(record)
                    forms[form] += 1
                    rows += 1
                    progress(1)
            _note(sources, source, reading, rows)
    reasons, others = _fates(settings, read)
    dropped = _write(work.folder, read, reasons, others)
    for name in (READ, SIGNATURES):
        (work.folder / name).unlink(missing_ok=True)
    return {
        "in": len(reasons),
        "out": len(reasons) - dropped.total(),
        "dropped": dict(sorted(dropped.items())),
        "sources": sources,
        "forms": dict(sorted(forms.items())),
        "with_gold": int(np.count_nonzero(read.golds)),
        "with_reference": read.references,
        "with_difficulty": int(np.count_nonzero(~np.isnan(read.difficulties))),
    }


def _note(sources: dict[str, Report], source: Source, reading: Reading, rows: int) -> None:
    """Add what was read of a source to the report, and log what was not read."""
    name = _name(source)
    if source.path.startswith("rg:"):
        reading.unread.discard("task")  # read by `_records`
    note = sources.setdefault(
        name, {"rows": 0, "licence": source.licence, "bad_rows": 0, "unread_columns": []}
    )
    note["rows"] += rows
    note["bad_rows"] += reading.bad
    note["unread_columns"] = sorted({*note["unread_columns"], *reading.unread})
    if reading.unread:
        logger.warning("%s: columns that are not read: %s", name, ", ".join(sorted(reading.unread)))
    if reading.bad:
        logger.warning("%s: %d rows left out, first %s", name, reading.bad, reading.first_bad)


def share_right(folder: Path) -> dict[str, float]:
    """Return the share of correct ones of the judged samples of each prompt id.

    folder: a finished `verify` folder. A prompt whose samples are all unverifiable has no share.
    """
    right, total = Counter[str](), Counter[str]()
    path = folder / "records.jsonl"
    for number, line in records.lines(path):
        row = records.parse(line, path, number)
        if "verdict" not in row:
            problem = f"{path}: line {number}: has no verdict"
            raise DstoolsError(problem, "set pass_rates to a finished `verify` folder")
        if row["verdict"] != "unverifiable":
            total[row["id"]] += 1
            right[row["id"]] += row["verdict"] == "correct"
    return {prompt: right[prompt] / count for prompt, count in total.items()}


class _Read:
    """The records read so far: in a file, and in memory what decides which are kept."""

    def __init__(self, folder: Path, *, near: bool) -> None:
        self.path = folder / READ
        self.file = self.path.open("wb")
        self.signature_path = folder / SIGNATURES
        self.signature_file = self.signature_path.open("wb") if near else None
        self.digests: list[bytes] = []
        self._golds = array("Q")
        self._difficulties = array("d")
        self.offsets = array("Q", [0])

        self.references = 0

    def close(self) -> None:
        self.file.close()
        if self.signature_file:
            self.signature_file.close()

    def add(self, record: Record) -> None:
        """Append a record."""
        asked = json.dumps(records.normalised(record["messages"]), ensure_ascii=False)
        self.digests.append(sha256(asked.encode()).digest()[:16])
        self._golds.append(_gold_digest(record["gold"]))
        difficulty = record["difficulty"]
        self._difficulties.append(float("nan") if difficulty is None else difficulty)
        self.references += record["reference"] is not None
        if self.signature_file:
            self.signature_file.write(signature(prompt_text(record)).tobytes())
        line = records.dump(record)
        self.file.write(line)
        self.offsets.append(self.offsets[-1] + len(line))

    def record(self, file: BinaryIO, number: int) -> Record:
        """Return a record, from the file opened for reading."""
        file.seek(self.offsets[number])
        record: Record = json.loads(file.readline())
        return record

    @property
    def golds(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._golds, np.uint64)

    @property
    def difficulties(self) -> NDArray[np.float64]:
        return np.frombuffer(self._difficulties, np.float64)

    def signatures(self) -> NDArray[np.uint32]:
        return np.fromfile(self.signature_path, np.uint32).reshape(-1, FUNCTIONS)


def _records(
    settings: Prompts, source: Source, file: Path | None, rates: dict[str, float], reading: Reading
) -> Iterator[tuple[str, Record]]:
    """Yield form and record of each row of a source."""
    is_empty = True
    for _, row, question in _questions(source, file, reading):
        is_empty = False
        messages = question.messages
        if settings.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": settings.system}, *messages]
        prompt = records.prompt_id(messages, _name(source))
        answer_type = question.answer_type or source.answer_type
        task = row["task"] if source.path.startswith("rg:") else None
        yield (
            question.form,
            {
                "id": prompt,
                "source": _name(source),
                "licence": source.licence,
                "messages": messages,
                "gold": question.gold,
                "answer_type": "none" if question.gold is None and task is None else answer_type,
                "task": task,
                "difficulty": 1 - rates[prompt] if prompt in rates else question.difficulty,
                "reference": records.reference(question.replies),
            },
        )
    if is_empty and reading.bad:
        raise DstoolsError(
            f"{file or source.path}: none of {reading.bad} rows is a question: {reading.first_bad}",
            "mend the rows; max_bad leaves out some of many",
        )
    if is_empty:
        raise DstoolsError(f"{file or source.path}: is empty", "name a source with prompts in it")


def require_questions(source: Source, file: Path | None) -> None:
    """Raise DstoolsError for a source that cannot be read, by its first row, or that is empty."""
    reading = Reading(source.max_bad)
    if next(_questions(source, file, reading), None) is None and not reading.bad:
        raise DstoolsError(f"{file or source.path}: is empty", "name a source with prompts in it")


def _questions(source: Source, file: Path | None, reading: Reading) -> Questions:
    if file is not None:
        return questions(file, source.form, reading)
    kind, _, name = source.path.partition(":")

    def read(_: Reading) -> Rows:
        if kind == "rg":
            return task_rows(name, source.size, source.seed, source.options)
        return dataset_rows(name, source.split)

    return converted(read, f"{source.path}: row", source.form, reading)


def _name(source: Source) -> str:
    """Return a source's name, which does not depend on the folder of a file."""
    is_file = not source.path.startswith(("rg:", "datasets:"))
    return Path(source.path).name if is_file else source.path


def prompt_text(record: Record) -> str:
    """Return the text of a prompt without its system message."""
    return "\n".join(
        message["content"] for message in record["messages"] if message["role"] != "system"
    )


def _gold_digest(gold: str | None) -> int:
    if gold is None:
        return 0
    return int.from_bytes(sha256(" ".join(gold.split()).encode()).digest()[:8], "little") | 1


def golds_differ(one: Record, other: Record, referee: Referee) -> bool:
    """Return whether the golds of two prompts differ in value: 1/2 and 3 do, 1/2 and 0.5 do not.

    Each is compared as an answer to the other, as either may be the one that can be parsed. Golds
    that cannot be compared do not count as different.
    """
    verdicts = {
        compare(answer["gold"], gold["gold"], gold["answer_type"], referee).verdict
        for answer, gold in ((one, other), (other, one))
    }
    return "correct" not in verdicts and "incorrect" in verdicts


def _fates(settings: Prompts, read: _Read) -> tuple[list[str], list[int]]:
    """Return why each row is dropped, "" if kept, and the number of the row it repeats, or -1."""
    with read.path.open("rb") as file:

        def record(number: int) -> Record:
            return read.record(file, number)

        def text(number: int) -> str:
            return prompt_text(record(number))

        with closing(Referee(Verify.timeout_seconds)) as referee:
            reasons, others = exact(
                read.digests, read.golds, lambda a, b: golds_differ(record(a), record(b), referee)
            )
        if settings.near_duplicates:
            alive = np.array([not reason for reason in reasons])
            fates = near(read.signatures(), read.golds, alive, text, settings.near_duplicates)
            for number in np.flatnonzero(alive).tolist():
                reasons[number], others[number] = fates.reasons[number], fates.others[number]
    low, high = settings.min_difficulty, settings.max_difficulty
    difficulties = read.difficulties
    for number in np.flatnonzero((difficulties < low) | (difficulties > high)).tolist():
        reasons[number] = reasons[number] or "difficulty"
    if settings.limit:
        for number in [n for n, reason in enumerate(reasons) if not reason][settings.limit :]:
            reasons[number] = "limit"
    return reasons, others


def _write(folder: Path, read: _Read, reasons: list[str], others: list[int]) -> Counter[str]:
    """Write records.jsonl and dropped.jsonl; return the number of rows dropped for each reason."""
    dropped = Counter[str]()
    repeats: dict[int, list[int]] = {}
    if read.references:
        for number, (reason, other) in enumerate(zip(reasons, others, strict=True)):
            if reason == "duplicate":
                repeats.setdefault(other, []).append(number)
    with (
        read.path.open("rb") as file,
        read.path.open("rb") as others_file,
        (folder / "records.jsonl").open("wb") as kept_file,
        (folder / "dropped.jsonl").open("wb") as dropped_file,
    ):
        for number, (line, reason, other) in enumerate(zip(file, reasons, others, strict=True)):
            if not reason:
                more = (read.record(others_file, repeat) for repeat in repeats.get(number, ()))
                kept_file.write(_with_replies(line, more))
                continue
            dropped[reason] += 1
            fields: Record = {"drop_reason": reason}
            if other >= 0:
                fields["duplicate_of"] = read.record(others_file, other)["id"]
            dropped_file.write(records.extended(line, fields))
    return dropped


def _with_replies(line: bytes, more: Iterator[Record]) -> bytes:
    """Return the line of a prompt with the answers of prompts that repeat it, each text once."""
    others = [reply for record in more for reply in records.replies(record)]
    if not others:
        return line
    record = json.loads(line)
    by_text: dict[str, records.Reply] = {}
    for reply in (*records.replies(record), *others):
        by_text.setdefault(reply.raw, reply)
    return records.dump(record | {"reference": records.reference(list(by_text.values()))})
