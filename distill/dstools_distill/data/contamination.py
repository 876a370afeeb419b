"""Contamination index: hashed windows of benchmark texts, to find those texts in other texts.

A text of ten tokens or more is indexed by its windows of ten, a shorter question as a whole. A
window that more than ten texts of a benchmark share, apart from numbers and single letters, is a
template that identifies no problem ("the following arithmetic problem: 3 + "). A question that has
only such windows is indexed as a whole; so is a question that a program made, as other numbers make
another problem. Short answers are not indexed.

The file is in the safetensors format. `hashes.N`: sorted uint64, hashes of windows of N tokens.
`places.N`: uint32, the row of each, counted over all benchmarks. `*.whole`: questions of more than
ten tokens; `hashes.whole` is the hash of the rarest window, by which one is found, `offsets.whole`
its start, `lengths.whole` and `all.whole` length and hash of the whole question. The file holds no
text; a window can only be guessed and checked.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dstools_converters.errors import DstoolsError, disk_errors, printable
from dstools_converters.files import replace_file
from dstools_distill import records
from dstools_distill.data.ngrams import (
    BASE,
    KEY,
    NORMALISATION,
    hashes,
    hashes_of,
    tokens,
    whole,
    windows,
)
from dstools_distill.records import Record

WINDOW = 10  # tokens
ANYWHERE = 4  # tokens; a shorter question must be the whole prompt
TEMPLATE_TEXTS = 10
BATCH_ROWS = 1024  # rows that are searched together
EVAL_INDEX = "eval.ngrams"  # index of the problems of a recipe's [eval]
METADATA = "dstools contamination index"
SEPARATOR = np.uint64(0x5851F42D4C957F2D)  # between two texts, so that no window spans both
CONTINUED = hashes_of(["+", "-", "/", "^"])  # after a whole question: it is part of a longer one
BAD_INDEX = "build it again with `dstools distill index`"

Hashes = NDArray[np.uint64]
Tables = dict[str, NDArray[Any]]
Kind = Literal["question", "generated", "answer"]  # generated: by a program, like many others


class Text(NamedTuple):
    """A text of a benchmark."""

    row: int  # line or row number, from 1
    tokens: list[str]
    kind: Kind


@dataclass(frozen=True)
class Benchmark:
    """The description of a benchmark in an index."""

    name: str
    sha256: str  # of the file
    rows: int  # number of the last row
    questions: int
    windows: int
    wholes: int  # questions indexed as a whole
    unknown: int  # questions without a word or a number, which cannot be found


class Hit(NamedTuple):
    """A window of a benchmark in a text that was searched."""

    text: int  # number of the text
    start: int  # number of its first token in the text
    length: int  # in tokens
    benchmark: str
    row: int


# ---------------------------------------------------------------------------------------- building


def build_tables(name: str, digest: str, texts: Iterable[Text]) -> tuple[Benchmark, Tables]:
    """Return a benchmark and its tables; equal texts count once, with the row of the first."""
    distinct: dict[int, Text] = {}
    rows = questions = unknown = 0
    for text in texts:
        rows = max(rows, text.row)
        questions += text.kind != "answer"
        unknown += text.kind != "answer" and not text.tokens
        if text.tokens:
            distinct.setdefault(whole(hashes_of(text.tokens)), text)
    templates = _templates(text.tokens for text in distinct.values())
    entries: dict[str, dict[tuple[int, ...], int]] = {}  # kind -> key columns -> row
    wholes: list[Text] = []
    for text in distinct.values():
        own = windows(hashes_of(text.tokens), WINDOW)
        own = own[~np.isin(windows(_masked(text.tokens), WINDOW), templates)]
        if len(own) and text.kind != "generated":
            of_windows = entries.setdefault(str(WINDOW), {})
            for value in own.tolist():
                of_windows.setdefault((value,), text.row)
        elif text.kind != "answer":
            wholes.append(text)
    for kind, key, row in _wholes(wholes):
        entries.setdefault(kind, {}).setdefault(key, row)
    tables = merged([_columns(kind, rows_of) for kind, rows_of in entries.items()])
    counts = (rows, questions, len(tables.get(f"hashes.{WINDOW}", ())), len(wholes), unknown)
    return Benchmark(name, digest, *counts), tables


def _wholes(texts: list[Text]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield kind, key columns and row of questions to be found as a whole.

    A question of more than ten tokens is found by the window that the fewest of these texts have.
    """
    hashed = [hashes_of(text.tokens) for text in texts]
    windowed = [windows(text_hashes, WINDOW) for text_hashes in hashed]
    values, counts = np.unique(np.concatenate([*windowed, hashes_of([])]), return_counts=True)
    for text, text_hashes, own in zip(texts, hashed, windowed, strict=True):
        length, hash_of_all = len(text_hashes), whole(text_hashes)
        if length <= WINDOW:
            yield str(length), (hash_of_all,), text.row
            continue
        rarest = int(np.argmin(counts[np.searchsorted(values, own)]))
        yield "whole", (int(own[rarest]), rarest, length, hash_of_all), text.row


