"""Search for texts of benchmarks, indexed by benchmarks.py, in the rows of a data set.

A prompt repeats a question if it has a quarter of its phrases, most of its long words and all its
numbers: with other numbers it is another problem. It repeats a part of one if three fifths of the
prompt are runs of ten words of that question, and it has no other numbers. In a trace or an answer
any run of ten words is a hit, but what the row's own prompt says is judged there, and a run that is
digits for the most part is a formula. Questions that are indexed as a whole are found as a whole.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dstools_distill import records
from dstools_distill.data.benchmarks import (
    PHRASE,
    WINDOW,
    Benchmark,
    Hashes,
    load_index,
    merged,
    moved,
)
from dstools_distill.data.ngrams import (
    BASE,
    are_words,
    hashes,
    hashes_of,
    signed,
    tokens,
    whole,
    windows,
)
from dstools_distill.records import Record

ANYWHERE = 4  # tokens; a shorter question must be the whole prompt
BATCH_ROWS = 1024  # rows that are searched together
SEPARATOR = np.uint64(0x5851F42D4C957F2D)  # between two texts, so that no window spans both
CONTINUED = hashes_of(["+", "-", "/", "^"])  # after a whole question: it is part of a longer one
DIGITS = hashes_of([digit + sign for digit in "0123456789" for sign in ("", *"+-/^")])
IN_PHRASES = 0.25  # least share of a question's words in phrases that a prompt has
IN_COMMON = 0.6  # least share of a question's long words, or of a prompt
WITH_NUMBERS = 0.5  # the same where the question has several numbers
CANDIDATE = 2  # phrases of a question in a prompt
PARTS_OF_ROW = ("reasoning", "answer")

Places = NDArray[np.intp]


class Part(NamedTuple):
    """A text of a row that is searched."""

    row: int  # number of the row
    where: str  # "prompt", "reasoning" or "answer"
    text: str


class Hit(NamedTuple):
    """A text of a benchmark in a part that was searched."""

    part: int  # number of the part
    start: int  # number of the first token in the part
    length: int  # in tokens
    benchmark: str
    row: int
    share: float  # of the words of the benchmark's text


class Index:
    """Several index files, searched as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.benchmarks: list[Benchmark] = []
        self._rows_before: list[int] = []  # number of rows of all benchmarks before each
        parts, rows_before = [], 0
        for path in paths:
            benchmarks, part = load_index(path)
            parts.append(moved(part, rows_before))
            for benchmark in benchmarks:
                self.benchmarks.append(benchmark)
                self._rows_before.append(rows_before)
                rows_before += benchmark.rows
        self._tables = merged(parts)
        self._lookups = {
            key.partition(".")[2]: _Lookup(column)
            for key, column in self._tables.items()
            if key.startswith("hashes.")
        }
        self._numbers = _by_place(self._tables, "number")
        self._words = _by_place(self._tables, "word")

    def annotate(self, rows: Iterator[Record]) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
        """Yield any number of rows, each with what `search` finds in it."""
        while batch := list(islice(rows, BATCH_ROWS)):
            yield from zip(batch, self.search(batch), strict=True)

    def search(self, rows: Sequence[Record]) -> list[list[dict[str, Any]]]:
        """Return for each row what it shares with benchmarks.

        A match is {"benchmark", "row", "where", "window", "share"}: the first shared text of this
        row of the benchmark, whether it is in the "prompt", the "reasoning" or the "answer", and
        the share of the benchmark's words that are there.
        """
        if not self.benchmarks:
            return [[] for _ in rows]
        parts = [part for n, row in enumerate(rows) for part in _parts(n, row)]
        hits = self.hits(parts)
        tokens_of = {number: tokens(parts[number].text) for number in {hit.part for hit in hits}}
        shared: list[dict[tuple[str, int, str], dict[str, Any]]] = [{} for _ in rows]
        for hit in hits:
            row, where, _ = parts[hit.part]
            window = " ".join(tokens_of[hit.part][hit.start : hit.start + hit.length])
            match = {"benchmark": hit.benchmark, "row": hit.row, "where": where}
            match |= {"window": window, "share": round(hit.share, 2)}
            shared[row].setdefault((hit.benchmark, hit.row, where), match)
        return [list(matches.values()) for matches in shared]

    def hits(self, parts: Sequence[Part]) -> list[Hit]:
        """Return all hits in the parts of rows, sorted by part and start."""
        texts = [hashes(part.text) for part in parts]
        stream = _Stream(texts)
        words = np.split(are_words(stream.hashed), stream.starts[1:])
        words = [mask[: len(text)] for mask, text in zip(words, texts, strict=True)]
        spoken = [text[mask] for text, mask in zip(texts, words, strict=True)]
        hits = list(self._wholes(parts, texts, stream))
        for n, place, at, length, share in (
            *self._phrases(parts, spoken),
            *self._runs(parts, spoken),
        ):
            positions = np.flatnonzero(words[n])[at : at + length]
            start, end = int(positions[0]), int(positions[-1]) + 1
            hits.append(Hit(n, start, end - start, *self._row(place), share))
        return sorted(hits)

    def _wholes(
        self, parts: Sequence[Part], texts: list[Hashes], stream: "_Stream"
    ) -> Iterator[Hit]:
        """Yield hits of the questions that are indexed as a whole."""
        windowed = stream.hashed
        for length in range(1, WINDOW + 1):
            if length > 1:
                windowed = windowed[:-1] * BASE + stream.hashed[length - 1 :]
            for table in (str(length), "whole" if length == WINDOW else ""):
                if table not in self._lookups:
                    continue
                places, entries = self._lookups[table].matches(windowed)
                for at, entry in zip(places.tolist(), entries.tolist(), strict=True):
                    n = int(np.searchsorted(stream.starts, at, "right")) - 1
                    found = self._whole(table, entry, texts[n], at - int(stream.starts[n]))
                    if not found:
                        continue
                    start, length_of_all, place = found
                    is_all = parts[n].where == "prompt" and length_of_all == len(texts[n])
                    if is_all or length_of_all >= ANYWHERE:
                        yield Hit(n, start, length_of_all, *self._row(place), 1.0)

    def _whole(
        self, table: str, entry: int, text: Hashes, start: int
    ) -> tuple[int, int, int] | None:
        """Return start, length and place of a whole question whose window begins at `start`.

        None if the rest of it differs, or if it is part of a longer one.
        """
        length = int(self._tables["lengths.whole"][entry]) if table == "whole" else int(table)
        start -= int(self._tables["offsets.whole"][entry]) if table == "whole" else 0
        question = text[max(start, 0) : start + length]
        if table == "whole" and whole(question) != self._tables["all.whole"][entry]:
            return None
        if np.isin(text[start + length : start + length + 1], CONTINUED).any():
            return None
        return start, length, int(self._tables[f"places.{table}"][entry])

    def _phrases(
        self, parts: Sequence[Part], texts: list[Hashes]
    ) -> Iterator[tuple[int, int, int, int, float]]:
        """Yield part, place, first word, number of words and share of questions in prompts."""
        prompts = [n for n, part in enumerate(parts) if part.where == "prompt"]
        for n, place, own, length, starts in self._windows("phrase", prompts, texts):
            near = np.searchsorted(starts, starts + 2 * length) - np.arange(len(starts))
            best = int(np.argmax(near))  # the stretch with the most phrases
            starts = starts[best : best + int(near[best])]
            covered = _covered(len(texts[n]), starts, PHRASE)
            share = min(int(covered.sum()) / own, 1.0)
            if share >= IN_PHRASES and self._is_question(parts[n].text, place, starts, length):
                yield n, place, *_longest(covered), share

    def _is_question(self, prompt: str, place: int, starts: Places, length: int) -> bool:
        """Return whether a prompt has the numbers and most long words of a question near phrases.

        Between the first phrase and the last, it may have no other numbers.
        """
        words, numbers = _words(prompt)
        first, last = int(starts[0]), int(starts[-1]) + PHRASE
        around = words[max(first - length, 0) : last + length]
        own, long = self._numbers.get(place, words[:0]), self._words.get(place, words[:0])
        wanted = WITH_NUMBERS if len(own) > 1 else IN_COMMON
        return bool(
            np.isin(own, around).all()
            and np.isin(words[first:last][numbers[first:last]], own).all()
            and (~np.isin(long, around)).sum() <= max((1 - wanted) * len(long), 1)
        )

    def _runs(
        self, parts: Sequence[Part], texts: list[Hashes]
    ) -> Iterator[tuple[int, int, int, int, float]]:
        """Yield part, place, first word, number of words and share of texts partly there."""
        asked: dict[int, list[Hashes]] = {}
        for part, text in zip(parts, texts, strict=True):
            if part.where == "prompt":
                asked.setdefault(part.row, []).append(windows(text, WINDOW))
        for n, place, _, length, starts in self._windows("run", [*range(len(parts))], texts):
            part = parts[n]
            if part.where != "prompt":
                of_prompt = np.concatenate([*asked.get(part.row, []), hashes_of([])])
                starts = starts[~np.isin(windows(texts[n], WINDOW)[starts], of_prompt)]
            covered = _covered(len(texts[n]), starts, WINDOW)
            if self._is_part(part, place, covered):
                yield n, place, *_longest(covered), min(int(covered.sum()) / length, 1.0)

    def _is_part(self, part: Part, place: int, covered: NDArray[np.bool_]) -> bool:
        """Return whether the covered words are a part of a text, and not a formula.

        A prompt must be little else, without numbers but those of the question.
        """
        words, numbers = _words(part.text)
        if 2 * int(np.isin(words[covered], DIGITS).sum()) >= covered.sum():
            return False
        own = self._numbers.get(place, words[:0])
        return part.where != "prompt" or bool(
            covered.mean() >= IN_COMMON and np.isin(words[numbers & ~covered], own).all()
        )

    def _windows(
        self, table: str, numbers: list[int], texts: list[Hashes]
    ) -> Iterator[tuple[int, int, int, int, Places]]:
        """Yield number of a text, place, own words and length there, starts of common windows."""
        if table not in self._lookups or not numbers:
            return
        stream = _Stream([texts[n] for n in numbers])
        windowed = windows(stream.hashed, PHRASE if table == "phrase" else WINDOW)
        at, entries = self._lookups[table].matches(windowed)
        n = np.searchsorted(stream.starts, at, "right") - 1
        places = self._tables[f"places.{table}"][entries].astype(np.int64)
        order = np.lexsort((at, places, n))
        n, places, at, entries = n[order], places[order], at[order], entries[order]
        ends = np.flatnonzero((np.diff(n) != 0) | (np.diff(places) != 0)) + 1
        least = CANDIDATE if table == "phrase" else 1
        for begin, end in pairwise([0, *ends.tolist(), len(at)]):
            if end - begin < least:
                continue
            own, length = (
                int(self._tables[f"{column}.{table}"][entries[begin]])
                for column in ("own", "lengths")
            )
            starts = np.unique(at[begin:end]) - stream.starts[n[begin]]
            yield numbers[int(n[begin])], int(places[begin]), own, length, starts

    def _row(self, place: int) -> tuple[str, int]:
        """Return the name of the benchmark with a place, and the row there."""
        at = int(np.searchsorted(self._rows_before, place - 1, "right")) - 1
        return self.benchmarks[at].name, place - self._rows_before[at]


