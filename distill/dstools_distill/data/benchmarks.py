"""Index of benchmark texts: hashes by which the texts are found in others, and its file.

Words are tokens that carry information: numbers, and words that are not single letters or symbols.
Every text is indexed by its runs of ten words, and a question of more than ten, or of five with a
number, by its words and by pairs: two words, or two numbers with words between them. What more than
ten texts share identifies no problem and is left out: pairs, and runs apart from their numbers
("the following arithmetic problem: 3"); a pair of numbers, more than a twentieth of the texts. A
question of ten words or less, or without a pair or a run that is left, is indexed as a whole. So is
one that a program made, as other numbers make another problem. Short answers are not indexed.

The file is in the safetensors format; a table is a few columns of one length, sorted by hash:

| table | rows | columns |
|---|---|---|
| run | runs of ten words | hashes, places, lengths: words of the text |
| pair | pairs of words or numbers | hashes, places, texts, own: those of the text |
| word | words of questions | hashes, places, texts, offsets, signed, lengths: of texts, in tokens |
| n = 1 .. 10 | questions of n tokens | hashes, places |
| whole | longer questions | hashes, places, offsets, lengths, all |

`places`: uint32, the row of each, counted over all benchmarks; `texts`, the number of the text in
it. `hashes.whole` is the hash of the rarest window of ten tokens, by which a question is found,
`offsets.whole` its start, `lengths.whole` and `all.whole` length and hash of the whole question.
The file holds no text; words and windows can only be guessed and checked.
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
from dstools_distill.data.alignment import PAIR, Hashes, Words, words_of
from dstools_distill.data.ngrams import (
    KEY,
    NORMALISATION,
    are_numbers,
    are_words,
    hashes_of,
    whole,
    windows,
)

WINDOW = 10  # words, of the runs of a text; tokens, of the window that finds a whole question
LONGEST = 1000  # tokens from its start, by which a question is compared
LEAST_WORDS = 5  # of a question that is found with some of its words replaced
COMMON_TEXTS = 10
COMMON_SHARE = 0.05  # of all texts, for pairs of numbers: they tell apart what a program made
EVAL_INDEX = "eval.ngrams"  # index of the problems of a recipe's [eval]
METADATA = "dstools contamination index"
BAD_INDEX = "build it again with `dstools distill index`"

Tables = dict[str, NDArray[Any]]
# generated: by a program, like many others; stem: of a question, without its options
Kind = Literal["question", "stem", "generated", "answer"]


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


class Common(NamedTuple):
    """Windows that many texts share, sorted."""

    runs: Hashes  # of ten words, numbers masked
    pairs: Hashes  # of words
    numbers: Hashes  # pairs of numbers


def common_windows(texts: Iterable[Text]) -> Common:
    """Return what too many of all texts of an index share, whichever benchmark they are of."""
    having = (text.tokens for text in texts if text.tokens)
    distinct = list({whole(hashes_of(tokens)): tokens for tokens in having}.values())
    spoken = [words_of(tokens) for tokens in distinct]
    most = max(COMMON_TEXTS, int(COMMON_SHARE * len(distinct)))
    return Common(
        _more_often([windows(_masked(tokens), WINDOW) for tokens in distinct], COMMON_TEXTS),
        _more_often([windows(words.hashes, PAIR) for words in spoken], COMMON_TEXTS),
        _more_often([_pairs_of_numbers(words) for words in spoken], most),
    )


def _more_often(texts: list[Hashes], most: int) -> Hashes:
    """Return the windows that more than `most` texts have."""
    distinct = [np.unique(text) for text in texts]
    values, counts = np.unique(np.concatenate([*distinct, hashes_of([])]), return_counts=True)
    common: Hashes = values[counts > most]
    return common


def build_tables(
    name: str, digest: str, texts: Iterable[Text], common: Common
) -> tuple[Benchmark, Tables]:
    """Return a benchmark and its tables; equal texts count once, with the row of the first."""
    distinct: dict[int, Text] = {}
    rows = questions = unknown = 0
    for text in texts:
        rows = max(rows, text.row)
        asks = text.kind in ("question", "generated")
        questions += asks
        unknown += asks and not text.tokens
        if text.tokens:
            distinct.setdefault(whole(hashes_of(text.tokens)), text)
    entries: dict[str, dict[tuple[int, ...], None]] = {}  # table -> rows of it, in order
    wholes: list[Text] = []
    for number, text in enumerate(distinct.values()):
        is_found = text.kind in ("answer", "stem")
        if text.kind in ("question", "answer"):
            runs = _runs(text, common)
            entries.setdefault("run", {}).update(dict.fromkeys(runs))
            is_found |= bool(runs)
        if text.kind in ("question", "stem") and _is_long(words_of(text.tokens)):
            pairs, words = _pairs_and_words(text, number, common)
            if pairs:
                entries.setdefault("pair", {}).update(dict.fromkeys(pairs))
                entries.setdefault("word", {}).update(dict.fromkeys(words))
            else:
                is_found = text.kind == "stem"
        if not is_found:
            wholes.append(text)
    for table, row in _wholes(wholes):
        entries.setdefault(table, {}).setdefault(row)
    tables = merged([_columns(table, list(found)) for table, found in entries.items() if found])
    counts = (rows, questions, len(tables.get("hashes.run", ())), len(wholes), unknown)
    return Benchmark(name, digest, *counts), tables


def _is_long(words: Words) -> bool:
    """Return whether a question is told from others though some of its words were replaced."""
    count = len(words.hashes)
    return count > WINDOW or (count >= LEAST_WORDS and bool(words.numbers.any()))


def _runs(text: Text, common: Common) -> list[tuple[int, ...]]:
    """Return the rows of the table of runs."""
    words = words_of(text.tokens).hashes
    own = ~np.isin(windows(_masked(text.tokens), WINDOW), common.runs)
    return [(run, text.row, len(words)) for run in windows(words, WINDOW)[own].tolist()]


def _pairs_and_words(
    text: Text, number: int, common: Common
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the rows of the tables of pairs and of words."""
    words = words_of(text.tokens[:LONGEST])
    pairs = windows(words.hashes, PAIR), _pairs_of_numbers(words)
    left = [each[~np.isin(each, shared)] for each, shared in zip(pairs, common[1:], strict=True)]
    own = np.unique(np.concatenate(left)).tolist()
    spoken = zip(words.hashes.tolist(), words.signed.tolist(), strict=True)
    return (
        [(pair, text.row, number, len(own)) for pair in own],
        [(word, text.row, number, n, sign, words.length) for n, (word, sign) in enumerate(spoken)],
    )


def _pairs_of_numbers(words: Words) -> Hashes:
    """Return the pairs of numbers, in figures or in words, with any words between them."""
    return windows(words.hashes[are_numbers(words.hashes)], PAIR)


def _masked(text: list[str]) -> Hashes:
    """Return the hashes of the words of a text, with one hash for all numbers."""
    hashed = hashes_of(["0" if token.isdigit() else token for token in text])
    return hashed[are_words(hashed)]


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
    "pair": ("texts", "own"),
    "run": ("lengths",),
    "whole": ("offsets", "lengths", "all"),
    "word": ("texts", "offsets", "signed", "lengths"),
}


def _columns(table: str, rows: list[tuple[int, ...]]) -> Tables:
    columns = (*COLUMNS, *MORE.get(table, ()))
    return {
        f"{column}.{table}": np.array(
            [row[n] for row in rows],
            np.uint64 if column in ("hashes", "all", "signed") else np.uint32,
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
    """Return tables whose places follow `rows_before` rows of other benchmarks."""
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
