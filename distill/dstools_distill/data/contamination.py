"""Where a text of a benchmark stands in another text: an index of hashed windows, built and searched.

A text of ten tokens and more is indexed by its windows of ten, a shorter question as a whole. A window that
more than ten texts of a benchmark share, their numbers and single letters aside, is a template that tells
no problem from another ("the following arithmetic problem: 3 + "). A question with no other windows is
indexed as a whole, too, and so is one that a program made: with other numbers it is another problem.
Short answers are not indexed.

The file is in the safetensors format. hashes.N: sorted uint64, of windows of N tokens; places.N: uint32, the
text each is from. *.whole: of questions longer than ten the hash of their rarest window, by which they are
found, how far in it begins, and length and hash of the whole. No text is in it; what a window says can
only be guessed and tried.
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
ANYWHERE = 4  # tokens; a shorter question counts only where it is all of a prompt
TEMPLATE_TEXTS = 10
LOOKED_UP = 1024  # rows at once
EVAL_INDEX = "eval.ngrams"  # of the problems of a recipe's [eval]
METADATA = "dstools contamination index"
ENDS_TEXT = np.uint64(0x5851F42D4C957F2D)  # between two texts, so that no window goes over it
GOES_ON = hashes_of(["+", "-", "/", "^"])  # behind a whole question: a longer one
BAD_INDEX = "build it again with `dstools distill index`"

Hashes = NDArray[np.uint64]
Tables = dict[str, NDArray[Any]]
Kind = Literal["question", "generated", "answer"]  # generated: by a program, like many others


class Text(NamedTuple):
    """A text of a benchmark."""

    row: int  # its line or row, from 1
    said: list[str]  # its tokens
    kind: Kind


@dataclass(frozen=True)
class Benchmark:
    """What an index says of a benchmark in it."""

    name: str
    sha256: str  # of the file
    rows: int  # the last row's number
    questions: int
    windows: int
    wholes: int  # questions indexed as a whole
    unknown: int  # questions without a word or a number, which cannot be found


class Hit(NamedTuple):
    """A window of a benchmark in a text that was searched."""

    text: int
    start: int  # token
    length: int  # tokens
    benchmark: str
    row: int


# ---------------------------------------------------------------------------------------- building


def tables(name: str, digest: str, texts: Iterable[Text]) -> tuple[Benchmark, Tables]:
    """Return a benchmark and its tables; equal texts count once, as the first of them."""
    distinct: dict[int, Text] = {}
    rows = questions = unknown = 0
    for text in texts:
        rows = max(rows, text.row)
        questions += text.kind != "answer"
        unknown += text.kind != "answer" and not text.said
        if text.said:
            distinct.setdefault(whole(hashes_of(text.said)), text)
    shared = _shared(text.said for text in distinct.values())
    entries: dict[str, dict[tuple[int, ...], int]] = {}  # key columns -> row
    wholes: list[Text] = []
    for text in distinct.values():
        own = windows(hashes_of(text.said), WINDOW)
        own = own[~np.isin(windows(_masked(text.said), WINDOW), shared)]
        if len(own) and text.kind != "generated":
            found = entries.setdefault(str(WINDOW), {})
            for value in own.tolist():
                found.setdefault((value,), text.row)
        elif text.kind != "answer":
            wholes.append(text)
    for length, key, row in _wholes(wholes):
        entries.setdefault(length, {}).setdefault(key, row)
    made = merged([_columns(kind, found) for kind, found in entries.items()])
    counts = (rows, questions, len(made.get(f"hashes.{WINDOW}", ())), len(wholes), unknown)
    return Benchmark(name, digest, *counts), made


def _wholes(texts: list[Text]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield kind, columns and row of questions to be found as a whole.

    A longer one is looked for by that of its windows which the fewest of them have.
    """
    hashed = [hashes_of(text.said) for text in texts]
    every = [windows(each, WINDOW) for each in hashed]
    values, counts = np.unique(np.concatenate([*every, hashes_of([])]), return_counts=True)
    for text, each, own in zip(texts, hashed, every, strict=True):
        if len(each) <= WINDOW:
            yield str(len(each)), (whole(each),), text.row
            continue
        rarest = int(np.argmin(counts[np.searchsorted(values, own)]))
        yield "whole", (int(own[rarest]), rarest, len(each), whole(each)), text.row


def _shared(texts: Iterable[list[str]]) -> Hashes:
    """Return the masked windows that more than ten texts have."""
    own = [np.unique(windows(_masked(said), WINDOW)) for said in texts]
    values, counts = np.unique(np.concatenate([*own, hashes_of([])]), return_counts=True)
    found: Hashes = values[counts > TEMPLATE_TEXTS]
    return found


