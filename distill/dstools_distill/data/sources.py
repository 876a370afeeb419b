"""Rows of data sets: JSONL, Parquet, the local cache of the Hub, reasoning-gym tasks."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, install_hint, printable
from dstools_converters.files import PARQUET_MAGIC, not_utf8
from dstools_distill import records
from dstools_distill.data.choices import BASES, index_bases
from dstools_distill.data.columns import BadRowError, plain
from dstools_distill.data.forms import Question, convert
from dstools_distill.data.golds import GOLD_KEYS
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Form
from dstools_distill.records import Record

BATCH_ROWS = 1024
FIRST_BYTES = 256  # more than any kind of file is known by
CHECKED = 8  # problems of a task that are drawn twice
Rows = Iterator[tuple[int, Record]]
Questions = Iterator[tuple[int, Record, Question]]


@dataclass
class Reading:
    """What a source turned out to be, besides its questions."""

    max_bad: int | None = None  # rows that may be left out; None: the user has no say in it
    # compares golds, so that a row with a doubtful one is a bad one; None: golds are not needed
    referee: Referee | None = None
    first_option: int | None = None  # what indices of options count from; None: the rows tell
    bad: int = 0
    first_bad: str = ""  # where, and why
    unread: set[str] = field(default_factory=set)  # columns that nothing was taken from

    def leave_out(self, problem: str, hint: str) -> None:
        """Count a row that holds no question; raise DstoolsError if there are too many of them."""
        self.bad += 1
        self.first_bad = self.first_bad or problem
        if self.bad > (self.max_bad or 0):
            if self.max_bad is not None:
                hint += "; or leave out up to N such rows: max_bad = N in the source"
            raise DstoolsError(problem, hint)


def questions(path: Path, form: Form, reading: Reading) -> Questions:
    """Yield line or row number, from 1, row, and question of a .jsonl or .parquet file.

    Fills `reading`. Raises DstoolsError, naming file and line, for a row that is not a question,
    once there are more of them than reading.max_bad.
    """
    unit = "row" if path.suffix == ".parquet" else "line"
    yield from converted(partial(rows, path), f"{path}: {unit}", form, reading)


def converted(
    read: Callable[[Reading], Rows], where: str, form: Form, reading: Reading
) -> Questions:
    """Yield numbered rows with the question of each; `where` and the number name a bad row.

    All rows are read before the first index of an option is, to learn what it counts from.
    """

    @cache
    def bases() -> frozenset[int]:
        if reading.first_option is not None:
            return frozenset({reading.first_option})
        if reading.referee is None:
            return BASES
        return index_bases(row for _, row in read(Reading(sys.maxsize)))

    for number, row in read(reading):
        try:
            question = convert(row, form, reading.referee, bases)
            if question.doubt is not None and reading.referee is not None:
                raise question.doubt
        except BadRowError as error:
            reading.leave_out(f"{where} {number}: {error}", error.hint or records.BAD_LINE)
            continue
        reading.unread.update(question.unread)
        yield number, row, question


def rows(path: Path, reading: Reading) -> Rows:
    """Yield line or row number, from 1, and row of a .jsonl or .parquet file.

    Numeric gold answers become strings, spelled as in the file: 1.50 is not 1.5. Raises
    DstoolsError for other file types and, naming file and line, for anything but a JSON object,
    once there are more such lines than reading.max_bad.
    """
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    if other := _instead(path):  # not a bad line, of which max_bad may be left out
        raise other
    if path.suffix not in (".jsonl", ".json"):
        raise DstoolsError(f"{path}: is not a .jsonl or .parquet file", "convert it to JSONL")
    for number, line in records.lines(path):
        try:
            row = records.parse(line, path, number)
        except DstoolsError as error:
            reading.leave_out(str(error), error.hint)
            continue
        if numeric := _numeric_golds(row):
            spelled = json.loads(line, parse_int=str, parse_float=str)
            row |= {key: spelled[key] for key in numeric}
        yield number, row


def parquet_rows(path: Path) -> Rows:
    """Yield number, from 1, and row of a Parquet file, which is read in batches."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DstoolsError(f"{path}: Parquet needs pyarrow", INSTALL) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(BATCH_ROWS))
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "check the path") from None
    except (OSError, pa.ArrowException) as error:
        reason = printable(str(error).strip().split("\n")[0])
        message = f"{path}: is not a Parquet file: {reason}"
        raise _instead(path) or DstoolsError(message, "download it again") from error


