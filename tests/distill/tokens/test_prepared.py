"""Tokenized data sets are read as their trainers wrote them, and what is not one is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.prepared import parts, read

ROW = {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}
WRITTEN = ([1, 2, 3], [IGNORED, 2, 3])


def read_parts(path: Path) -> list[tuple[str, Any]]:
    return [(part.where, part.row) for part in parts(read(path), 9, path)]


def write(path: Path, row: dict[str, Any]) -> Path:
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    "kind", ["data set", "its parent", "dict", "arrow", "arrow file", "parquet", "jsonl", "render"]
)
def test_folders_and_files_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    data = datasets.Dataset.from_list([ROW])
    folder = tmp_path / "made"
    name = ""
    if kind == "dict":  # datasets cannot load the split without rows
        none = data.select([])
        datasets.DatasetDict(test=none, train=data).save_to_disk(folder)
        path, name = folder, "train: "
    elif kind == "arrow file":
        path = tmp_path / "a.arrow"
        table = data.with_format("arrow")[:]
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as form:
            form.write_table(table)
    elif kind == "parquet":
        path = tmp_path / "a.parquet"
        data.to_parquet(path)
    elif kind == "jsonl":
        path = write(tmp_path / "a.jsonl", ROW)
    elif kind == "render":  # the output folder of dstools, which has no state.json
        data.save_to_disk(folder / "made")
        (tmp_path / "stage").mkdir()
        path, name = tmp_path / "stage", "rows.arrow: "
        (folder / "made" / "data-00000-of-00001.arrow").rename(path / "rows.arrow")
    else:
        data.save_to_disk(folder / "hash")
        path, name = {
            "data set": (folder / "hash", ""),
            "its parent": (folder, "hash: "),
            "arrow": (folder / "hash" / "data-00000-of-00001.arrow", ""),
        }[kind]
    assert read_parts(path) == [(f"{name}row 1", WRITTEN)]


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({}, [1, 2, 3]),
        ({"completion_mask": [0, 1, 1]}, [IGNORED, 2, 3]),
        ({"completion_mask": [0, 1, 1], "assistant_masks": [0, 0, 1]}, [IGNORED, IGNORED, 3]),
    ],
)
def test_masks_stand_for_labels_and_without_them_all_is_trained(
    tmp_path: Path, columns: dict[str, Any], labels: list[int]
) -> None:
    path = write(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3]} | columns)
    assert read_parts(path) == [("row 1", ([1, 2, 3], labels))]


@pytest.mark.parametrize(
    "columns",
    [
        {"position_ids": [0, 1, 0, 1, 0, 0]},
        {"position_ids": [0, 1, 0, 1, 0, 0], "attention_mask": [1, 1, 1, 1, 1, 1]},
        {"position_ids": [0, 1, 0, 1, 0, 0], "attention_mask": [1, 1, 2, 2, 0, 0]},
        {"attention_mask": [1, 1, 2, 2, 0, 0]},
        {"seq_lengths": [2, 2, 2], "attention_mask": [1, 1, 1, 1, 0, 0]},
    ],
)
def test_packed_rows_are_divided_and_padding_is_left_out(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    """TRL writes seq_lengths; LLaMA-Factory position_ids, and numbers in the mask if neat."""
    row = {"input_ids": [1, 2, 3, 4, 0, 0], "labels": [IGNORED, 2, IGNORED, 4, IGNORED, IGNORED]}
    assert read_parts(write(tmp_path / "a.jsonl", row | columns)) == [
        ("row 1, part 1", ([1, 2], [IGNORED, 2])),
        ("row 1, part 2", ([3, 4], [IGNORED, 4])),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "row 1: has no input_ids, only text: it is not tokenized"),
        ({"chosen_input_ids": [1], "rejected_input_ids": [2]}, "it is preference data"),
        ({"input_ids": [1, 2], "labels": [1]}, "row 1: labels: are for 1 input_ids, not 2"),
        ({"input_ids": [1], "labels": [0.5]}, r"labels: is not a list of integers, but \[0.5\]"),
        ({"input_ids": "ab"}, "input_ids: is not a list of integers, but 'ab'"),
        ({"input_ids": [[1, 2]]}, "input_ids: is not a list of integers"),
        ({"input_ids": [True]}, "input_ids: is not a list of integers"),
        ({"input_ids": [1, 9]}, "9 is not one of 9 tokens: give the tokenizer that prepared"),
        ({"input_ids": [-1]}, "-1 is not one of 9 tokens"),
        ({"input_ids": [1], "position_ids": [0, 1]}, "position_ids: are for 2 input_ids, not 1"),
        ({"input_ids": [1, 2], "seq_lengths": [1, 2]}, "seq_lengths: are for 3 input_ids, not 2"),
        ({"input_ids": [1, 2], "seq_lengths": [3, -1]}, "seq_lengths: are for 4 input_ids, not 2"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "attention_mask: are for 1 input_ids, not"),
        ({"input_ids": [1], "position_ids": 0}, "position_ids: is not a list of integers, but 0"),
        ({"input_ids": []}, "input_ids: is empty"),
    ],
)
def test_a_row_that_is_not_tokenized_for_sft_is_named(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DstoolsError, match=reason) as error:
        read_parts(write(tmp_path / "a.jsonl", row))
    assert "a.jsonl: row 1" in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize("key", ["labels", "completion_mask", "position_ids", "attention_mask"])
def test_a_row_whose_columns_are_not_those_of_the_first_row_is_named(
    tmp_path: Path, key: str
) -> None:
    """Without labels all would be trained on; a data set of its own may have other columns."""
    full = {"input_ids": [1, 2], key: [0, 1]}
    for rows, fault in (
        ([full, full | {key: None}], f"row 2: {key}: is null or missing, unlike in row 1"),
        ([full, {"input_ids": [1]}], f"row 2: {key}: is null or missing, unlike in row 1"),
        ([{"input_ids": [1]}, full], f"row 2: {key}: has values, unlike in row 1"),
    ):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        with pytest.raises(DstoolsError, match=fault):
            read_parts(path)
    for name, columns in (("train", full), ("test", {"input_ids": [1]})):
        datasets.Dataset.from_list([columns]).save_to_disk(tmp_path / "made" / name)
    assert len(read_parts(tmp_path / "made")) == 2


def test_what_is_no_whole_data_set_is_named(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(DstoolsError) as error:
            read_parts(path)
        assert "name what the trainer wrote" in error.value.hint
        return str(error.value)

    folder = tmp_path / "made"
    datasets.Dataset.from_list([ROW]).save_to_disk(folder)
    (tmp_path / "broken.jsonl").write_text('{"input_ids": [1')
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.parquet").write_text("no")
    assert "nothing: cannot be read: " in refused(tmp_path / "nothing")
    assert "line 1: is not valid JSON" in refused(tmp_path / "broken.jsonl")
    assert "empty: cannot be read: " in refused(tmp_path / "empty")
    assert "a.parquet: is not a Parquet file" in refused(tmp_path / "a.parquet")
    half = shutil.copytree(folder, tmp_path / "half")
    (half / "state.json").unlink()
    assert "half: cannot be read: " in refused(half)
    cut = shutil.copytree(folder, tmp_path / "cut")
    file = cut / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    assert "cut: " in refused(cut)
    (tmp_path / "a.csv").write_text("input_ids,labels\n")
    assert "a.csv: is not a .jsonl or .parquet file" in refused(tmp_path / "a.csv")
    lost = shutil.copytree(folder, tmp_path / "lost")
    (lost / "data-00000-of-00001.arrow").unlink()
    assert "lost: cannot be read" in refused(lost)