def _templates(texts: Iterable[list[str]]) -> Hashes:
    """Return the masked windows that more than ten texts have."""
    windowed = [np.unique(windows(_masked(text), WINDOW)) for text in texts]
    values, counts = np.unique(np.concatenate([*windowed, hashes_of([])]), return_counts=True)
    templates: Hashes = values[counts > TEMPLATE_TEXTS]
    return templates


def _masked(text: list[str]) -> Hashes:
    """Return the hashes of tokens, with one hash for all numbers and single letters."""
    return hashes_of(["0" if token.isdigit() or token in LETTERS else token for token in text])


LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


def _columns(kind: str, entries: dict[tuple[int, ...], int]) -> Tables:
    keys = np.array(list(entries), np.uint64)
    places = np.array(list(entries.values()), np.uint32)
    columns: Tables = {f"hashes.{kind}": keys[:, 0], f"places.{kind}": places}
    if kind == "whole":
        columns["offsets.whole"] = keys[:, 1].astype(np.uint32)
        columns["lengths.whole"] = keys[:, 2].astype(np.uint32)
        columns["all.whole"] = keys[:, 3]
    return columns


def merged(parts: Sequence[Tables]) -> Tables:
    """Return the tables of several benchmarks as one's, each sorted by its hashes."""
    tables: Tables = {}
    for kind in sorted({key.partition(".")[2] for part in parts for key in part}):
        having = [part for part in parts if f"hashes.{kind}" in part]
        hashed = np.concatenate([part[f"hashes.{kind}"] for part in having])
        order = np.argsort(hashed, kind="stable")
        for key in having[0]:
            if key.partition(".")[2] == kind:
                tables[key] = np.concatenate([part[key] for part in having])[order]
    return tables


def _moved(part: Tables, rows_before: int) -> Tables:
    """Return tables whose places follow those of other benchmarks with so many rows."""
    return {
        key: column + np.uint32(rows_before) if key.startswith("places.") else column
        for key, column in part.items()
    }


def save_index(out: Path, parts: Sequence[tuple[Benchmark, Tables]]) -> None:
    """Write the index file of some benchmarks atomically; the same parts give the same bytes."""
    rows_before, moved = 0, []
    for benchmark, part in parts:
        moved.append(_moved(part, rows_before))
        rows_before += benchmark.rows
    tables = merged(moved)
    header = {
        "benchmarks": [asdict(benchmark) for benchmark, _ in parts],
        "window": WINDOW,
        "key": KEY.hex(),
        "normalisation": NORMALISATION,
        "sha256": _digest(tables),
    }
    with disk_errors(out):
        replace_file(out, save(tables, {METADATA: json.dumps(header, ensure_ascii=False)}))


