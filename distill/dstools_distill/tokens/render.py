"""The render stage: tokenize the kept records into the rows that are trained on.

rows.arrow, an Arrow IPC stream: id: string, input_ids: list<int32>, labels: list<int32>

A row starts with the prompt that serving shows, with labels of -100; it includes the opener of the
think block if the template prefills it. Trace, delimiters, answer and end token follow, encoded
apart from the prompt and joined as ids, as in generation. Every row is decoded again and checked,
see invariant.py; a row that breaks the invariant stops the run. A row that cannot be learned as it
is, is dropped with its reason and counted; above `max_dropped` the stage refuses.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dstools_converters.errors import DstoolsError, ShortfallError, printable
from dstools_converters.model.reasoning import (
    CLOSE,
    IN_TAGS,
    OPEN,
    Parts,
    answer_after,
    other_tag,
    tag_hint,
)
from dstools_converters.model.tokenizer import QUESTION, answer_form, prompt_text
from dstools_distill import records
from dstools_distill.recipe.settings import Render
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record, how_ended
from dstools_distill.store.rows import CHUNK_ROWS, Chunk, Rows, map_rows
from dstools_distill.store.stage import Report, Work, file_sha256
from dstools_distill.tokens.encoding import encoder, is_fast
from dstools_distill.tokens.faults import differing
from dstools_distill.tokens.invariant import CHECKS, IGNORED, Target, Trained, broken_check
from dstools_distill.tokens.templates import FOREIGN, load_tokenizer

ROWS, DROPPED = "rows.arrow", "dropped.jsonl"
SCHEMA = pa.schema(
    {"id": pa.string(), "input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}
)
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, "IPC Streaming Format"
PROBED_ROWS = 200  # encoded by both fastokens and tokenizers before the others
BATCH = 64  # rows encoded at once: 2M tokens if they are long
QUANTILES = (0.5, 0.9, 0.99, 1.0)
WHY = {  # why rows are dropped; any other fault stops the run
    "over-long": "more tokens than render.max_length",
    "unfinished": "the teacher did not finish",
    "broken-think": "trace or answer contain a think tag",
    "control-token": "a message spells a token that the template writes",
    "foreign-token": "trace or answer spell a control token of another model family",
    "not-reversible": "the tokenizer changes characters of trace or answer",
}


def render(settings: Render, inputs: Inputs, work: Work) -> Report:
    """Write rows.arrow and dropped.jsonl from the records.jsonl of the samples; return the report.

    A row trains on the answer alone, as the template writes one, if its record has no trace or
    `settings.reasoning` is False. Raises DstoolsError for a template or tokenizer that cannot be
    trained with, a record that lacks a field, a row that breaks the invariant, and records that
    all lack a trace where traces are wanted; ShortfallError if more than `settings.max_dropped`
    of the rows would be dropped.
    """
    tokenizer, template = inputs.tokenizer, inputs.template
    source = inputs.samples / "records.jsonl"
    files = (ROWS, DROPPED)
    first = Renderer(source, tokenizer, template, settings)
    fast = is_fast(first.backend, first.some_texts())
    counts = map_rows(
        source, work, files, Renderer, source, tokenizer, template, settings, fast, what="rendering"
    )
    total, out = counts["in"], counts["out"]
    if not total:
        raise DstoolsError(f"{source}: has no records", "see what the stage before dropped")
    dropped = {reason: counts[reason] for reason in WHY if counts[reason]}
    if sum(dropped.values()) > _allowed(settings, total):
        raise _shortfall(settings, work.folder / DROPPED, total, dropped)
    if not out:
        reasons = ", ".join(
            f"{count} {reason} ({WHY[reason]})" for reason, count in dropped.items()
        )
        raise DstoolsError(
            f"{source}: none of {total} rows is left: {reasons}",
            f"{work.folder / DROPPED} lists every row with its reason",
        )
    if settings.reasoning and not counts["reasoning"]:
        raise DstoolsError(
            f"{source}: none of {total} records has a trace: the student would learn answers alone",
            _hint_for_lost_traces(counts),
        )
    with (work.folder / ROWS).open("ab") as file:
        file.write(END_OF_STREAM)
    return {
        "in": total,
        "out": out,
        "dropped": dropped,
        "trains_on": "trace and answer" if settings.reasoning else ANSWER_ALONE,
        "rows_with_a_trace": counts["reasoning"],
        "rows_without_a_trace": out - counts["reasoning"],
        "tokens": counts["tokens"],
        "target_tokens": counts["target_tokens"],
        "length": _quantiles(work.folder / ROWS),
        "template": {
            "name": template or "the tokenizer's own",
            "sha256": sha256(first.tokenizer.chat_template.encode()).hexdigest(),
        },
        "tokenizer_sha256": file_sha256(tokenizer / "tokenizer.json"),
        "checks": dict.fromkeys(CHECKS, out),
    }


ANSWER_ALONE = "the answer alone: render.reasoning is false, so traces were left out"


def _allowed(settings: Render, total: int) -> int:
    """Return how many of `total` rows may be dropped, as if 0.29 * 100 were 29."""
    return math.floor(settings.max_dropped * total + 1e-9)


def _shortfall(settings: Render, file: Path, total: int, dropped: dict[str, int]) -> ShortfallError:
    """Return an error that counts the drops, names a row of each kind and says how to keep more."""
    first: dict[str, str] = {}
    lengths: list[int] = []
    for record in records.read(file):
        first.setdefault(record["drop_reason"], row_id(record))
        if record["drop_reason"] == "over-long":
            lengths.append(record["tokens"])
    count = sum(dropped.values())
    reasons = "; ".join(
        f"{n} {reason} ({WHY[reason]}), as row {first[reason]}" for reason, n in dropped.items()
    )
    spare = _allowed(settings, total) - (count - len(lengths))
    if lengths and spare >= 0:
        hint = f"render.max_length = {sorted(lengths, reverse=True)[spare]} keeps enough"
    else:
        hint = "fix the prompts or the samples"
    return ShortfallError(
        f"{count} of {total} rows would be dropped, more than max_dropped = "
        f"{settings.max_dropped:g}: {reasons}",
        f"{hint}; or render.max_dropped = {math.ceil(count / total * 1000) / 1000:g}",
    )


def _hint_for_lost_traces(counts: Counter[str]) -> str:
    """Return what to do where no record has a trace, by the tags that answers begin with."""
    where = tag_hint(counts) or "find out where traces were lost"
    return f"{where}, or train on answers: render.reasoning = false"


def _quantiles(path: Path) -> dict[str, int]:
    """Return the QUANTILES of the row lengths in an Arrow stream, in tokens."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        lengths = [np.diff(batch.column("input_ids").offsets.to_numpy()) for batch in stream]
    if not lengths:
        return {}
    values = np.quantile(np.concatenate(lengths), QUANTILES, method="inverted_cdf")
    return {f"{share:.0%}": int(value) for share, value in zip(QUANTILES, values, strict=True)}


