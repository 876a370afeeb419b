"""Tests of sources: rows come from files, datasets and tasks; a bad row is named."""

import gzip
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.data.sources import Reading, dataset_rows, questions, rows, task_rows
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Verify


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    with closing(Referee(Verify.timeout_seconds)) as referee:
        yield referee


def jsonl(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def parquet(path: Path, table: list[dict[str, Any]], **options: int) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(table), path, **options)
    return path


@pytest.mark.parametrize(
    ("spelled", "gold"),
    [
        ("5", "5"),
        ('"007"', "007"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("12345678901234567890123", "12345678901234567890123"),
    ],
)
def test_a_gold_number_is_spelled_as_in_the_file(tmp_path: Path, spelled: str, gold: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", f'{{"problem": "?", "answer": {spelled}, "pass_rate": 0.5}}')
    assert list(rows(file, Reading())) == [(1, {"problem": "?", "answer": gold, "pass_rate": 0.5})]


def test_parquet_gives_the_rows_of_the_same_jsonl(tmp_path: Path) -> None:
    table = [
        {"messages": [{"role": "user", "content": f"What is {n}²?"}], "answer": n * n, "share": 0.5}
        for n in range(2000)
    ]
    file = parquet(tmp_path / "a.parquet", table, row_group_size=700)
    assert list(rows(file, Reading())) == list(
        rows(jsonl(tmp_path / "a.jsonl", *map(json.dumps, table)), Reading())
    )


def test_a_row_is_named_by_its_line_or_by_its_number_in_parquet(tmp_path: Path) -> None:
    good, bad = {"problem": "1+1", "answer": "2"}, {"problem": " ", "answer": "2"}
    file = jsonl(tmp_path / "a.jsonl", "", json.dumps(good), json.dumps(bad))
    with pytest.raises(DstoolsError, match=r"a\.jsonl: line 3: problem is empty"):
        list(questions(file, "auto", Reading()))
    with pytest.raises(DstoolsError, match=r"a\.parquet: row 2: problem is empty"):
        list(questions(parquet(tmp_path / "a.parquet", [good, bad]), "auto", Reading()))


def test_a_row_comes_with_its_number_and_its_question(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", "", '{"problem": "1+1", "prompt": "2+2"}')
    ((number, row, question),) = questions(file, "problem", Reading())
    assert (number, row) == (2, {"problem": "1+1", "prompt": "2+2"})
    assert (question.form, question.messages[0]["content"]) == ("problem", "1+1")
    with pytest.raises(DstoolsError, match="line 2: messages is not a list of turns"):
        list(questions(file, "messages", Reading()))


@pytest.mark.parametrize("line", ['{"problem": "1+', "[1]", '{"problem": "a", "problem": "b"}'])
def test_a_line_that_is_no_row_is_left_out_as_a_bad_row_is(line: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", '{"problem": "1+1"}', line, '{"problem": "2+2"}')
    reading = Reading(max_bad=1)
    assert [number for number, *_ in questions(file, "auto", reading)] == [1, 3]
    assert (reading.bad, reading.first_bad.partition(": is")[0]) == (1, f"{file}: line 2")
    with pytest.raises(DstoolsError, match="line 2: is not") as caught:
        list(questions(file, "auto", Reading(max_bad=0)))
    assert caught.value.hint.endswith("; or leave out up to N such rows: max_bad = N in the source")


def test_a_doubtful_gold_is_refused_by_those_who_judge(tmp_path: Path, referee: Referee) -> None:
    """A benchmark without an answer of its own is still indexed, by its question and solution."""
    row = {"problem": "1+1", "solution": r"\boxed{2} or \boxed{3}"}
    file = jsonl(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(DstoolsError, match="line 1: solution has 2 boxed answers"):
        list(questions(file, "auto", Reading(0, referee)))
    ((_, _, question),) = questions(file, "auto", Reading(max_bad=0))
    assert (question.gold, question.first_reply) == (None, row["solution"])


def test_rows_of_the_whole_source_tell_what_an_index_counts_from(
    tmp_path: Path, referee: Referee
) -> None:
    def golds(name: str, answers: list[Any], reading: Reading) -> list[str | None]:
        lettered = {"A": "one", "B": "two", "C": "three", "D": "four"}
        table = [
            {"question": f"Which {n}?", "answer": answer, **lettered}
            for n, answer in enumerate(answers)
        ]
        file = tmp_path / name
        if name.endswith("parquet"):
            parquet(file, table)
        else:
            jsonl(file, *map(json.dumps, table), "{}")
        return [question.gold for _, _, question in questions(file, "auto", reading)]

    for name in ("a.jsonl", "a.parquet"):
        assert golds(name, [1, 2, 4], Reading(1, referee)) == ["A", "B", "D"]
        assert golds(name, [1, 2, 0], Reading(1, referee)) == ["B", "C", "A"]
        assert golds(name, [1, 2], Reading(1, referee, first_option=1)) == ["A", "B"]
        for answers, told in (([1, 2], "no row of the source tells"), ([1, 4, 0], "tell both")):
            with pytest.raises(DstoolsError, match=told) as caught:
                golds(name, answers, Reading(0, referee))
            assert caught.value.hint.startswith("set first_option = 0 or 1 in the source")
        assert golds(name, [1, 2], Reading(1)) == [None, None]  # of `index`: no gold is needed


def test_bad_rows_are_left_out_and_counted_up_to_a_limit(tmp_path: Path, referee: Referee) -> None:
    file = jsonl(
        tmp_path / "a.jsonl",
        '{"problem": "1+1", "uuid": "x"}',
        '{"problem": ""}',
        '{"problem": "2+2", "answer": "4", "gold": "5"}',
        '{"problem": "3+3"}',
    )
    reading = Reading(2, referee)
    assert [number for number, *_ in questions(file, "auto", reading)] == [1, 4]
    assert (reading.bad, reading.unread) == (2, {"uuid"})
    assert reading.first_bad == f"{file}: line 2: problem is empty"
    with pytest.raises(DstoolsError, match="line 3: gold is '5' and answer is '4'") as caught:
        list(questions(file, "auto", Reading(1, referee)))
    assert caught.value.hint.startswith("keep only the column that holds the gold")
    assert "max_bad = N" in caught.value.hint
    with pytest.raises(DstoolsError, match="line 2: problem is empty") as caught:
        list(questions(file, "auto", Reading()))  # of `index` and `select`, without a source table
    assert "max_bad" not in caught.value.hint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DstoolsError, match=r"a\.parquet: is not a Parquet file"):
        list(rows(tmp_path / "a.parquet", Reading()))
    for name in ("b.parquet", "b.jsonl"):
        with pytest.raises(DstoolsError, match=f"{name}: no such file"):
            list(rows(tmp_path / name, Reading()))
    with pytest.raises(DstoolsError, match=r"a\.csv: is not a \.jsonl or \.parquet file"):
        list(rows(tmp_path / "a.csv", Reading()))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("raw", "what", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer", "git lfs pull"),
        (b"<!doctype html>\n<html>", "an HTML page", "download the file itself"),
        (gzip.compress(b'{"a": 1}\n'), "compressed with gzip", "gunzip"),
        ('{"a": 1}\n'.encode("utf-16"), "UTF-16", "iconv"),
    ],
)
def test_a_file_that_is_something_else_is_told_by_its_first_bytes(
    name: str, raw: bytes, what: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DstoolsError, match=f"{name}: is {what}|is a {what}") as error:
        list(rows(tmp_path / name, Reading(max_bad=9)))
    assert hint in error.value.hint
    assert "max_bad" not in error.value.hint


def test_a_damaged_parquet_file_is_not_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1zzzz")
    with pytest.raises(DstoolsError, match=r"a\.parquet: is not a Parquet file"):
        list(rows(tmp_path / "a.parquet", Reading()))
    (tmp_path / "a.jsonl").write_bytes(b"PAR1zzzz")
    with pytest.raises(DstoolsError, match=r"a\.jsonl: is a Parquet file"):
        list(rows(tmp_path / "a.jsonl", Reading()))


def test_a_task_gives_problems_that_its_own_scorer_scores() -> None:
    from reasoning_gym.factory import create_dataset

    options = {"min_terms": 2, "max_terms": 3}
    drawn = list(task_rows("chain_sum", 20, 7, options))
    assert [number for number, _ in drawn] == list(range(1, 21))
    for _, row in drawn:
        task = json.loads(json.dumps(row["task"]))
        assert task["config"] == {"size": 20, "seed": 7, **options}
        assert row["question"] == task["entry"]["question"]
        again = create_dataset(task["name"], **task["config"])
        assert again.score_answer(row["answer"], task["entry"]) == 1


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("no_such", None, "reasoning-gym has no such task"),
        ("chain_sum", {"min_term": 2}, "has bad options"),
        ("chain_sum", {"min_terms": 9}, "has bad options"),
        ("rearc", None, "its scorer cannot judge from JSON"),
        ("list_functions", None, "draws other problems each time"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused(name: str, options: Any, reason: str) -> None:
    with pytest.raises(DstoolsError, match=f"rg:{name}: {reason}"):
        list(task_rows(name, 2, 0, options))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # datasets leaves its maps open
def test_a_dataset_comes_from_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    caplog.set_level(logging.ERROR)  # it logs that it uses the cache
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = [{"question": f"What is {n}?", "answer": n} for n in range(30)]
    jsonl(tmp_path / "gsm.jsonl", *map(json.dumps, table))
    loaded = datasets.load_dataset(
        "json", data_files={"train": str(tmp_path / "gsm.jsonl")}, cache_dir=str(tmp_path / "made")
    )
    (folder,) = (tmp_path / "made" / "json").glob("*/*/*/")
    place = tmp_path / "cache" / "org___gsm" / "default" / "0.0.0" / ("0" * 40)
    place.parent.mkdir(parents=True)
    del loaded
    folder.rename(place)
    for file in place.glob("json-*"):
        file.rename(place / file.name.replace("json-", "gsm-"))
    expected = [(n + 1, row | {"answer": str(n)}) for n, row in enumerate(table)]
    assert list(dataset_rows("org/gsm", "train")) == expected
    with pytest.raises(DstoolsError, match="datasets:org/other: is not in the local") as caught:
        list(dataset_rows("org/other", "train"))
    assert "datasets.load_dataset('org/other', None)" in caught.value.hint
