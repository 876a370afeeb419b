"""Check of .eval_results/*.yaml: scores of a model that the Hub shows on its leaderboards.

Only scores of benchmarks go there; all else that was measured is in the card's text.
Source: huggingface/hub-docs, eval_results.yaml and docs/hub/eval-results.md at 242f4a1, 2026-08-22.
"""

from collections.abc import Iterator
from datetime import datetime
from math import isfinite
from reprlib import repr as short
from typing import Any

from dstools.hub.frontmatter import is_url
from dstools.hub.vocabulary import BENCHMARKS
from dstools.hub.yamltext import load
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.tables import nearest

ENTRY = ("dataset", "value", "verifyToken", "date", "source", "notes", "evaluation_framework")
DATASET = ("id", "task_id", "revision")
SOURCE = ("url", "name", "user", "org")


def check_eval_results(raw: bytes, where: str) -> list[Finding]:
    """Return what the Hub or its client would refuse in a file of results.

    where: the file's name, which begins each finding.
    """
    try:
        entries = load(raw.decode(), where)
    except UnicodeDecodeError:
        return [Finding.error("eval-results", where, "is not UTF-8", "save it as UTF-8")]
    except DstoolsError as error:
        message = str(error).removeprefix(f"{where}: ")
        return [Finding.error("eval-results", where, message, error.hint)]
    if not isinstance(entries, list) or not entries:
        hint = "write each result after a dash: - dataset:"
        return [Finding.error("eval-results", where, "is not a list of results", hint)]
    findings = []
    for number, entry in enumerate(entries):
        for key, message, hint in _check_entry(entry):
            place = f"{where}: [{number}]" + (f".{printable(key)}" if key else "")
            findings.append(Finding.error("eval-results", place, message, hint))
    return findings


Fault = tuple[str, str, str]  # key, message, hint


def _check_entry(entry: Any) -> Iterator[Fault]:
    if not isinstance(entry, dict):
        yield "", "is not a table", "write the keys dataset and value"
        return
    yield from _unknown(entry, "", ENTRY)
    yield from _check_dataset(entry.get("dataset"))
    value = entry.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield "value", f"{short(value)} is not a number", "write the measured number, unquoted"
    elif isinstance(value, float) and not isfinite(value):
        yield "value", f"{value} is not finite", "leave out what has no score"
    yield from _check_texts(entry, "", ("verifyToken", "notes", "evaluation_framework"))
    if "date" in entry:
        yield from _check_date(entry["date"])
    if "source" in entry:
        yield from _check_source(entry["source"])


def _check_dataset(dataset: Any) -> Iterator[Fault]:
    if not isinstance(dataset, dict):
        yield "dataset", "is not a table", "write its keys id and task_id"
        return
    yield from _unknown(dataset, "dataset.", DATASET)
    if dataset.get("id") not in BENCHMARKS:
        known = f"known are {', '.join(BENCHMARKS)}; put other results into the text of the card"
        yield "dataset.id", f"{short(dataset.get('id'))} is not a benchmark of the Hub", known
    if "task_id" not in dataset:
        yield "dataset.task_id", "is missing", "write a task of the data set's eval.yaml"
    yield from _check_texts(dataset, "dataset.", ("task_id", "revision"))


def _check_date(date: Any) -> Iterator[Fault]:
    if not isinstance(date, str):
        yield "date", "is not text", f'put it in quotes: "{date}"'
        return
    try:
        datetime.fromisoformat(date)
    except ValueError:
        yield "date", f"{short(date)} is not a date of ISO 8601", 'write it as "2026-11-28"'


def _check_source(source: Any) -> Iterator[Fault]:
    if not isinstance(source, dict):
        yield "source", "is not a table", "write its key url"
        return
    yield from _unknown(source, "source.", SOURCE)
    url = source.get("url")
    if not isinstance(url, str) or not is_url(url):
        hint = "write an address that begins with https://, or remove source"
        yield "source.url", "is missing" if url is None else f"{short(url)} is not a URL", hint
    yield from _check_texts(source, "source.", ("name", "user", "org"))


def _check_texts(table: dict[Any, Any], prefix: str, keys: tuple[str, ...]) -> Iterator[Fault]:
    for key in keys:
        value = table.get(key)
        if key in table and not (isinstance(value, str) and value.strip()):
            yield f"{prefix}{key}", f"{short(value)} is not text", "write text, in quotes"


def _unknown(table: dict[Any, Any], prefix: str, known: tuple[str, ...]) -> Iterator[Fault]:
    for key in table:
        if key not in known:
            yield f"{prefix}{key}", "no such key", nearest(str(key), known)
