"""Tokenized data sets that trainers write: axolotl's, LLaMA-Factory's, TRL's, or files of rows.

Sources: axolotl 0.19, `preprocess` (a folder named by a hash, in dataset_prepared_path);
LLaMA-Factory 0.9.5, tokenized_path (a folder for each split); TRL 1.16, SFTTrainer.train_dataset.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_distill.data.sources import Reading, rows
from dstools_distill.records import Record
from dstools_distill.tokens.invariant import IGNORED, Trained

MASKS = ("completion_mask", "assistant_masks")  # of TRL, in place of labels
HINT = "name what the trainer wrote: dataset_prepared_path, tokenized_path, or a saved data set"


class Part(NamedTuple):
    """One conversation of a prepared row."""

    where: str  # "train: row 3, part 2"
    row: Trained
    is_apart: bool  # the attention mask tells it from others of its row, or there are none
    padding: int = 0  # labels of padding in the row, told with its first conversation


def parts(path: Path, vocabulary: int) -> Iterator[Part]:
    """Yield the conversations of all data sets in a folder, or of one file, in order.

    vocabulary: the number of tokens. Packed rows are divided by seq_lengths, position_ids or the
    numbers in attention_mask; padding is left out. Raises DstoolsError, naming data set, row and
    column, for what is not a whole data set of input_ids with labels for supervised fine-tuning.
    """
    written = [*path.glob("**/state.json"), *path.glob("**/*.arrow")]
    for place in sorted({file.parent for file in written}) or [path]:
        name = f"{place.relative_to(path)}: " if place != path else ""
        for number, row in _data_set(place):
            where = f"{name}row {number}"
            try:
                columns = _columns(row, vocabulary)
            except ValueError as error:
                raise DstoolsError(f"{path}: {where}: {error}", HINT) from None
            spans, is_apart = _spans(columns)
            masked = zip(columns["labels"], columns.get("attention_mask", ()), strict=False)
            padding = sum(label != IGNORED and not seen for label, seen in masked)
            for n, (start, end) in enumerate(spans, start=1):
                part = f", part {n}" if len(spans) > 1 else ""
                kept = Trained(columns["input_ids"][start:end], columns["labels"][start:end])
                yield Part(where + part, kept, is_apart, padding if n == 1 else 0)


def _data_set(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the numbered rows of one data set or file."""
    import datasets
    from pyarrow import ArrowException

    if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_dir():
        yield from rows(path, Reading())
        return
    try:
        load = datasets.load_from_disk if path.is_dir() else datasets.Dataset.from_file
        yield from enumerate(load(str(path)).with_format(None), start=1)
    except (OSError, ValueError, TypeError, LookupError, ArrowException) as error:
        reason = printable(str(error).split("\n")[0])
        hint = f"{HINT}; if it is half written or damaged, prepare the data again"
        raise DstoolsError(f"{path}: cannot be read: {reason}", hint) from error


def _columns(row: Record, vocabulary: int) -> dict[str, list[int]]:
    """Return the columns of a row that are read, with labels; ValueError says which is wrong.

    A mask or positions of more dimensions are not read.
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
            shown = printable(repr(values)[:40])
            raise ValueError(f"{key}: is not a list of integers, but {shown}")
        columns[key] = values
        length = sum(map(abs, values)) if key == "seq_lengths" else len(values)
        if length != len(columns["input_ids"]):
            raise ValueError(f"{key}: are for {length} input_ids, not {len(columns['input_ids'])}")
    ids = columns["input_ids"]
    if not ids:
        raise ValueError("input_ids: is empty")
    if wrong := [n for n in (min(ids), max(ids)) if not 0 <= n < vocabulary]:
        raise ValueError(
            f"input_ids: {wrong[0]} is not one of {vocabulary} tokens: give the tokenizer that "
            "prepared the data"
        )
    masks = [columns[key] for key in MASKS if key in columns]
    masked = [n if all(mask[i] for mask in masks) else IGNORED for i, n in enumerate(ids)]
    return {"labels": masked} | columns


def _spans(columns: dict[str, list[int]]) -> tuple[list[tuple[int, int]], bool]:
    """Return start and end of each conversation in a row, and whether attention parts them."""
    length = len(columns["input_ids"])
    mask = columns.get("attention_mask", [1] * length)
    if "seq_lengths" in columns:
        cuts = list(accumulate(columns["seq_lengths"]))
    elif "position_ids" in columns:
        cuts = [n for n, at in enumerate(columns["position_ids"]) if at == 0]
    else:
        cuts = [n for n in range(1, length) if mask[n] != mask[n - 1]]
    spans = [
        (start, end)
        for start, end in pairwise(sorted({0, *cuts, length}))
        if mask[start] and (end - start > 1 or columns["labels"][start] != IGNORED)
    ] or [(0, length)]
    is_masked_as_one = "attention_mask" in columns and len(set(mask)) == 1
    return spans, len(spans) < 2 or "seq_lengths" in columns or not is_masked_as_one