def _instead(path: Path) -> DstoolsError | None:
    """Return an error that says what a file is, where its first bytes tell better than its name."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(FIRST_BYTES)
    is_named = path.suffix == ".parquet" and start.startswith(PARQUET_MAGIC)
    instead = None if is_named else not_utf8(start)
    return instead and DstoolsError(f"{path}: {instead[0]}", instead[1])


def dataset_rows(name: str, split: str) -> Rows:
    """Yield number, from 1, and row of a dataset in the local cache; downloads nothing.

    name: "org/name", or "org/name/config" for a dataset with several configurations.
    """
    try:
        import datasets
    except ImportError as error:
        raise DstoolsError(f"datasets:{name} needs datasets", INSTALL) from error
    repo, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    hint = (
        f"load it once online: datasets.load_dataset({repo!r}, {config!r}); or save it as Parquet "
        "and name the file"
    )
    was_offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        dataset = datasets.load_dataset(repo, config, split=split)
    except (OSError, ValueError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(
            f"datasets:{name}: is not in the local cache, or has no split {split}: {reason}", hint
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    arrow = dataset.with_format("arrow")
    yield from _numbered(arrow.iter(BATCH_ROWS))


def task_rows(name: str, size: int, seed: int, options: dict[str, Any] | None) -> Rows:
    """Yield number, from 1, and problem of a reasoning-gym task: question, answer and task.

    `task` is {"name", "config", "entry"}; to score an answer, call
    create_dataset(name, **config).score_answer(answer, entry). Raises DstoolsError for tasks and
    options that do not exist, for tasks that draw other problems each time, and for tasks whose
    scorer refuses their own answer once an entry has been saved as JSON.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DstoolsError(f"rg:{name} needs reasoning-gym", INSTALL) from error
    if name not in DATASETS:
        raise DstoolsError(f"rg:{name}: reasoning-gym has no such task", "check the name")
    config = {"size": size, "seed": seed, **(options or {})}
    try:
        problems, again = create_dataset(name, **config), create_dataset(name, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise DstoolsError(
            f"rg:{name}: has bad options: {printable(str(error))}",
            f"see reasoning_gym's {DATASETS[name][1].__name__}",
        ) from error
    for number in range(size):
        entry = problems[number]
        try:
            line = json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError) as error:
            reason = printable(str(error))
            message = f"rg:{name}: a problem cannot be saved as JSON: {reason}"
            raise DstoolsError(message, OTHER_TASK) from error
        saved, gold = json.loads(line), entry["answer"]
        if number < CHECKED:
            if json.dumps(again[number]) != line:
                raise DstoolsError(f"rg:{name}: draws other problems each time", OTHER_TASK)
            score = problems.score_answer
            if gold is not None and score(gold, saved) != score(gold, entry):
                raise DstoolsError(f"rg:{name}: its scorer cannot judge from JSON", OTHER_TASK)
        task = {"name": name, "config": config, "entry": saved}
        yield number + 1, {"question": entry["question"], "answer": gold or None, "task": task}


def _numbered(batches: Any) -> Rows:
    """Yield the rows of Arrow batches, with numeric gold answers as strings."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row | {key: repr(row[key]) for key in _numeric_golds(row)}


def _numeric_golds(row: Record) -> list[str]:
    """Return the columns with a gold answer that is a number."""
    return [key for key in row if type(row[key]) in (int, float) and plain(key) in GOLD_KEYS]


INSTALL = install_hint("distill")
OTHER_TASK = "choose another task"
