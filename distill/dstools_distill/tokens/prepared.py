"""Tokenized data sets that trainers write: axolotl's, LLaMA-Factory's, TRL's, or files of rows.

Sources: axolotl 0.19, `preprocess` (a folder named by a hash, in dataset_prepared_path);
LLaMA-Factory 0.9.5, tokenized_path (a folder for each split); TRL 1.16, SFTTrainer.train_dataset.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_distill.data.sources import rows as rows_of
from dstools_distill.records import Record
from dstools_distill.tokens.invariant import IGNORED, Trained

MASKS = ("completion_mask", "assistant_masks")  # of TRL, in place of labels
HINT = "name what the trainer wrote: dataset_prepared_path, tokenized_path, or a saved data set"


class Part(NamedTuple):
    """One conversation of a prepared row."""

    where: str  # "train: row 3, part 2"
    row: Trained
    is_apart: bool  # the attention mask tells it from others of its row, or there are none


def parts(path: Path, vocabulary: int) -> Iterator[Part]:
    """Yield the conversations of all data sets in a folder, or of one file, in order.

    vocabulary: the number of tokens. Packed rows are divided by seq_lengths, position_ids or the
    numbers in attention_mask; padding is left out. Raises DstoolsError, naming data set, row and
    column, for what is not a whole data set of input_ids with labels for supervised fine-tuning.
    """
    count = 0
    for name, rows in _data_sets(path):
        for number, row in rows:
            where = f"{name}row {number}"
            count += 1
            try:
                trained = _trained(row, vocabulary)
                spans, is_apart = _spans(row, trained)
            except ValueError as error:
                raise DstoolsError(f"{path}: {where}: {error}", HINT) from None
            for n, (start, end) in enumerate(spans, start=1):
                part = f", part {n}" if len(spans) > 1 else ""
                kept = Trained(trained.ids[start:end], trained.labels[start:end])
                yield Part(where + part, kept, is_apart)
    if not count:
        raise DstoolsError(f"{path}: has no rows", HINT)


def _data_sets(path: Path) -> Iterator[tuple[str, Iterator[tuple[int, Record]]]]:
    """Yield a prefix for messages, and the numbered rows, of each data set below a path."""
    import datasets
    from pyarrow import ArrowException

    if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_dir():
        yield "", rows_of(path)
        return
    if not path.exists():
        raise DstoolsError(f"{path}: no such file or folder", HINT)
    places = [p for depth in ("", "*/", "*/*/") for p in path.glob(f"{depth}state.json")]
    loose = [p for p in path.glob("**/*.arrow") if not (p.parent / "state.json").exists()]
    if loose:
        hint = "it is half written, or a cache: prepare the data again, in an empty folder"
        raise DstoolsError(f"{loose[0].parent}: has no state.json beside its .arrow file", hint)
    if path.is_dir() and not places:
        raise DstoolsError(f"{path}: holds no data set", HINT)
    for place in sorted(p.parent for p in places) or [path]:
        try:
            load = datasets.load_from_disk if place.is_dir() else datasets.Dataset.from_file
            data = load(str(place)).with_format(None)
            name = f"{place.relative_to(path)}: " if place != path else ""
            yield name, enumerate(data, start=1)
        except (OSError, ValueError, TypeError, LookupError, ArrowException) as error:
            reason = printable(str(error).split("\n")[0])
            hint = "it is half written or damaged: prepare the data again, in an empty folder"
            raise DstoolsError(f"{place}: cannot be read: {reason}", hint) from error


def _trained(row: Record, vocabulary: int) -> Trained:
    """Return ids and labels of a row; ValueError says which column is wrong."""
    if "input_ids" not in row:
        kind = "preference data" if any("rejected" in key for key in row) else "not tokenized"
        names = printable(", ".join(row))
        raise ValueError(f"has no input_ids, only {names}: it is {kind}")
    ids = _integers(row, "input_ids")
    if not ids:
        raise ValueError("input_ids: is empty")
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(n for n in ids if not 0 <= n < vocabulary)
        raise ValueError(f"input_ids: {wrong} is not one of {vocabulary} tokens: give the "
                         "tokenizer that prepared the data")  # fmt: skip
    if row.get("labels") is not None:
        labels = _integers(row, "labels", len(ids))
    else:
        masks = [_integers(row, key, len(ids)) for key in MASKS if row.get(key) is not None]
        labels = [n if all(mask[i] for mask in masks) else IGNORED for i, n in enumerate(ids)]
    return Trained(ids, labels)


def _integers(row: Record, key: str, length: int | None = None) -> list[int]:
    values = row[key]
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"{key}: is not a list of integers, but {printable(repr(values)[:40])}")
    if length is not None and len(values) != length:
        raise ValueError(f"{key}: has {len(values)} values for {length} input_ids")
    return values


def _is_nested(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], list)


def _spans(row: Record, trained: Trained) -> tuple[list[tuple[int, int]], bool]:
    """Return start and end of each conversation in a row, and whether attention keeps them apart.

    A mask or positions of more dimensions are not read.
    """
    length = len(trained.ids)
    flat = {
        key: _integers(row, key, length)
        for key in ("position_ids", "attention_mask")
        if row.get(key) is not None and not _is_nested(row[key])
    }
    mask = flat.get("attention_mask", [1] * length)
    if row.get("seq_lengths"):
        sizes = _integers(row, "seq_lengths")
        if sum(sizes) != length or min(sizes) < 1:
            raise ValueError(f"seq_lengths: do not divide the {length} input_ids")
        cuts = [0, *accumulate(sizes)]
    elif "position_ids" in flat:
        cuts = [n for n, at in enumerate(flat["position_ids"]) if at == 0]
    else:
        cuts = [n for n in range(1, length) if mask[n] != mask[n - 1]]
    spans = [
        (start, end)
        for start, end in pairwise(sorted({0, *cuts, length}))
        if mask[start] and (end - start > 1 or trained.labels[start] != IGNORED)
    ] or [(0, length)]
    is_masked_as_one = "attention_mask" in flat and len(set(mask)) == 1
    return spans, len(spans) < 2 or "seq_lengths" in row or not is_masked_as_one