def _parts(number: int, row: Record) -> Iterator[Part]:
    """Yield all that a row teaches."""
    for message in row["messages"]:
        if message["role"] != "system":
            yield Part(number, "prompt", message["content"])
    for where in PARTS_OF_ROW:
        if row.get(where) is not None:  # a row that is only a prompt has neither
            yield Part(number, where, row[where])


def _covered(count: int, starts: Places, length: int) -> NDArray[np.bool_]:
    """Return which of so many words are in windows of this length that begin at `starts`."""
    covered = np.zeros(count, bool)
    covered[(starts[:, None] + np.arange(length)).ravel()] = True
    return covered


def _longest(covered: NDArray[np.bool_]) -> tuple[int, int]:
    """Return first word and length of the longest run of covered words; (0, 0) if none is."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]))).reshape(-1, 2)
    if not len(edges):
        return 0, 0
    start, end = edges[int(np.argmax(edges[:, 1] - edges[:, 0]))].tolist()
    return start, end - start


def _words(text: str) -> tuple[Hashes, NDArray[np.bool_]]:
    """Return the hashes of the words of a text, `signed`, and which of them are numbers."""
    spoken = tokens(text)
    hashed, numbers = (
        hashes_of(signed(spoken)),
        np.array([token.isdigit() for token in spoken], bool),
    )
    are = are_words(hashes_of(spoken))
    return hashed[are], numbers[are]


def _by_place(tables: dict[str, NDArray[Any]], table: str) -> dict[int, Hashes]:
    """Return the hashes of a table by their place."""
    if f"hashes.{table}" not in tables:
        return {}
    hashed, places = tables[f"hashes.{table}"], tables[f"places.{table}"]
    order = np.argsort(places, kind="stable")
    values, begins = np.unique(places[order], return_index=True)
    return dict(zip(values.tolist(), np.split(hashed[order], begins[1:]), strict=True))


def clean_prompts(file: Path, index: Sequence[Path]) -> tuple[list[Record], int]:
    """Return the prompts of a JSONL file without benchmark text, and the number of the others."""
    prompts = list(Index(index).annotate(records.read(file)))
    clean = [prompt for prompt, shared in prompts if not shared]
    return clean, len(prompts) - len(clean)


class _Stream:
    """Texts one after another, so that one pass looks up the windows of all of them."""

    def __init__(self, texts: Sequence[Hashes]) -> None:
        ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
        self.starts = ends[:-1]
        self.hashed = np.full(int(ends[-1]), SEPARATOR)
        for start, text in zip(self.starts.tolist(), texts, strict=True):
            self.hashed[start : start + len(text)] = text


class _Lookup:
    """Sorted hashes with a bitmap of their first bits, which rules out most windows at once."""

    def __init__(self, entries: Hashes) -> None:
        self._hashes = entries
        bits = min(max((16 * len(entries)).bit_length(), 12), 26)
        self._shift = np.uint64(64 - bits)
        self._bitmap = np.zeros(1 << bits, bool)
        self._bitmap[entries >> self._shift] = True

    def matches(self, windowed: Hashes) -> tuple[Places, Places]:
        """Return positions of windows that are among the entries, and numbers of these entries."""
        at = np.flatnonzero(self._bitmap[windowed >> self._shift])
        low = np.searchsorted(self._hashes, windowed[at], "left")
        counts = np.searchsorted(self._hashes, windowed[at], "right") - low
        before = np.cumsum(counts) - counts
        entries = np.arange(counts.sum()) + np.repeat(low - before, counts)
        return np.repeat(at, counts), entries
