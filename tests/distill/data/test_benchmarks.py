"""Tests of the index of benchmark texts: what it holds, and its file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dstools_converters.errors import DstoolsError
from dstools_distill.data.benchmarks import (
    METADATA,
    Benchmark,
    Tables,
    Text,
    build_tables,
    common_windows,
    load_index,
    save_index,
)
from dstools_distill.data.ngrams import hashes_of, tokens, whole, windows

LONG = "one two three four five six seven eight nine ten eleven twelve"  # three runs of ten words


def built(name: str, *texts: Text) -> tuple[Benchmark, Tables]:
    """The only benchmark of an index."""
    return build_tables(name, "f" * 64, texts, common_windows(texts))


def test_a_long_text_has_its_runs_and_a_short_question_is_whole() -> None:
    texts = [Text(2, LONG.split(), "answer"), Text(3, ["why", "five"], "question")]
    benchmark, tables = built("b", *texts, Text(9, [], "question"))
    assert benchmark == Benchmark("b", "f" * 64, 9, questions=2, windows=3, wholes=1, unknown=1)
    assert sorted(tables) == [*("hashes.2", "hashes.run", "lengths.run", "places.2", "places.run")]
    assert tables["hashes.run"].tolist() == sorted(windows(hashes_of(LONG.split()), 10).tolist())
    assert tables["hashes.2"].tolist() == [whole(hashes_of(["why", "five"]))]
    assert (tables["places.run"].tolist(), tables["places.2"].tolist()) == ([2, 2, 2], [3])
    assert tables["lengths.run"].tolist() == [12] * 3


def test_a_question_has_its_words_and_pairs_of_words_and_of_numbers() -> None:
    text = tokens("Let x + y = 12 and x - y = 4 for some pair of numbers; find both, please")
    _, tables = built("b", Text(7, text, "question"))
    words = hashes_of(tokens("let 12 and 4 for some pair of numbers find both please"))
    assert tables["hashes.run"].tolist() == sorted(windows(words, 10).tolist())
    pairs = {*windows(words, 2).tolist(), *windows(hashes_of(["12", "4"]), 2).tolist()}
    assert tables["hashes.pair"].tolist() == sorted(pairs)
    assert set(tables["own.pair"].tolist()) == {12}  # 11 of words, one of numbers
    order = np.argsort(tables["offsets.word"])
    assert tables["hashes.word"][order].tolist() == words.tolist()
    assert np.flatnonzero(tables["signed.word"][order]).tolist() == [1, 3]
    assert set(tables["places.word"].tolist()) == {7}


def test_spelled_numbers_have_the_pairs_of_figures() -> None:
    asked = "Of 30 pears Ines gives 3 to the first and four to each of the other children"
    spelled = asked.replace("3 to", "three to").replace("30", "thirty").replace("four", "4")
    one, other = (built("b", Text(1, tokens(text), "question"))[1] for text in (asked, spelled))
    for column in ("hashes.pair", "hashes.word", "hashes.run"):
        assert one[column].tolist() == other[column].tolist()
    of_numbers = windows(hashes_of(["30", "3", "4"]), 2)
    assert np.isin(of_numbers, one["hashes.pair"]).all()


def test_a_question_without_its_options_is_never_found_as_a_whole() -> None:
    stem = tokens("Which of these is right?")
    whole_one = tokens("Which of these is right? (A) a kite (B) a barge (C) none of the two")
    _, tables = built("b", Text(1, whole_one, "question"), Text(1, stem, "stem"))
    assert not [key for key in tables if key.endswith((".5", ".whole"))]
    longer = tokens("Which of the vessels that are listed below carries 12 tons?")
    benchmark, tables = built("b", Text(1, whole_one, "question"), Text(1, longer, "stem"))
    assert benchmark.questions == 1
    assert set(tables["texts.word"].tolist()) == {0, 1}


def test_equal_texts_count_once_and_short_answers_are_not_indexed() -> None:
    texts = [Text(1, ["what", "for"], "question"), Text(2, ["what", "for"], "question")]
    benchmark, tables = built("b", *texts, Text(3, ["five"], "answer"))
    assert (benchmark.questions, benchmark.wholes) == (2, 1)
    assert {key: column.tolist() for key, column in tables.items()} == {
        "hashes.2": [whole(hashes_of(["what", "for"]))],
        "places.2": [1],
    }


@pytest.mark.parametrize(("count", "windows", "wholes"), [(10, 20, 0), (11, 0, 11)])
def test_windows_that_more_than_ten_texts_share_but_for_numbers_are_a_template(
    count: int, windows: int, wholes: int
) -> None:
    words = ["what", "is", "the", "sum", "of", "these", "two", "given", "numbers", "please"]
    texts = [Text(n, [*words, str(n)], "question") for n in range(1, count + 1)]
    benchmark, _ = built("b", *texts)
    assert (benchmark.windows, benchmark.wholes) == (windows, wholes)


def test_what_many_texts_share_is_counted_over_all_benchmarks_of_an_index() -> None:
    closing = "then write the result as one common fraction in its lowest terms"
    texts = [Text(n, [f"word{n}", *closing.split()], "question") for n in range(1, 13)]
    common = common_windows(texts)
    for part in (texts[:4], texts[4:8], texts[8:]):  # a benchmark in three files
        benchmark, tables = build_tables("b", "f", part, common)
        assert benchmark.windows == 4  # of each text, the run with its own word
        assert set(tables["own.pair"].tolist()) == {1}
    benchmark, _ = build_tables("b", "f", texts[:4], common_windows(texts[:4]))
    assert benchmark.windows == 4 * 4


def test_an_index_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    parts = [
        built("a", Text(1, ["who", "is", "it"], "question")),
        built("b", Text(5, LONG.split(), "generated")),
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
    index = tmp_path / "ours.ngrams"
    save_index(index, [built("ours", Text(1, LONG.split(), "question"))])
    change(index)
    with pytest.raises(DstoolsError, match=rf"ours\.ngrams: {reason}"):
        load_index(index)
