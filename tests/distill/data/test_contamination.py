"""Tests of the contamination index: its file, and what it finds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dstools_converters.errors import DstoolsError
from dstools_distill.data.contamination import (
    METADATA,
    Benchmark,
    Hit,
    Index,
    Kind,
    Text,
    build_tables,
    clean_prompts,
    load_index,
    save_index,
)
from dstools_distill.data.ngrams import hashes, hashes_of, tokens, whole, windows
from dstools_distill.records import Record

LONG = "one two three four five six seven eight nine ten eleven twelve"  # two windows and one more


def saved(folder: Path, name: str, *texts: str, kind: Kind = "question") -> Path:
    """An index file of one benchmark."""
    rows = [Text(n, tokens(text), kind) for n, text in enumerate(texts, start=1)]
    save_index(folder / f"{name}.ngrams", [build_tables(name, "0" * 64, rows)])
    return folder / f"{name}.ngrams"


def hits(index: Index, text: str, *, is_prompt: bool = False) -> list[Hit]:
    return index.hits([hashes(text)], [is_prompt])


def prompt(text: str) -> Record:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_long_text_has_its_windows_and_a_short_question_is_whole() -> None:
    texts = [Text(2, LONG.split(), "answer"), Text(3, ["why", "five"], "question")]
    benchmark, tables = build_tables("b", "f", [*texts, Text(9, [], "question")])
    assert benchmark == Benchmark("b", "f", rows=9, questions=2, windows=3, wholes=1, unknown=1)
    assert sorted(tables) == ["hashes.10", "hashes.2", "places.10", "places.2"]
    assert tables["hashes.10"].tolist() == sorted(windows(hashes_of(LONG.split()), 10).tolist())
    assert tables["hashes.2"].tolist() == [whole(hashes_of(["why", "five"]))]
    assert (tables["places.10"].tolist(), tables["places.2"].tolist()) == ([2, 2, 2], [3])


def test_equal_texts_count_once_and_short_answers_are_not_indexed() -> None:
    texts = [Text(1, ["what", "for"], "question"), Text(2, ["what", "for"], "question")]
    benchmark, tables = build_tables("b", "f", [*texts, Text(3, ["five"], "answer")])
    assert (benchmark.questions, benchmark.wholes) == (2, 1)
    assert {key: column.tolist() for key, column in tables.items()} == {
        "hashes.2": [whole(hashes_of(["what", "for"]))],
        "places.2": [1],
    }


@pytest.mark.parametrize(("count", "windows", "wholes"), [(10, 11, 0), (11, 0, 11)])
def test_windows_that_more_than_ten_texts_share_but_for_numbers_are_a_template(
    count: int, windows: int, wholes: int
) -> None:
    words = ["what", "is", "the", "sum", "of", "these", "two", "given", "numbers", "please"]
    texts = [Text(n, [*words, str(n)], "question") for n in range(1, count + 1)]
    benchmark, _ = build_tables("b", "f", texts)
    assert (benchmark.windows, benchmark.wholes) == (windows, wholes)


def test_a_generated_question_is_found_as_a_whole_only(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", LONG, kind="generated")])
    assert hits(index, f"so {LONG} then") == [Hit(0, 1, 12, "b", 1)]
    assert hits(index, LONG.removesuffix(" twelve")) == []
    assert hits(index, LONG.replace("two", "2")) == []
    assert hits(index, f"{LONG} + 1") == []  # part of a longer question


def test_hits_are_sorted_and_name_benchmark_row_and_place(tmp_path: Path) -> None:
    index = Index(
        [saved(tmp_path, "a", "is it two plus two", LONG), saved(tmp_path, "b", "x", LONG)]
    )
    assert [benchmark.name for benchmark in index.benchmarks] == ["a", "b"]
    first_ten = LONG.split()[:10]
    texts = [["no", *first_ten], ["is", "it", "two", "plus", "two"]]
    assert index.hits([hashes_of(text) for text in texts], [False, False]) == [
        Hit(0, 1, 10, "a", 2),
        Hit(0, 1, 10, "b", 2),
        Hit(1, 0, 5, "a", 1),
    ]


def test_a_question_of_three_tokens_must_be_the_whole_prompt(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", "who is it")])
    assert hits(index, "Who is it?", is_prompt=True) == [Hit(0, 0, 3, "b", 1)]
    assert hits(index, "Who is it?", is_prompt=False) == []
    assert hits(index, "So who is it?", is_prompt=True) == []


def test_no_window_spans_two_texts(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", "Ines rows home before the rain")])
    row = prompt("Who is it? Ines rows home") | {"reasoning": "before the rain", "answer": "Ines"}
    assert index.search([row]) == [[]]


def test_a_match_names_its_first_window_in_each_part_of_a_row(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", LONG)])
    row = prompt(f"{LONG.upper()}!") | {"reasoning": None, "answer": LONG.removeprefix("one ")}
    clean = prompt("what?")
    clean["messages"].insert(0, {"role": "system", "content": LONG})  # not searched
    match = {"benchmark": "b", "row": 1}
    assert list(index.annotate(iter([row, clean]))) == [
        (
            row,
            [
                match | {"where": "prompt", "window": " ".join(LONG.split()[:10])},
                match | {"where": "answer", "window": " ".join(LONG.split()[1:11])},
            ],
        ),
        (clean, []),
    ]
    assert Index([]).search([row]) == [[]]


def test_clean_prompts_leave_out_and_count_contaminated_ones(tmp_path: Path) -> None:
    rows = [prompt(LONG), prompt("Another one"), prompt(f"Again: {LONG}")]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    index = saved(tmp_path, "b", LONG)
    assert clean_prompts(tmp_path / "p.jsonl", [index]) == ([rows[1]], 2)
    assert clean_prompts(tmp_path / "p.jsonl", []) == (rows, 0)


def test_an_index_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    parts = [
        build_tables("a", "1" * 64, [Text(1, ["who", "is", "it"], "question")]),
        build_tables("b", "2" * 64, [Text(5, LONG.split(), "generated")]),
    ]
    save_index(tmp_path / "x", parts)
    benchmarks, tables = load_index(tmp_path / "x")
    assert benchmarks == [benchmark for benchmark, _ in parts]
    assert tables["places.3"].tolist() == [1]
    assert tables["places.whole"].tolist() == [1 + 5]  # after the row of the first benchmark
    assert tables["lengths.whole"].tolist() == [12]
    assert np.array_equal(tables["all.whole"], parts[1][1]["all.whole"])


def damaged(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)


def with_other_rules(index: Path) -> None:
    with safe_open(index, "numpy") as file:
        header = file.metadata()[METADATA]
    save_file(load_file(index), index, {METADATA: header.replace('"window": 10', '"window": 8')})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damaged, "is damaged: its sha256 is not"),
        (with_other_rules, "was made by another version of dstools"),
        (lambda index: index.write_bytes(index.read_bytes()[:-9]), "is not a contamination index"),
        (lambda index: index.write_text("hello"), "is not a contamination index"),
        (lambda index: save_file({}, index), "is not a contamination index"),
        (lambda index: index.unlink(), "no such file"),
    ],
)
def test_an_index_that_cannot_be_trusted_is_refused(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    index = saved(tmp_path, "ours", "What is 2 + 2?")
    change(index)
    with pytest.raises(DstoolsError, match=rf"ours\.ngrams: {reason}"):
        Index([index])
