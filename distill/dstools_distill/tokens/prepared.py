"""Tokenized data sets that trainers write: axolotl's, LLaMA-Factory's, TRL's, or files of rows.

Sources: axolotl 0.19, `preprocess` (a folder named by a hash, in dataset_prepared_path);
LLaMA-Factory 0.9.5, tokenized_path (a folder for each split); TRL 1.16, SFTTrainer.train_dataset.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import json_object
from dstools_distill.data import sources
from dstools_distill.records import Record
from dstools_distill.tokens.invariant import IGNORED, Trained
from dstools_distill.tokens.render import ROWS

FILE_FORM = b"ARROW1"  # Arrow's other form is a stream, which datasets writes
BATCH_ROWS = 1000
MASKS = ("completion_mask", "assistant_masks")  # of TRL, in place of labels
COLUMNS = ("input_ids", "labels", *MASKS, "seq_lengths", "position_ids", "attention_mask")
HINT = "name what the trainer wrote (dataset_prepared_path, tokenized_path), or prepare it again"


class Part(NamedTuple):
    """One conversation of a prepared row."""

    where: str  # "train: row 3, part 2"
    row: Trained  # without padding
    padding: int  # labels of padding in the row, told with its first conversation


def read(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the named rows of all data sets in a folder, or of one file, in order.

    Raises DstoolsError for what is not a whole data set.
    """
    places = {file.parent for file in path.glob("**/state.json")}
    for file in path.glob("**/*.arrow"):
        places.add(file if file.name == ROWS else file.parent)
    for place in sorted(places) or [path]:
        name = f"{place.relative_to(path)}: " if place != path else ""
        try:
            for number, row in _data_set(place):
                yield f"{name}row {number}", row
        except DstoolsError as error:
            raise DstoolsError(str(error), HINT) from None
        except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
            reason = printable(str(error).split("\n")[0])
            raise DstoolsError(f"{place}: cannot be read: {reason}", HINT) from error


def parts(rows: Iterable[tuple[str, Record]], vocabulary: int, name: object) -> Iterator[Part]:
    """Yield the conversations of the named rows of a data set.

    vocabulary: the number of tokens. Packed rows are divided by seq_lengths, position_ids or the
    numbers in attention_mask; padding is left out. Raises DstoolsError with the `name` of the data
    set, row and column for a row without input_ids, with labels, for supervised fine-tuning, and
    for one that lacks a column of the first row of its data set, or has one more.
    """
    firsts: dict[str, tuple[str, set[str]]] = {}
    for where, row in rows:
        try:
            columns = _columns(row, vocabulary)
            given = {key for key in COLUMNS if row.get(key) is not None}
            first, wanted = firsts.setdefault(where.rpartition("row ")[0], (where, given))
            if odd := sorted(given ^ wanted):
                lacks = "is null or missing" if odd[0] in wanted else "has values"
                raise ValueError(f"{odd[0]}: {lacks}, unlike in {first}")
        except ValueError as error:
            raise DstoolsError(f"{name}: {where}: {error}", HINT) from None
        ids, labels, mask = (columns[key] for key in ("input_ids", "labels", "attention_mask"))
        padding = sum(n != IGNORED and not seen for n, seen in zip(labels, mask, strict=True))
        spans = _conversations(columns)
        for n, span in enumerate(spans):
            part = f"{where}, part {n + 1}" if len(spans) > 1 else where
            kept = Trained([ids[at] for at in span], [labels[at] for at in span])
            yield Part(part, kept, 0 if n else padding)


def _data_set(path: Path) -> Iterable[tuple[int, Record]]:
    """Return the numbered rows of one data set or file."""
    if path.is_file() and path.suffix != ".arrow":
        return sources.rows(path, sources.Reading())
    files = [path]
    if path.suffix != ".arrow":
        state = json_object(path / "state.json")
        if isinstance(state, str):
            raise ValueError(f"state.json {state}")
        files = [path / file["filename"] for file in state["_data_files"]]
    return enumerate(chain.from_iterable(map(_arrow, files)), start=1)


def _arrow(path: Path) -> Iterator[Record]:
    """Yield the rows of an Arrow file."""
    with pa.memory_map(str(path)) as file:
        is_file = file.read(len(FILE_FORM)) == FILE_FORM
        file.seek(0)
        table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file).read_all()
        for batch in table.to_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def _columns(row: Record, vocabulary: int) -> dict[str, list[int]]:
    """Return the columns of a row that are read, with labels and attention_mask.

    A mask or positions of more dimensions are not read. ValueError says which column is wrong.
    """
    if "input_ids" not in row:
        kind = "preference data" if any("rejected" in key for key in row) else "not tokenized"
        raise ValueError(f"has no input_ids, only {printable(', '.join(row))}: it is {kind}")
    columns: dict[str, list[int]] = {}
    for key in COLUMNS:
        values = row.get(key)
        is_nested = isinstance(values, list) and bool(values) and isinstance(values[0], list)
        if values is None or (is_nested and key in ("position_ids", "attention_mask")):
            continue
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            shown = printable(repr(values)[:40])
            raise ValueError(f"{key}: is not a list of integers, but {shown}")
        columns[key] = values
        length = sum(map(abs, values)) if key == "seq_lengths" else len(values)
        if length != len(columns["input_ids"]):
            raise ValueError(f"{key}: are for {length} input_ids, not {len(columns['input_ids'])}")
    ids = columns.get("input_ids")
    if not ids:
        raise ValueError("input_ids: is empty")
    if wrong := [n for n in (min(ids), max(ids)) if not 0 <= n < vocabulary]:
        who = "give the tokenizer that prepared the data"
        raise ValueError(f"input_ids: {wrong[0]} is not one of {vocabulary} tokens: {who}")
    masks = [columns[key] for key in MASKS if key in columns]
    masked = [n if all(mask[i] for mask in masks) else IGNORED for i, n in enumerate(ids)]
    return {"labels": masked, "attention_mask": [1] * len(ids)} | columns


def _conversations(columns: dict[str, list[int]]) -> list[list[int]]:
    """Return the places of each conversation of a row in its ids, without padding."""
    labels, mask = columns["labels"], columns["attention_mask"]
    numbers = mask
    if "seq_lengths" in columns:
        lengths = enumerate(columns["seq_lengths"])
        numbers = [n for n, length in lengths for _ in range(length)]
    elif "position_ids" in columns:
        numbers = list(accumulate(at == 0 for at in columns["position_ids"]))
    seen = (n for n in range(len(labels)) if mask[n])
    spans = [list(span) for _, span in groupby(seen, key=numbers.__getitem__)]
    # LLaMA-Factory pads packed rows with positions of 0 that attention_mask does not tell; a row of
    # nothing but padding keeps one place, and is judged as one without labels
    return [span for span in spans if len(span) > 1 or labels[span[0]] != IGNORED] or [[0]]
