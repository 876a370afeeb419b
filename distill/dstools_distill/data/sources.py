"""Rows of other people's files: JSONL, Parquet, a dataset of the Hub's cache, a reasoning-gym task."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_distill import records
from dstools_distill.data.forms import GOLD_KEYS
from dstools_distill.records import Record

BATCH_ROWS = 1024
CHECKED = 8  # problems of a task that are drawn twice


def rows(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield line or row number, from 1, and row of a .jsonl or .parquet file.

    Numbers among the gold answers come as texts, spelled as the file spells them: 1.50 is no 1.5. Raises
    DstoolsError, naming file and line, for what is no JSON object; and for any other kind of file.
    """
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise DstoolsError(f"{path}: is no .jsonl and no .parquet file", "convert it to JSONL")
    for number, line in records.lines(path):
        row = records.parse(line, path, number)
        if any(type(row.get(key)) in (int, float) for key in GOLD_KEYS):
            spelled = json.loads(line, parse_int=str, parse_float=str)
            row |= {key: spelled[key] for key in GOLD_KEYS if type(row.get(key)) in (int, float)}
        yield number, row


def parquet_rows(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield number, from 1, and row of a Parquet file, read in batches."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DstoolsError(f"{path}: Parquet needs pyarrow", INSTALL) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(BATCH_ROWS))
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "is the path right?") from None
    except (OSError, pa.ArrowException) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"{path}: is no Parquet: {reason}", "download it again") from error


def dataset_rows(name: str, split: str) -> Iterator[tuple[int, Record]]:
    """Yield number, from 1, and row of a dataset that is in the local cache; nothing is downloaded.

    name: "org/name", or "org/name/config" where it has several.
    """
    try:
        import datasets
    except ImportError as error:
        raise DstoolsError(f"datasets:{name} needs datasets", INSTALL) from error
    repo, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    hint = (
        f"load it once where there is a network: datasets.load_dataset({repo!r}, {config!r}); or save it "
        "as Parquet and name the file"
    )
    was_offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        dataset = datasets.load_dataset(repo, config, split=split)
    except (OSError, ValueError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(
            f"datasets:{name}: is not in the cache, or has no split {split}: {reason}", hint
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    arrow = dataset.with_format("arrow")
    yield from _numbered(arrow.iter(BATCH_ROWS))


def task_rows(
    name: str, size: int, seed: int, options: dict[str, Any] | None
) -> Iterator[tuple[int, Record]]:
    """Yield number, from 1, and problem of a reasoning-gym task: question, answer and task.

    `task` is {"name", "config", "entry"}: create_dataset(name, **config).score_answer(answer, entry) scores
    an answer. Raises DstoolsError for tasks and options that do not exist, for tasks that draw other
    problems each time, and for those whose scorer does not know its own answer after a way through JSON.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DstoolsError(f"rg:{name} needs reasoning-gym", INSTALL) from error
    if name not in DATASETS:
        raise DstoolsError(f"rg:{name}: reasoning-gym has no such task", "is the name right?")
    config = {"size": size, "seed": seed, **(options or {})}
    try:
        problems, again = create_dataset(name, **config), create_dataset(name, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise DstoolsError(
            f"rg:{name}: refuses its options: {printable(str(error))}",
            f"they are those of reasoning_gym's {DATASETS[name][1].__name__}",
        ) from error
    for number in range(size):
        entry = problems[number]
        try:
            line = json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError) as error:
            reason = printable(str(error))
            raise DstoolsError(f"rg:{name}: a problem is no JSON: {reason}", OTHER_TASK) from error
        kept = json.loads(line)
        if number < CHECKED:
            if json.dumps(again[number]) != line:
                raise DstoolsError(f"rg:{name}: draws other problems each time", OTHER_TASK)
            gold = entry["answer"]
            if gold is not None and problems.score_answer(gold, kept) != problems.score_answer(
                gold, entry
            ):
                raise DstoolsError(f"rg:{name}: its scorer cannot judge from JSON", OTHER_TASK)
        task = {"name": name, "config": config, "entry": kept}
        answer = entry["answer"] or None
        yield number + 1, {"question": entry["question"], "answer": answer, "task": task}


def _numbered(batches: Any) -> Iterator[tuple[int, Record]]:
    """Yield the rows of Arrow batches; numbers among the gold answers as texts."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for key in GOLD_KEYS:
                if type(found := row.get(key)) in (int, float):
                    row[key] = repr(found)
            yield number, row


INSTALL = 'pip install "dstools-llm[distill]"'
OTHER_TASK = "choose another task"
