"""Tokenized data sets that trainers write: axolotl's, LLaMA-Factory's, TRL's, or files of rows.

Sources: axolotl 0.19, `preprocess` (a folder named by a hash, in dataset_prepared_path);
LLaMA-Factory 0.9.5, tokenized_path (a folder for each split); TRL 1.16, SFTTrainer.train_dataset.
"""

from collections.abc import Iterator
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import json_object
from dstools_distill.data.sources import Reading, rows
from dstools_distill.records import Record
from dstools_distill.tokens import render
from dstools_distill.tokens.invariant import IGNORED, Trained

FILE_FORM = b"ARROW1"  # Arrow's other form is a stream, which datasets writes
MASKS = ("completion_mask", "assistant_masks")  # of TRL, in place of labels
HINT = "name what the trainer wrote (dataset_prepared_path, tokenized_path), or prepare it again"


class Part(NamedTuple):
    """One conversation of a prepared row."""

    where: str  # "train: row 3, part 2"
    row: Trained  # without padding
    padding: int  # labels of padding in the row, told with its first conversation


def parts(path: Path, vocabulary: int) -> Iterator[Part]:
    """Yield the conversations of all data sets in a folder, or of one file, in order.

    vocabulary: the number of tokens. Packed rows are divided by seq_lengths, position_ids or the
    numbers in attention_mask; padding is left out. Raises DstoolsError, naming data set, row and
    column, for what is not a whole data set of input_ids with labels for supervised fine-tuning.
    """
    places = {file.parent for file in path.glob("**/state.json")}
    for file in path.glob("**/*.arrow"):
        places.add(file if file.name == render.ROWS else file.parent)
    for place in sorted(places) or [path]:
        name = f"{place.relative_to(path)}: " if place != path else ""
        for number, row in _data_set(place):
            where = f"{name}row {number}"
            try:
                columns = _columns(row, vocabulary)
            except ValueError as error:
                raise DstoolsError(f"{path}: {where}: {error}", HINT) from None
            ids, labels, mask = (columns[key] for key in ("input_ids", "labels", "attention_mask"))
            padding = sum(
                label != IGNORED and not seen for label, seen in zip(labels, mask, strict=True)
            )
            conversations = _conversations(columns)
            for n, own in enumerate(conversations):
                part = f", part {n + 1}" if len(conversations) > 1 else ""
                kept = Trained([ids[at] for at in own], [labels[at] for at in own])
                yield Part(where + part, kept, 0 if n else padding)


def _data_set(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the numbered rows of one data set or file."""
    from pyarrow import ArrowException

    try:
        if path.exists() and not path.is_dir() and path.suffix != ".arrow":
            yield from rows(path, Reading())
        else:
            yield from enumerate(_loaded(path), start=1)
    except DstoolsError as error:
        raise DstoolsError(str(error), HINT) from None
    except (OSError, ValueError, TypeError, LookupError, ArrowException) as error:
        reason = printable(str(error).split("\n")[0])
        raise DstoolsError(f"{path}: cannot be read: {reason}", HINT) from error


def _loaded(path: Path) -> Iterator[Record]:
    """Yield the rows of a folder or an Arrow file."""
    import datasets
    from pyarrow import ipc

    load = datasets.load_from_disk if path.is_dir() else datasets.Dataset.from_file
    if path.is_dir():
        state = json_object(path / "state.json") if (path / "state.json").is_file() else ""
        if isinstance(state, dict) and state.get("_data_files") == []:
            return  # so datasets 5.2 saves no rows, and cannot load them
    else:
        with path.open("rb") as file:
            if file.read(len(FILE_FORM)) == FILE_FORM:
                yield from ipc.open_file(file).read_all().to_pylist()
                return
    yield from load(str(path)).with_format(None)


def _columns(row: Record, vocabulary: int) -> dict[str, list[int]]:
    """Return the columns of a row that are read, with labels and attention_mask.

    A mask or positions of more dimensions are not read. ValueError says which column is wrong.
    """
    if "input_ids" not in row:
        kind = "preference data" if any("rejected" in key for key in row) else "not tokenized"
        names = printable(", ".join(row))
        raise ValueError(f"has no input_ids, only {names}: it is {kind}")
    columns: dict[str, list[int]] = {}
    for key in ("input_ids", "labels", *MASKS, "seq_lengths", "position_ids", "attention_mask"):
        values = row.get(key)
        is_nested = isinstance(values, list) and bool(values) and isinstance(values[0], list)
        if values is None or (is_nested and key in ("position_ids", "attention_mask")):
            continue
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise ValueError(
                f"{key}: is not a list of integers, but {printable(repr(values)[:40])}"
            )
        columns[key] = values
        length = sum(map(abs, values)) if key == "seq_lengths" else len(values)
        if length != len(columns["input_ids"]):
            raise ValueError(f"{key}: are for {length} input_ids, not {len(columns['input_ids'])}")
    ids = columns.get("input_ids")
    if not ids:
        raise ValueError("input_ids: is empty")
    if wrong := [n for n in (min(ids), max(ids)) if not 0 <= n < vocabulary]:
        raise ValueError(
            f"input_ids: {wrong[0]} is not one of {vocabulary} tokens: give the tokenizer that "
            "prepared the data"
        )
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
