"""What is kept of a teacher's answers: lines of the log, and what earlier runs received.

A line of an endpoint's log names the request that it answers, and so do the records of a finished
stage. An answer to the same request is used again, whatever else has changed: the number of
samples, the other prompts, a licence.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dstools_converters.files import recover_log
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.store.stage import MANIFEST, read_manifest, require_whole
from dstools_distill.teachers.reply import answer, received, unread
from dstools_distill.teachers.request import request, request_key
from dstools_distill.teachers.teacher import Answer, Ask, Failed

RECORDS, DROPPED, LOG = "records.jsonl", "dropped.jsonl", "samples.jsonl"
PAID = ("openai", "openai-batch")  # the backends whose answers are requests' answers
SINCE = 3  # the revision of `generate` since which records are what this one writes


def log_line(outcome: Answer | Failed) -> Record:
    """Return a line of the log."""
    if isinstance(outcome, Answer):
        return outcome._asdict()
    return {"failed": outcome.reason} | ({"body": outcome.body} if outcome.body else {})


def reread(logged: Record, settings: Generate) -> Record:
    """Return a line of the log, after another try to read a reply that could not be read.

    Version 0.1.0 stored content parts unparsed; those are read here as well.
    """
    try:
        if "body" in logged:
            return answer(json.loads(logged["body"]), settings)._asdict()
        if isinstance(logged.get("raw"), list):
            prefilled, usage = logged["prefilled_think"], logged["usage"]
            message = {"content": logged["raw"]}
            return received(message, logged["finish_reason"], usage, prefilled=prefilled)._asdict()
    except ValueError as error:
        return logged | {"failed": unread(error, None).reason}
    return logged


def reuse(log: SampleLog, settings: Generate, asks: Iterable[Ask], folder: Path) -> int:
    """Copy into the log what runs beside `folder` received for requests that it has yet to send.

    Returns how many samples of the log such runs received. A reply that cannot be read yet stays
    where it is. Raises DstoolsError if a finished stage was changed; see `require_whole`.
    """
    earlier = [path for path in sorted(folder.parent.glob("generate-*")) if path != folder]
    if not earlier:
        return log.reused
    wanted = {
        request_key(request(settings, ask)): ask.number for ask in asks if ask.number not in log
    }
    for other in earlier:
        for key, sample in _received(other):
            if key in wanted and "failed" not in (read := _cut(reread(sample, settings))):
                log.add(wanted.pop(key), read | {"request": key, "reused": other.name})
    return log.reused


def _cut(sample: Record) -> Record:
    """Return a sample without the token that ends it, which versions before revision 4 kept."""
    raw, end_token = records.without_end(sample.get("raw", ""))
    return sample | {"raw": raw, "end_token": end_token} if end_token else sample


def _received(folder: Path) -> Iterator[tuple[str, Record]]:
    """Yield what a stage received, as lines of a log, after the key of the request."""
    if (folder / MANIFEST).exists():
        yield from _of_records(folder, read_manifest(folder))
    elif (folder / LOG).exists():
        from dstools_distill.teachers.batchfile import completions

        with (folder / LOG).open("r+b") as file:
            for _, row in recover_log(file):
                if "request" in row:
                    yield row["request"], _fields(row, "failed", "body")
        for body, completion in completions(folder):
            yield request_key(body), {"failed": "", "body": json.dumps(completion)}


def _of_records(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Record]]:
    known = {field.name for field in fields(Generate)}
    values = manifest["settings"]
    is_paid = values["backend"] in PAID and manifest["revision"] >= SINCE
    if not is_paid or not values.keys() <= known:  # a later version's settings ask otherwise
        return
    require_whole(folder, manifest)
    settings = Generate(**values)
    for name in (RECORDS, DROPPED):
        for record in records.read(folder / name):
            if "raw" not in record and "body" not in record:
                continue  # it was never received
            asked = replace(settings, model=record["teacher"]["name"])
            failed = {"failed": record["drop_reason"]} if "body" in record else {}
            sample = _fields(record, "body") | failed
            ask = Ask(0, record["sample"], record)
            yield request_key(request(asked, ask)), sample


def _fields(record: Record, *more: str) -> Record:
    """Return the fields of a sample, and `more`, as far as a record has them."""
    return {name: record[name] for name in (*Answer._fields, *more) if name in record}
