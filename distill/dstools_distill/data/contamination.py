"""Search for texts of benchmarks, indexed by benchmarks.py, in the rows of a data set.

A text that has a quarter of a question's own pairs of words or numbers is compared with it, word by
word (alignment.py): prompt, trace or answer. Questions that are indexed as a whole are found as a
whole. Beside that, runs of ten words find parts of a text, which no comparison with all of it can:
a trace quotes the problem in parts. In traces and answers any such run is a hit, unless the row's
own prompt has it or most of it is digits. A prompt repeats a part if three fifths of it are such
runs of one text, and it has no other numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dstools_distill import records
from dstools_distill.data.alignment import PAIR, Hashes, Places, Words, repeated, words_of
from dstools_distill.data.benchmarks import WINDOW, Benchmark, Tables, load_index, merged, moved
from dstools_distill.data.ngrams import (
    BASE,
    Lookup,
    are_numbers,
    are_words,
    hashes,
    hashes_of,
    tokens,
    whole,
    windows,
)
from dstools_distill.figures import SPELLED
from dstools_distill.records import Record

ANYWHERE = 4  # tokens; a shorter question must be the whole prompt
BATCH_ROWS = 1024  # rows that are searched together
SEPARATOR = np.uint64(0x5851F42D4C957F2D)  # between two texts, so that no window spans both
CONTINUED = hashes_of(["+", "-", "/", "^"])  # after a whole question: it is part of a longer one
DIGITS = hashes_of([*"0123456789"])
IN_PAIRS = 0.25  # least share of a question's own pairs that a prompt has
IN_COMMON = 0.6  # least share of a prompt that is part of a question
TEXTS = 1 << 32  # more than a benchmark has
PARTS_OF_ROW = ("reasoning", "answer")


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
            key.partition(".")[2]: Lookup(column)
            for key, column in self._tables.items()
            if key.startswith("hashes.") and key != "hashes.word"
        }
        self._words = _by_place(self._tables)
        # number of a place and text with pairs, counted, -> both; number of a pair -> that number
        self._asked, self._asked_of_pairs = _asked(self._tables, "pair")

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
            window = window.replace(SPELLED, "")
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
        # each part that shares something is read once, however many texts share it
        read = cache(lambda n: words_of(tokens(parts[n].text)))
        stream_of_words = _Stream(spoken)
        asked = list(self._questions(stream_of_words, read))
        known = {(n, place) for n, place, *_ in asked}
        runs = self._runs(parts, spoken, stream_of_words, read)
        passages = [run for run in runs if run[:2] not in known]
        for n, place, at, length, share in (*asked, *passages):
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

    def _questions(
        self, stream: "_Stream", read: Callable[[int], Words]
    ) -> Iterator[tuple[int, int, int, int, float]]:
        """Yield part, place, first word, number of words and share of questions that are there."""
        for n, place, text, starts in self._candidates(stream):
            if found := repeated(self._words[place][text], read(n), starts):
                start, end, share = found
                yield n, place, start, end - start, share

    def _candidates(self, stream: "_Stream") -> Iterator[tuple[int, int, int, Places]]:
        """Yield number of a part, place and number of a question, and where its own pairs begin.

        That is, of the pairs of the question that few others have, at least a quarter.
        """
        if "pair" not in self._lookups:
            return
        numbers = np.flatnonzero(are_numbers(stream.hashed) | (stream.hashed == SEPARATOR))
        paired = [windows(stream.hashed, PAIR), windows(stream.hashed[numbers], PAIR)]
        at, entries = self._lookups["pair"].matches(np.concatenate(paired))
        at = np.concatenate([np.arange(len(paired[0])), numbers[:-1]])[at]
        n = np.searchsorted(stream.starts, at, "right") - 1
        asked = self._asked_of_pairs[entries]
        # by part, text and pair; one key is sorted in a fifth of the time of three
        order = np.argsort((n * len(self._asked) + asked) * len(self._asked_of_pairs) + entries)
        n, asked, at, entries = n[order], asked[order], at[order], entries[order]
        firsts = _firsts(n, asked)
        distinct = np.cumsum(np.diff(entries, prepend=-1) != 0)  # an entry is of one place
        counts = np.diff(distinct[firsts], append=distinct[-1:] + 1)
        is_near = counts >= IN_PAIRS * self._tables["own.pair"][entries[firsts]]
        ends = np.append(firsts, len(at))
        for group in np.flatnonzero(is_near).tolist():
            begin = firsts[group]
            starts = np.unique(at[begin : ends[group + 1]]) - stream.starts[n[begin]]
            yield int(n[begin]), *divmod(int(self._asked[asked[begin]]), TEXTS), starts

    def _runs(
        self,
        parts: Sequence[Part],
        texts: list[Hashes],
        stream: "_Stream",
        read: Callable[[int], Words],
    ) -> Iterator[tuple[int, int, int, int, float]]:
        """Yield part, place, first word, number of words and share of texts partly there."""
        asked: dict[int, list[Hashes]] = {}
        for part, text in zip(parts, texts, strict=True):
            if part.where == "prompt":
                asked.setdefault(part.row, []).append(windows(text, WINDOW))
        for n, place, length, starts in self._shared_runs(stream):
            part = parts[n]
            if part.where != "prompt":
                of_prompt = np.concatenate([*asked.get(part.row, []), hashes_of([])])
                starts = starts[~np.isin(windows(texts[n], WINDOW)[starts], of_prompt)]
            covered = _covered(len(texts[n]), starts, WINDOW)
            if self._is_part(part, read(n), place, covered):
                yield n, place, *_longest(covered), min(int(covered.sum()) / length, 1.0)

    def _is_part(self, part: Part, words: Words, place: int, covered: NDArray[np.bool_]) -> bool:
        """Return whether the covered words are a part of a text, and not a formula.

        A prompt must be little else, without numbers but those of the question.
        """
        if 2 * int(np.isin(words.hashes[covered], DIGITS).sum()) >= covered.sum():
            return False
        if part.where != "prompt":
            return True
        own = Counter[int]()
        for question in self._words.get(place, {}).values():
            own |= Counter(question.hashes[are_numbers(question.hashes)].tolist())
        is_most = covered.mean() >= IN_COMMON
        return bool(is_most and Counter(words.hashes[words.numbers].tolist()) <= own)

    def _shared_runs(self, stream: "_Stream") -> Iterator[tuple[int, int, int, Places]]:
        """Yield number of a text, place and length of a benchmark's, starts of common runs."""
        if "run" not in self._lookups:
            return
        at, entries = self._lookups["run"].matches(windows(stream.hashed, WINDOW))
        n = np.searchsorted(stream.starts, at, "right") - 1
        places = self._tables["places.run"][entries].astype(np.int64)
        order = np.lexsort((at, places, n))
        n, places, at, entries = n[order], places[order], at[order], entries[order]
        for begin, end in pairwise([*_firsts(n, places).tolist(), len(at)]):
            length = int(self._tables["lengths.run"][entries[begin]])
            starts = np.unique(at[begin:end]) - stream.starts[n[begin]]
            yield int(n[begin]), int(places[begin]), length, starts

    def _row(self, place: int) -> tuple[str, int]:
        """Return the name of the benchmark with a place, and the row there."""
        at = int(np.searchsorted(self._rows_before, place - 1, "right")) - 1
        return self.benchmarks[at].name, place - self._rows_before[at]


