"""Index of benchmark texts: hashes by which the texts are found in others, and its file.

Words are tokens that carry information: numbers, and words that are not single letters or symbols.
A question is indexed by its phrases, runs of three words, and every text by its runs of ten. What
more than ten texts of a benchmark share identifies no problem and is left out: phrases, and runs
apart from their numbers ("the following arithmetic problem: 3"). A question of ten words or less,
or with few phrases or no run left, is indexed as a whole, a formula of three numbers by its phrases
too. So is a question that a program made, as other numbers make another problem. Short answers are
not indexed.

The file is in the safetensors format; a table is a few columns of one length, sorted by hash:

| table | rows | columns |
|---|---|---|
| phrase, run | windows of a text | hashes, places, lengths: its words, own: those in windows |
| number, word | its numbers, with a sign after them; words of four letters | hashes, places |
| 1 .. 10 | questions of so many tokens | hashes, places |
| whole | longer questions | hashes, places, offsets, lengths, all |

`places`: uint32, the row of each, counted over all benchmarks. `hashes.whole` is the hash of the
rarest window of ten tokens, by which a question is found, `offsets.whole` its start,
`lengths.whole` and `all.whole` length and hash of the whole question. The file holds no text; words
and windows can only be guessed and checked.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dstools_converters.errors import DstoolsError, disk_errors, printable
from dstools_converters.files import replace_file
from dstools_distill.data.ngrams import (
    KEY,
    NORMALISATION,
    are_words,
    hashes_of,
    signed,
    whole,
    windows,
)

WINDOW = 10  # words, of the runs of a text; tokens, of the window that finds a whole question
PHRASE = 3  # words
LONG_WORD = 4  # letters
COMMON_TEXTS = 10
FORMULA_NUMBERS = 3  # distinct ones, by which a shorter question is found, too
OWN_SHARE = 0.2  # of its words, which a question has in phrases that few others have
EVAL_INDEX = "eval.ngrams"  # index of the problems of a recipe's [eval]
METADATA = "dstools contamination index"
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
    windows: int  # runs of ten words
    wholes: int  # questions indexed as a whole
    unknown: int  # questions without a word or a number, which cannot be found


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
    entries: dict[str, dict[tuple[int, ...], None]] = {}  # table -> rows of it, in order
    wholes: list[Text] = []

    def add(table: str, words: Hashes, own: NDArray[np.bool_], row: int) -> None:
        """Add those windows of a text to a table that are its own."""
        length = PHRASE if table == "phrase" else WINDOW
        size = len(_covered(own, length))
        rest = (row, size, len(words))
        values = windows(words, length)[own].tolist()
        entries.setdefault(table, {}).update(((value, *rest), None) for value in values)

    spoken = {key: _words(text.tokens) for key, text in distinct.items()}
    masked = {key: _masked(text.tokens) for key, text in distinct.items()}
    common = {PHRASE: _common(spoken.values(), PHRASE), WINDOW: _common(masked.values(), WINDOW)}
    for key, text in distinct.items():
        words, is_found = spoken[key], text.kind == "answer"
        if text.kind != "generated":
            own = ~np.isin(windows(masked[key], WINDOW), common[WINDOW])
            add("run", words, own, text.row)
            is_found |= bool(own.any())
        told_apart = _told_apart_by(text.tokens)
        is_long = len(words) > WINDOW or len(set(told_apart["number"])) >= FORMULA_NUMBERS
        if text.kind == "question" and is_long:
            own = ~np.isin(windows(words, PHRASE), common[PHRASE])
            if OWN_SHARE * len(words) <= len(_covered(own, PHRASE)):
                add("phrase", words, own, text.row)
                for table, values in told_apart.items():
                    found = entries.setdefault(table, {})
                    found.update(((value, text.row), None) for value in values)
            else:
                is_found = False
        if not is_found:
            wholes.append(text)
    for table, row in _wholes(wholes):
        entries.setdefault(table, {}).setdefault(row)
    tables = merged([_columns(table, list(found)) for table, found in entries.items() if found])
    counts = (rows, questions, len(tables.get("hashes.run", ())), len(wholes), unknown)
    return Benchmark(name, digest, *counts), tables


def _covered(own: NDArray[np.bool_], length: int) -> NDArray[np.intp]:
    """Return the words in windows that are marked by their start."""
    covered: NDArray[np.intp] = np.unique(np.flatnonzero(own)[:, None] + np.arange(length))
    return covered


def _common(texts: Iterable[Hashes], length: int) -> Hashes:
    """Return the windows of so many words that more than ten texts have."""
    windowed = [np.unique(windows(text, length)) for text in texts]
    values, counts = np.unique(np.concatenate([*windowed, hashes_of([])]), return_counts=True)
    common: Hashes = values[counts > COMMON_TEXTS]
    return common


def _words(text: list[str]) -> Hashes:
    """Return the hashes of the words of a text."""
    hashed = hashes_of(text)
    return hashed[are_words(hashed)]


def _masked(text: list[str]) -> Hashes:
    """Return the hashes of the words of a text, with one hash for all numbers."""
    return _words(["0" if token.isdigit() else token for token in text])


def _told_apart_by(text: list[str]) -> dict[str, list[int]]:
    """Return the hashes of the numbers of a text, and of its long words; a Chinese one is long."""
    numbers = [token for token in signed(text) if token[0].isdigit()]
    words = [
        token
        for token, is_word in zip(text, are_words(hashes_of(text)), strict=True)
        if is_word and not token.isdigit() and (len(token) >= LONG_WORD or not token.isascii())
    ]
    return {"number": hashes_of(numbers).tolist(), "word": hashes_of(words).tolist()}


def _wholes(texts: list[Text]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the table, and the row of it, of questions to be found as a whole.

    A question of more than ten tokens is found by the window that the fewest of these texts have.
    """
    hashed = [hashes_of(text.tokens) for text in texts]
    windowed = [windows(text_hashes, WINDOW) for text_hashes in hashed]
    values, counts = np.unique(np.concatenate([*windowed, hashes_of([])]), return_counts=True)
    for text, text_hashes, own in zip(texts, hashed, windowed, strict=True):
        length, hash_of_all = len(text_hashes), whole(text_hashes)
        if length <= WINDOW:
            yield str(length), (hash_of_all, text.row)
            continue
        rarest = int(np.argmin(counts[np.searchsorted(values, own)]))
        yield "whole", (int(own[rarest]), text.row, rarest, length, hash_of_all)


COLUMNS = ("hashes", "places")
MORE = {
    "phrase": ("own", "lengths"),
    "run": ("own", "lengths"),
    "whole": ("offsets", "lengths", "all"),
}


def _columns(table: str, rows: list[tuple[int, ...]]) -> Tables:
    columns = (*COLUMNS, *MORE.get(table, ()))
    return {
        f"{column}.{table}": np.array(
            [row[n] for row in rows], np.uint64 if column in ("hashes", "all") else np.uint32
        )
        for n, column in enumerate(columns)
    }


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


def moved(part: Tables, rows_before: int) -> Tables:
    """Return tables whose places follow those of other benchmarks with so many rows."""
    return {
        key: column + np.uint32(rows_before) if key.startswith("places.") else column
        for key, column in part.items()
    }


def save_index(out: Path, parts: Sequence[tuple[Benchmark, Tables]]) -> None:
    """Write the index file of some benchmarks atomically; the same parts give the same bytes."""
    rows_before, parts_moved = 0, []
    for benchmark, part in parts:
        parts_moved.append(moved(part, rows_before))
        rows_before += benchmark.rows
    tables = merged(parts_moved)
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