def _digest(tables: Tables) -> str:
    digest = sha256()
    for key in sorted(tables):
        digest.update(key.encode() + np.ascontiguousarray(tables[key]).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- searching


def load_index(path: Path) -> tuple[list[Benchmark], Tables]:
    """Return the benchmarks and the tables of an index file.

    Raises DstoolsError if it is not an index, is damaged, or was made by other rules than these.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA])
            tables = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        benchmarks = [Benchmark(**fields) for fields in header["benchmarks"]]
        rules = (header["window"], header["key"], header["normalisation"])
        digest = header["sha256"]
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "check the path") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = printable(str(error))
        raise DstoolsError(f"{path}: is not a contamination index: {reason}", BAD_INDEX) from error
    if rules != (WINDOW, KEY.hex(), NORMALISATION):
        raise DstoolsError(f"{path}: was made by another version of dstools", BAD_INDEX)
    if digest != _digest(tables):
        raise DstoolsError(f"{path}: is damaged: its sha256 is not {digest}", BAD_INDEX)
    return benchmarks, tables


class Index:
    """Several index files, searched as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.benchmarks: list[Benchmark] = []
        self._rows_before: list[int] = []  # number of rows of all benchmarks before each
        parts, rows_before = [], 0
        for path in paths:
            benchmarks, part = load_index(path)
            parts.append(_moved(part, rows_before))
            for benchmark in benchmarks:
                self.benchmarks.append(benchmark)
                self._rows_before.append(rows_before)
                rows_before += benchmark.rows
        self._tables = merged(parts)
        self._kinds = {
            kind: _Table(self._tables[f"hashes.{kind}"])
            for kind in sorted({key.partition(".")[2] for key in self._tables})
        }

    def annotate(self, rows: Iterator[Record]) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
        """Yield any number of rows, each with what `search` finds in it."""
        while batch := list(islice(rows, BATCH_ROWS)):
            yield from zip(batch, self.search(batch), strict=True)

    def search(self, rows: Sequence[Record]) -> list[list[dict[str, Any]]]:
        """Return for each row the windows that it shares with benchmarks.

        A match is {"benchmark", "row", "where", "window"}: the first shared window of this row of
        the benchmark, and whether it is in the "prompt", the "reasoning" or the "answer".
        """
        if not self.benchmarks:
            return [[] for _ in rows]
        texts = [(n, *text) for n, row in enumerate(rows) for text in _texts(row)]
        hits = self.hits(
            [hashes(text) for _, _, text in texts], [where == "prompt" for _, where, _ in texts]
        )
        tokens_of = {number: tokens(texts[number][2]) for number in {hit.text for hit in hits}}
        shared: list[dict[tuple[str, int, str], dict[str, Any]]] = [{} for _ in rows]
        for hit in hits:
            n, where, _ = texts[hit.text]
            window = " ".join(tokens_of[hit.text][hit.start : hit.start + hit.length])
            match = {"benchmark": hit.benchmark, "row": hit.row, "where": where, "window": window}
            shared[n].setdefault((hit.benchmark, hit.row, where), match)
        return [list(matches.values()) for matches in shared]

    def hits(self, texts: Sequence[Hashes], are_prompts: Sequence[bool]) -> list[Hit]:
        """Return all hits in texts, given as hashes of their tokens; sorted by text and start."""
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        stream = np.full(int(starts[-1]), SEPARATOR)
        for start, text in zip(starts.tolist(), texts, strict=False):
            stream[start : start + len(text)] = text
        hits = []
        windowed = stream
        for length in range(1, WINDOW + 1):
            if length > 1:
                windowed = windowed[:-1] * BASE + stream[length - 1 :]
            for kind in (str(length), "whole" if length == WINDOW else ""):
                if kind not in self._kinds:
                    continue
                for at, entry in self._kinds[kind].matches(windowed):
                    number = int(np.searchsorted(starts, at, "right")) - 1
                    text, start = texts[number], at - int(starts[number])
                    hit = self._hit(kind, entry, text, number, start)
                    is_all = hit is not None and are_prompts[number] and hit.length == len(text)
                    if hit is not None and (is_all or hit.length >= ANYWHERE):
                        hits.append(hit)
        return sorted(hits)

    def _hit(self, kind: str, entry: int, text: Hashes, number: int, start: int) -> Hit | None:
        """Return the hit of an entry whose window begins at `start`; None if the rest differs."""
        length = WINDOW
        if kind != str(WINDOW):  # a whole question
            length = int(self._tables["lengths.whole"][entry]) if kind == "whole" else int(kind)
            start -= int(self._tables["offsets.whole"][entry]) if kind == "whole" else 0
            question = text[max(start, 0) : start + length]
            if kind == "whole" and whole(question) != self._tables["all.whole"][entry]:
                return None
            if np.isin(text[start + length : start + length + 1], CONTINUED).any():
                return None
        place = int(self._tables[f"places.{kind}"][entry]) - 1
        at = int(np.searchsorted(self._rows_before, place, "right")) - 1
        row = place - self._rows_before[at] + 1
        return Hit(number, start, length, self.benchmarks[at].name, row)


def _texts(row: Record) -> Iterator[tuple[str, str]]:
    """Yield part ("prompt", "reasoning" or "answer") and text of all that a row teaches."""
    for message in row["messages"]:
        if message["role"] != "system":
            yield "prompt", message["content"]
    for where in ("reasoning", "answer"):
        if row.get(where) is not None:  # a row that is only a prompt has neither
            yield where, row[where]


def clean_prompts(file: Path, index: Sequence[Path]) -> tuple[list[Record], int]:
    """Return the prompts of a JSONL file without benchmark text, and the number of the others."""
    prompts = list(Index(index).annotate(records.read(file)))
    clean = [prompt for prompt, shared in prompts if not shared]
    return clean, len(prompts) - len(clean)


class _Table:
    """Sorted hashes with a bitmap of their first bits, which rules out most windows at once."""

    def __init__(self, entries: Hashes) -> None:
        self._hashes = entries
        bits = min(max((16 * len(entries)).bit_length(), 12), 26)
        self._shift = np.uint64(64 - bits)
        self._bitmap = np.zeros(1 << bits, bool)
        self._bitmap[entries >> self._shift] = True

    def matches(self, windowed: Hashes) -> list[tuple[int, int]]:
        """Return position and entry number of all windows that are among the entries."""
        at = np.flatnonzero(self._bitmap[windowed >> self._shift])
        low = np.searchsorted(self._hashes, windowed[at], "left")
        high = np.searchsorted(self._hashes, windowed[at], "right")
        return [
            (int(at[n]), entry)
            for n in np.flatnonzero(high > low)
            for entry in range(int(low[n]), int(high[n]))
        ]