def _parts(number: int, row: Record) -> Iterator[Part]:
    """Yield all that a row teaches."""
    for message in row["messages"]:
        yield Part(number, "prompt", message["content"])
    for where in PARTS_OF_ROW:
        if row.get(where) is not None:  # a row that is only a prompt has neither
            yield Part(number, where, row[where])


def _firsts(n: Places, places: NDArray[np.int64]) -> Places:
    """Return where a new text, or a new place in it, begins."""
    return np.flatnonzero((np.diff(n, prepend=-1) != 0) | (np.diff(places, prepend=-1) != 0))


def _covered(count: int, starts: Places, length: int) -> NDArray[np.bool_]:
    """Return which of `count` words are in windows of this length that begin at `starts`."""
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


def _asked(tables: Tables, table: str) -> tuple[NDArray[np.int64], Places]:
    """Return a number for each place and text of a table, and which of them each row is of."""
    none = np.zeros(0, np.int64)
    places, texts = (
        tables.get(f"{column}.{table}", none).astype(np.int64) for column in ("places", "texts")
    )
    return np.unique(places * TEXTS + texts, return_inverse=True)


def _by_place(tables: Tables) -> dict[int, dict[int, Words]]:
    """Return the words of the questions at each place, by the number of the text."""
    by_place: dict[int, dict[int, Words]] = {}
    if "hashes.word" not in tables:
        return by_place
    values, asked = _asked(tables, "word")
    order = np.lexsort((tables["offsets.word"], asked))
    begins = np.searchsorted(asked[order], np.arange(len(values)))
    hashed, signed = (
        np.split(tables[f"{column}.word"][order], begins[1:]) for column in ("hashes", "signed")
    )
    lengths = tables["lengths.word"][order][begins].tolist()
    for number, *words in zip(values.tolist(), hashed, signed, lengths, strict=True):
        place, text = divmod(number, TEXTS)
        by_place.setdefault(place, {})[text] = Words(*words)
    return by_place


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