def _masked(said: list[str]) -> Hashes:
    """Return the hashes of tokens, of which numbers and single letters are all one."""
    return hashes_of(["0" if token.isdigit() or token in LETTERS else token for token in said])


LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


def _columns(kind: str, entries: dict[tuple[int, ...], int]) -> Tables:
    keys = np.array(list(entries), np.uint64)
    made: Tables = {
        f"hashes.{kind}": keys[:, 0],
        f"places.{kind}": np.array(list(entries.values()), np.uint32),
    }
    if kind == "whole":
        made["offsets.whole"] = keys[:, 1].astype(np.uint32)
        made["lengths.whole"] = keys[:, 2].astype(np.uint32)
        made["all.whole"] = keys[:, 3]
    return made


def merged(parts: Sequence[Tables]) -> Tables:
    """Return the tables of several benchmarks as one's, each sorted by its hashes."""
    made: Tables = {}
    for kind in sorted({key.partition(".")[2] for part in parts for key in part}):
        having = [part for part in parts if f"hashes.{kind}" in part]
        order = np.argsort(
            np.concatenate([part[f"hashes.{kind}"] for part in having]), kind="stable"
        )
        for key in having[0]:
            if key.partition(".")[2] == kind:
                made[key] = np.concatenate([part[key] for part in having])[order]
    return made


def _moved(part: Tables, first: int) -> Tables:
    """Return tables whose texts are so many further on among those of several benchmarks."""
    return {k: v + np.uint32(first) if k.startswith("places.") else v for k, v in part.items()}


def save_index(out: Path, parts: Sequence[tuple[Benchmark, Tables]]) -> None:
    """Write an index file of some benchmarks, whole or not at all; the same parts give the same bytes."""
    first, moved = 0, []
    for benchmark, part in parts:
        moved.append(_moved(part, first))
        first += benchmark.rows
    made = merged(moved)
    header = {
        "benchmarks": [asdict(benchmark) for benchmark, _ in parts],
        "window": WINDOW,
        "key": KEY.hex(),
        "normalisation": NORMALISATION,
        "sha256": _digest(made),
    }
    with disk_errors(out):
        replace_file(out, save(made, {METADATA: json.dumps(header, ensure_ascii=False)}))


def _digest(made: Tables) -> str:
    found = sha256()
    for key in sorted(made):
        found.update(key.encode() + np.ascontiguousarray(made[key]).tobytes())
    return found.hexdigest()


# --------------------------------------------------------------------------------------- searching