def row_id(record: Record) -> str:
    """Return the name of a row: the id of its prompt and the number of its sample."""
    return f"{record['id']}:{record.get('sample') or 0}"


# -------------------------------------------------------------------------------- in each worker


class _Row(NamedTuple):
    """A record, with the texts of its row."""

    record: Record
    prompt: str  # as serving shows it
    text: str  # trained on, without the end token
    trace: str  # part of `text`; "" without one


class Renderer:
    """Turns lines of records.jsonl into a record batch; made once in each worker."""

    def __init__(
        self, source: Path, tokenizer: Path, template: str, settings: Render, fast: bool = False
    ) -> None:
        self.source = source
        self.settings = settings
        self.tokenizer = load_tokenizer(tokenizer, template)
        self.form = answer_form(self.tokenizer)
        self.backend = self.tokenizer.backend_tokenizer
        self.backend.no_truncation()  # tokenizer.json may ask for it, and for padding
        self.backend.no_padding()
        self.encoded = encoder(self.backend, fast=fast)
        self.control = _any_of(_control_tokens(self.tokenizer, self.form.end))
        self.foreign = _any_of(FOREIGN)
        check_tokenizer(self.tokenizer, self.form.end, tokenizer, reasoning=settings.reasoning)

    def __call__(self, rows: Rows) -> Chunk:
        """Return the record batch of some lines, their dropped rows and counts."""
        counts: Counter[str] = Counter()
        dropped = bytearray()
        names: list[str] = []
        ids: list[NDArray[np.int32]] = []
        labels: list[NDArray[np.int32]] = []
        for start in range(0, len(rows), BATCH):
            wanted = []
            for number, line in rows[start : start + BATCH]:
                counts["in"] += 1
                row = self.prepare(number, records.parse(line, self.source, number))
                reason = self.fault(row)
                if reason:
                    counts[reason] += 1
                    dropped += records.dump(row.record | {"drop_reason": reason})
                else:
                    wanted.append(row)
            for row, prompt, target in self.encode(wanted):
                drop = self.drop_reason(row, prompt, target)
                if drop:
                    counts[drop["drop_reason"]] += 1
                    dropped += records.dump(row.record | drop)
                    continue
                names.append(row_id(row.record))
                ids.append(np.array(prompt + target, dtype=np.int32))
                labels.append(np.array([IGNORED] * len(prompt) + target, dtype=np.int32))
                counts["out"] += 1
                counts["reasoning"] += bool(row.trace)
                if not row.trace and (tag := other_tag(row.record["answer"])):
                    counts[f"{IN_TAGS}{tag}"] += 1
                counts["tokens"] += len(prompt) + len(target)
                counts["target_tokens"] += len(target)
        message = SCHEMA.serialize().to_pybytes() if rows and rows[0][0] <= CHUNK_ROWS else b""
        if names:
            batch = pa.record_batch([pa.array(names), _lists(ids), _lists(labels)], schema=SCHEMA)
            message += batch.serialize().to_pybytes()
        return Chunk({ROWS: message, DROPPED: bytes(dropped)}, counts)

    def some_texts(self) -> list[str]:
        """Return distinct prompts and targets of rows all over the source, without bad rows."""
        texts: dict[str, None] = {}
        size = self.source.stat().st_size
        with self.source.open("rb") as file:
            for number in range(PROBED_ROWS):
                file.seek(max(size * number // PROBED_ROWS - 1, 0))
                if number:
                    file.readline()  # to the next line
                line = file.readline()
                with suppress(DstoolsError):  # which is raised when its row is rendered
                    row = self.prepare(number, records.parse(line, self.source, number))
                    texts |= {row.prompt: None, row.text: None}
        return list(texts)

    def prepare(self, number: int, record: Record) -> _Row:
        """Return the texts of a row. Raises DstoolsError if the record lacks a field."""
        try:
            messages, answer, reasoning = record["messages"], record["answer"], record["reasoning"]
            name = row_id(record)
        except KeyError as error:
            raise DstoolsError(
                f"{self.source}: line {number}: has no {error.args[0]}",
                "render reads the records of the stage select",
            ) from None
        try:
            prompt = prompt_text(self.tokenizer, messages)
        except DstoolsError as error:
            raise DstoolsError(f"{self.source}: row {name}: {error}", error.hint) from error
        if reasoning is not None and not self.settings.reasoning:
            reasoning = ""
        elif reasoning is not None and record.get("prefilled_think"):
            reasoning = f"\n{reasoning}"
        text, trace = answer_after(prompt, Parts(reasoning, answer), self.form.plain)
        return _Row(record, prompt, text, trace)

    def fault(self, row: _Row) -> str:
        """Return why a row cannot be learned as it is; "" if it can."""
        record, contents = row.record, [m["content"] for m in row.record["messages"]]
        if how_ended(record.get("finish_reason"), record["answer"]) != "stop":
            return "unfinished"
        if any(tag in text for tag in (OPEN, CLOSE) for text in (row.trace, record["answer"])):
            return "broken-think"
        trained = [row.trace, record["answer"]]
        if any(map(self.control.search, (*contents, *trained))):
            return "control-token"
        if any(map(self.foreign.search, trained)):
            return "foreign-token"
        return ""

    def encode(self, rows: list[_Row]) -> Iterator[tuple[_Row, list[int], list[int]]]:
        """Yield each row with the ids of its prompt and its target, encoded apart."""
        if not rows:
            return
        texts = [row.prompt for row in rows] + [row.text for row in rows]
        ids = self.encoded(texts)
        for n, row in enumerate(rows):
            yield row, ids[n], [*ids[len(rows) + n], self.form.end]

    def drop_reason(self, row: _Row, prompt: list[int], target: list[int]) -> dict[str, Any]:
        """Return the fields to add to a row that is dropped; {} for a good one.

        Raises DstoolsError for a row that breaks the invariant.
        """
        ids = prompt + target
        if len(ids) > self.settings.max_length:
            return {"drop_reason": "over-long", "tokens": len(ids)}
        labels = [IGNORED] * len(prompt) + target
        wanted = Target(prompt, row.text, row.trace, self.form.end)
        broken = broken_check(self.decode, Trained(ids, labels), wanted)
        if not broken:
            return {}
        alone = self.decode(self.backend.encode(row.text, add_special_tokens=False).ids)
        if alone != row.text:
            difference = differing(alone, row.text, "the record has")
            return {"drop_reason": "not-reversible", "difference": difference}
        raise DstoolsError(
            f"{self.source}: row {row_id(row.record)}: it does not hold that {broken}",
            "tokenizer and template do not match; restore the folder as it was released",
        )

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, with special tokens and blanks kept."""
        text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text


def check_tokenizer(tokenizer: Any, end: int, folder: Path, *, reasoning: bool) -> None:
    """Raise DstoolsError for a tokenizer that would harm every row.

    end: the token that the template writes after an answer.
    """
    if tokenizer.eos_token_id != end:
        written = printable(tokenizer.convert_ids_to_tokens(end))
        raise DstoolsError(
            f"{folder}: the chat template ends an answer with {written}, but eos_token is "
            f"{printable(str(tokenizer.eos_token))}: serving would not stop at its end",
            f'set "eos_token": "{written}" in tokenizer_config.json, or set student.template',
        )
    if not reasoning:
        return
    block = f"{OPEN}7{CLOSE}"
    ids = tokenizer.encode(block, add_special_tokens=False)
    if tokenizer.decode(ids, skip_special_tokens=True) != block:
        raise DstoolsError(
            f"{folder}: {OPEN} or {CLOSE} is a special token, which serving removes from answers",
            'set "special": false for both in added_tokens of tokenizer.json',
        )
    if CLOSE in prompt_text(tokenizer, QUESTION).rpartition(QUESTION[0]["content"])[2]:
        raise DstoolsError(
            f"{folder}: the template's generation prompt closes the think block: "
            "the student would never think when served",
            "set another student.template, or render.reasoning = false",
        )


def _control_tokens(tokenizer: Any, end: int) -> list[str]:
    """Return the added tokens that separate turns; a text that spells one would forge a turn."""
    ids = {*tokenizer.encode(prompt_text(tokenizer, QUESTION), add_special_tokens=False), end}
    ids |= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return sorted({added[n] for n in ids if added.get(n, "").strip()} - {OPEN, CLOSE})


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return an expression that finds any of some tokens, four times faster than one by one."""
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _lists(parts: list[NDArray[np.int32]]) -> Any:
    """Return arrays as one Arrow column list<int32>."""
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts)))