def load_index(path: Path) -> tuple[list[Benchmark], Tables]:
    """Return the benchmarks and the tables of an index file.

    Raises DstoolsError where it is none, is damaged, or was made by other rules than these.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA])
            made = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        benchmarks = [Benchmark(**each) for each in header["benchmarks"]]
        rules = (header["window"], header["key"], header["normalisation"])
        digest = header["sha256"]
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "is the path right?") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = printable(str(error))
        raise DstoolsError(f"{path}: is no contamination index: {reason}", BAD_INDEX) from error
    if rules != (WINDOW, KEY.hex(), NORMALISATION):
        raise DstoolsError(f"{path}: was made by another version of dstools", BAD_INDEX)
    if digest != _digest(made):
        raise DstoolsError(f"{path}: is damaged: its sha256 is not {digest}", BAD_INDEX)
    return benchmarks, made


class Index:
    """Several index files, searched as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.benchmarks: list[Benchmark] = []
        self._firsts: list[int] = []  # place of each benchmark's row 0
        parts, first = [], 0
        for path in paths:
            benchmarks, part = load_index(path)
            parts.append(_moved(part, first))
            for benchmark in benchmarks:
                self.benchmarks.append(benchmark)
                self._firsts.append(first)
                first += benchmark.rows
        self._tables = merged(parts)
        self._kinds = {
            kind: _Table(self._tables[f"hashes.{kind}"])
            for kind in sorted({key.partition(".")[2] for key in self._tables})
        }

    def each(self, rows: Iterator[Record]) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
        """Yield rows, however many, each with what it shares with benchmarks."""
        while some := list(islice(rows, LOOKED_UP)):
            yield from zip(some, self.look(some), strict=True)

    def look(self, rows: Sequence[Record]) -> list[list[dict[str, Any]]]:
        """Return what each row shares with benchmarks, in prompt, reasoning or answer; [] is nothing.

        A find is {"benchmark", "row", "where", "window"}, the first window of a benchmark's row in each.
        """
        if not self.benchmarks:
            return [[] for _ in rows]
        texts = [(n, *text) for n, row in enumerate(rows) for text in _texts(row)]
        hits = self.find(
            [hashes(text) for _, _, text in texts], [where == "prompt" for _, where, _ in texts]
        )
        said = {number: tokens(texts[number][2]) for number in {hit.text for hit in hits}}
        shared: list[dict[tuple[str, int, str], str]] = [{} for _ in rows]
        for hit in hits:
            n, where, _ = texts[hit.text]
            window = " ".join(said[hit.text][hit.start : hit.start + hit.length])
            shared[n].setdefault((hit.benchmark, hit.row, where), window)
        return [
            [
                {"benchmark": benchmark, "row": row, "where": where, "window": window}
                for (benchmark, row, where), window in found.items()
            ]
            for found in shared
        ]

    def find(self, texts: Sequence[Hashes], are_prompts: Sequence[bool]) -> list[Hit]:
        """Return all hits in texts, given as hashes of their tokens, by text and place in it."""
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        stream = np.full(int(starts[-1]), ENDS_TEXT)
        for start, text in zip(starts.tolist(), texts, strict=False):
            stream[start : start + len(text)] = text
        hits = []
        windowed = stream
        for length in range(1, WINDOW + 1):
            if length > 1:
                windowed = windowed[:-1] * BASE + stream[length - 1 :]
            for kind in (str(length), "whole" if length == WINDOW else ""):
                if kind in self._kinds:
                    for at, entry in self._kinds[kind].matches(windowed):
                        number = int(np.searchsorted(starts, at, "right")) - 1
                        hit = self._hit(
                            kind, entry, texts[number], number, at - int(starts[number])
                        )
                        if hit and (
                            hit.length >= ANYWHERE or self._is_all(texts, are_prompts, hit)
                        ):
                            hits.append(hit)
        return sorted(hits)

    def _hit(self, kind: str, entry: int, text: Hashes, number: int, start: int) -> Hit | None:
        length = WINDOW
        if kind != str(WINDOW):  # all of a question
            length = int(self._tables["lengths.whole"][entry]) if kind == "whole" else int(kind)
            start -= int(self._tables["offsets.whole"][entry]) if kind == "whole" else 0
            said = text[max(start, 0) : start + length]
            if kind == "whole" and whole(said) != self._tables["all.whole"][entry]:
                return None
            if np.isin(text[start + length : start + length + 1], GOES_ON).any():
                return None
        place = int(self._tables[f"places.{kind}"][entry]) - 1
        at = int(np.searchsorted(self._firsts, place, "right")) - 1
        return Hit(number, start, length, self.benchmarks[at].name, place - self._firsts[at] + 1)

    def _is_all(self, texts: Sequence[Hashes], are_prompts: Sequence[bool], hit: Hit) -> bool:
        return are_prompts[hit.text] and hit.length == len(texts[hit.text])


def _texts(row: Record) -> Iterator[tuple[str, str]]:
    """Yield where and text of all that a row would teach."""
    for message in row["messages"]:
        if message["role"] != "system":
            yield "prompt", message["content"]
    for where in ("reasoning", "answer"):
        if row.get(where) is not None:  # a prompt alone has neither
            yield where, row[where]


def clean_prompts(file: Path, index: Sequence[Path]) -> tuple[list[Record], int]:
    """Return the prompts of a JSONL file that share nothing with a benchmark, and how many others there are."""
    clean: list[Record] = []
    contaminated = 0
    for prompt, shared in Index(index).each(records.read(file)):
        if shared:
            contaminated += 1
        else:
            clean.append(prompt)
    return clean, contaminated


class _Table:
    """Sorted hashes, and by their first bits which ones there are at all: most windows are in none."""

    def __init__(self, known: Hashes) -> None:
        self._hashes = known
        bits = min(max((16 * len(known)).bit_length(), 12), 26)
        self._shift = np.uint64(64 - bits)
        self._is_there = np.zeros(1 << bits, bool)
        self._is_there[known >> self._shift] = True

    def matches(self, windowed: Hashes) -> list[tuple[int, int]]:
        """Return position and number of the entry wherever a window is one of these."""
        at = np.flatnonzero(self._is_there[windowed >> self._shift])
        low = np.searchsorted(self._hashes, windowed[at], "left")
        high = np.searchsorted(self._hashes, windowed[at], "right")
        return [
            (int(at[n]), entry)
            for n in np.flatnonzero(high > low)
            for entry in range(int(low[n]), int(high[n]))
        ]
